"""A part is the masked whole: outputs, gradients and steps, by hooks and positions of this file's own."""

import copy
import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedgen import tree
from fedgen.adapter.lora import Lora
from fedgen.errors import ModelError
from fedgen.model import selfcheck
from fedgen.model.axes import axes_of
from fedgen.model.part import shrink, skeleton
from fedgen.model.shared import TextBase
from tests.unit.model.families import (
    FAMILIES,
    FFN,
    HEAD,
    IDS,
    LAYERS,
    gpt2,
    inputs_by_hand,
    kept_of,
    llama,
    mask,
    mistral,
    random_weights,
    rows,
    unequal,
)

each = pytest.mark.parametrize("name", FAMILIES)


def base_of(module):
    return TextBase(module, None, "0" * 64, 64)


def part_of(module, kept):
    return base_of(module).part(kept).replica(private=True).requires_grad_(True)


def masked_whole(family, module, kept):
    whole = copy.deepcopy(module).requires_grad_(True)
    mask(family, whole, kept)
    return whole


def places_by_hand(family, kept, name, shape):
    """Kept positions of a tensor per dimension, None if it is in a dropped layer."""
    kept_everywhere = [list(range(size)) for size in shape]
    if not name.startswith(family.layers):
        return kept_everywhere
    n = int(name.removeprefix(family.layers).partition(".")[0])
    inputs = inputs_by_hand(family, kept, n)
    if not any(inputs.values()):
        return None
    leaf = name.split(".")[-2]
    groups = kept[f"kv.{n}"].tolist() if f"kv.{n}" in kept else list(range(family.groups))
    heads, ffn = inputs[family.attention], inputs[family.feed_forward]
    if family.layers == "transformer.h.":
        fused = [row for chunk in range(3) for row in rows(groups, HEAD, chunk * family.groups * HEAD)]
        outputs = {"c_attn": fused, "c_fc": ffn}.get(leaf)
        closing = heads if "attn.c_proj" in name else ffn if "mlp.c_proj" in name else None
        own, other = -1, 0
    else:
        narrow = rows(groups, HEAD)
        outputs = {"q_proj": heads, "k_proj": narrow, "v_proj": narrow, "gate_proj": ffn, "up_proj": ffn}.get(leaf)
        closing = {"o_proj": heads, "down_proj": ffn}.get(leaf)
        own, other = 0, 1
    if outputs is not None:
        kept_everywhere[own] = outputs
    elif closing is not None and len(shape) == 2:
        kept_everywhere[other] = closing
    return kept_everywhere


def loss_of(module):
    logits = module(input_ids=IDS, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()), logits


def block(tensor, places):
    mesh = torch.meshgrid(*(torch.tensor(dim) for dim in places), indexing="ij")
    return tensor[mesh]


def greedy(module, ids, num_tokens):
    """Greedy decoding without any cache: the whole text goes through the model for each token."""
    for _ in range(num_tokens):
        logits = module(input_ids=ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    return ids


@each
def test_a_part_of_everything_is_the_whole_bit_by_bit(name):
    module = FAMILIES[name].make()
    units = axes_of(module).units
    part = base_of(module).part({axis: torch.arange(size) for axis, size in units.items()}).module
    whole = dict(module.named_parameters())
    assert dict(part.named_parameters()).keys() == whole.keys()
    assert all(torch.equal(p, whole[n]) for n, p in part.named_parameters())
    assert torch.equal(part(IDS).logits, module(IDS).logits)


@each
@settings(max_examples=10)
@given(data=st.data())
def test_a_part_is_the_masked_whole_in_what_it_gives_and_in_every_gradient(name, data):
    family = FAMILIES[name]
    module = family.make()
    kept = data.draw(kept_of(family))
    part, whole = part_of(module, kept), masked_whole(family, module, kept)
    (part_loss, given), (whole_loss, wanted) = loss_of(part), loss_of(whole)
    assert (given - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    part_loss.backward()
    whole_loss.backward()
    held = dict(part.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in held.values())
    for weight, parameter in whole.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        places = places_by_hand(family, kept, weight, parameter.shape)
        assert (weight in held) == (places is not None)
        if places is not None:
            inside = block(gradient, places)
            assert inside.shape == held[weight].shape
            assert (inside - held[weight].grad).abs().max() <= 1e-4 * max(1.0, largest)
            gradient[torch.meshgrid(*(torch.tensor(dim) for dim in places), indexing="ij")] = 0
        # Elsewhere the masked whole has no gradient at all.
        assert not gradient.any(), weight
    # The check that the platform makes by itself comes to the same.
    assert max(selfcheck.differences(module, kept, IDS).values()) <= 1e-4


@each
def test_a_step_of_the_part_pasted_back_is_a_step_of_the_masked_whole(name):
    family = FAMILIES[name]
    module, kept = family.make(), unequal(family)
    part, whole = part_of(module, kept), masked_whole(family, module, kept)
    plan = tree.plan_of(axes_of(module), kept)
    before = {weight: p.detach().clone() for weight, p in part.named_parameters()}
    state = {weight: p.clone() for weight, p in module.named_parameters()}
    for model in (part, whole):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
        loss_of(model)[0].backward()
        optimiser.step()
    change = {weight: p.detach() - before[weight] for weight, p in part.named_parameters()}
    tree.paste(plan, change, state)
    assert tree.largest(change) > 1e-3
    for weight, parameter in whole.named_parameters():
        assert (state[weight] - parameter).abs().max() <= 1e-6, weight


@each
def test_what_is_cut_goes_back_to_where_it_was_and_nothing_else_is_touched(name):
    family = FAMILIES[name]
    module, kept = family.make(), unequal(family)
    weights = base_of(module).weights
    plan = tree.plan_of(axes_of(module), kept)
    part = tree.cut(weights, plan)
    into = {}
    for weight, tensor in weights.items():
        # Outside of the part there are numbers that would spoil everything they touch.
        into[weight] = torch.full_like(tensor, float("nan"))
        places = places_by_hand(family, kept, weight, tensor.shape)
        if places is not None:
            into[weight][torch.meshgrid(*(torch.tensor(dim) for dim in places), indexing="ij")] = 0
    canary = {weight: tensor.isnan() for weight, tensor in into.items()}
    tree.paste(plan, part, into)
    for weight, tensor in weights.items():
        assert torch.equal(into[weight].isnan(), canary[weight])
        assert torch.equal(into[weight][~canary[weight]], tensor[~canary[weight]])
    assert any(nans.any() for nans in canary.values())


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_tied_head_stays_tied_and_is_one_tensor_with_one_change(make):
    module = make()
    kept = {"kv.0": torch.tensor([1]), "residual": torch.tensor([0, 1, 4, 5])}
    base = base_of(module).part(kept)
    replica = base.replica(private=True).requires_grad_(True)
    embedding, head = replica.get_input_embeddings(), replica.get_output_embeddings()
    assert head.weight is embedding.weight
    assert head.weight.shape == (29, 4)
    assert "lm_head.weight" not in base.weights
    assert "lm_head.weight" not in dict(replica.named_parameters())
    assert sum(tensor.shape == (29, 4) for tensor in base.weights.values()) == 1
    states = replica.get_decoder()(IDS, use_cache=False).last_hidden_state
    states.retain_grad()
    nn.functional.cross_entropy((states @ head.weight.T).flatten(0, 1), IDS.flatten()).backward()
    # One gradient, to which looking up and predicting both contribute.
    logits = (states @ head.weight.T).detach().flatten(0, 1)
    as_head = (logits.softmax(1) - nn.functional.one_hot(IDS.flatten(), 29)).T @ states.detach().flatten(0, 1)
    as_head /= IDS.numel()
    as_embedding = embedding.weight.grad - as_head
    seen = torch.zeros(29, dtype=torch.bool)
    seen[IDS.flatten()] = True
    assert as_embedding[~seen].abs().max() < 1e-6
    assert as_embedding[seen].abs().max() > 1e-3


@each
def test_widths_may_differ_from_layer_to_layer_and_decoding_with_the_cache_goes_on(name):
    family = FAMILIES[name]
    part = base_of(family.make()).part(unequal(family)).module
    widths = [
        tuple(part.get_parameter(f"{family.layers}{n}.{c}.weight").shape) for n in (0, 1, 3) for c in closings(name)
    ]
    assert len(set(widths)) > 3
    ids = IDS[:1, :3]
    told = part.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(told, greedy(part, ids, 8))
    assert told.shape == (1, 11)


def closings(name):
    return FAMILIES[name].attention, FAMILIES[name].feed_forward


@each
def test_layers_keep_their_names_and_are_counted_anew_for_the_cache(name):
    family = FAMILIES[name]
    module = family.make()
    part = base_of(module).part({"layer": torch.tensor([0, 3])}).module
    kept = {
        n for n in dict(module.named_parameters()) if not n.startswith((f"{family.layers}1.", f"{family.layers}2."))
    }
    assert dict(part.named_parameters()).keys() == kept
    counted = [child.layer_idx for child in part.modules() if "layer_idx" in vars(child)]
    assert sorted(set(counted)) == [0, 1]
    assert part.config.num_hidden_layers == 2
    # The whole is as it was.
    assert module.config.num_hidden_layers == LAYERS
    assert sorted({child.layer_idx for child in module.modules() if "layer_idx" in vars(child)}) == [0, 1, 2, 3]


def test_each_layer_keeps_its_own_kind_of_attention():
    module = FAMILIES["qwen2"].make()
    part = base_of(module).part({"layer": torch.tensor([1, 2, 3])}).module
    assert part.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert module.config.layer_types == ["full_attention", "sliding_attention"] * 2
    # With the last two kept alone, a token far back is seen through one of them only.
    alone = base_of(module).part({"layer": torch.tensor([1])}).module
    changed = IDS.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 29
    assert torch.equal(alone(IDS).logits[:, 4:], alone(changed).logits[:, 4:])
    alone = base_of(module).part({"layer": torch.tensor([2])}).module
    assert not torch.equal(alone(IDS).logits[:, 4:], alone(changed).logits[:, 4:])


@each
def test_modules_say_the_sizes_that_they_have(name):
    family = FAMILIES[name]
    part = base_of(family.make()).part({**unequal(family), "residual": torch.arange(0, 12, 2)}).module
    for child in part.modules():
        match type(child).__name__:
            case "Linear":
                assert (child.out_features, child.in_features) == child.weight.shape
            case "Conv1D":
                assert (child.nx, child.nf) == child.weight.shape
            case "LayerNorm":
                assert child.normalized_shape == child.weight.shape
            case "Embedding":
                assert (child.num_embeddings, child.embedding_dim) == child.weight.shape
    assert part(IDS).logits.isfinite().all()
    assert axes_of(part).units["residual"] == 6


def test_a_part_shares_what_is_not_cut_and_holds_nothing_of_what_is_dropped():
    module = llama()
    base = base_of(module)
    kept = {"layer": torch.tensor([0, 1, 3]), "ffn.0": torch.tensor([1, 4, 5]), "kv.1": torch.tensor([0, 2])}
    part = base.part(kept)
    whole = base.weights
    cut = {
        *(f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
        *(f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkvo"),
    }
    for name, tensor in part.weights.items():
        assert (tensor.data_ptr() == whole[name].data_ptr()) == (name not in cut)
        if name in cut:
            # Rows beside each other, and no more memory than the numbers need.
            assert tensor.is_contiguous()
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    tables = {name: buffer.data_ptr() for name, buffer in module.named_buffers()}
    assert {name: buffer.data_ptr() for name, buffer in part.module.named_buffers()} == tables
    gone = [weakref.ref(p) for n, p in module.named_parameters() if n in cut or n.startswith("model.layers.2.")]
    assert len(gone) == 7 + 9
    del module, base, whole, tensor
    gc.collect()
    assert not any(reference() is not None for reference in gone)
    assert part.module(IDS).logits.isfinite().all()


def test_the_whole_stays_as_it_is():
    module = gpt2()
    before = {name: (p, p.clone()) for name, p in module.named_parameters()}
    logits = module(IDS).logits
    base_of(module).part(unequal(FAMILIES["gpt2"]))
    assert all(p is before[name][0] and torch.equal(p, before[name][1]) for name, p in module.named_parameters())
    assert torch.equal(module(IDS).logits, logits)
    assert base_of(module).part({}).module is module


def test_a_part_is_frozen_and_does_not_drop_out():
    part = base_of(llama(attention_dropout=0.5).train()).part({"ffn.0": torch.tensor([0])}).module
    assert not part.training
    assert not any(p.requires_grad for p in part.parameters())


# --- what closing projections read, made larger ------------------------------------------------------------------


@each
@pytest.mark.parametrize("adapted", [False, True])
def test_rescaling_multiplies_what_closing_projections_read_by_units_over_kept(name, adapted):
    family = FAMILIES[name]
    module, kept = family.make(), unequal(family)
    base = base_of(module)
    part = base.part(kept)
    larger = base.part(kept)
    weights = dict(larger.module.named_parameters())
    factors = {}
    for n in (0, 1, 3):
        factors[f"{family.layers}{n}.{family.feed_forward}"] = FFN / len(kept[f"ffn.{n}"])
        factors[f"{family.layers}{n}.{family.attention}"] = family.groups / len(kept[f"kv.{n}"])
    assert len(set(factors.values())) > 3
    for path, factor in factors.items():
        # The weight alone: GPT-2 adds its bias after the product.
        weights[f"{path}.weight"].data = weights[f"{path}.weight"] * factor
    lora = Lora(rank=2)
    names = [f"base_model.model.{path}.lora_A.weight" for path in factors]
    learners = []
    for one in (part, larger):
        replica = one.replica(private=False)
        replica = lora.attach(replica, names) if adapted else replica
        learner = one.learner(replica, lora.parameters(replica))
        generator = torch.Generator().manual_seed(0)
        learner.load({n: torch.randn(p.shape, generator=generator) for n, p in learner.parameters().items()})
        learners.append(learner)
    if adapted:
        # A factor A that reads a closing projection's input reads it scaled, as the frozen weight does.
        for name_, parameter in learners[1].parameters().items():
            if ".lora_A." in name_:
                parameter.data *= factors[name_.removeprefix("base_model.model.").partition(".lora_")[0]]
    base.rescale(learners[0], base.axes, kept)
    given, wanted = (learner.module(IDS, use_cache=False).logits for learner in learners)
    assert (given - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    plain = part.replica(private=False)(IDS, use_cache=False).logits
    assert (given - plain).abs().max() > 1e-2


def test_rescaling_leaves_other_learners_of_the_part_alone():
    base = base_of(llama())
    kept = {"ffn.0": torch.tensor([0])}
    part = base.part(kept)
    first, second = (part.learner(part.replica(private=False), {}) for _ in range(2))
    before = second.module(IDS).logits
    base.rescale(first, base.axes, kept)
    assert torch.equal(second.module(IDS).logits, before)
    assert not torch.equal(first.module(IDS).logits, before)


# --- modules without weights -------------------------------------------------------------------------------------


@each
def test_a_skeleton_needs_only_weights_to_be_the_model(name):
    module = FAMILIES[name].make()
    bare = skeleton(lambda: type(module)(copy.deepcopy(module.config)))
    assert all(p.is_meta for p in bare.parameters())
    assert not any(buffer.is_meta for buffer in bare.buffers())
    full = shrink(bare, base_of(module).weights, {})
    assert torch.equal(full(IDS).logits, module(IDS).logits)


def test_a_table_that_cannot_be_made_again_is_refused():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("numbers", torch.ones(2))

    def make():
        module = mistral()
        module.model.table = Table()
        return module

    with pytest.raises(ModelError, match=r"model\.table of MistralForCausalLM has a table that no file holds"):
        skeleton(make)


def test_weights_of_these_models_are_all_of_some_effect():
    """Or else comparing models would show little."""
    for family in FAMILIES.values():
        module = random_weights(family.make()).requires_grad_(True)
        loss_of(module)[0].backward()
        assert all(p.grad.abs().max() > 1e-6 for n, p in module.named_parameters() if not n.endswith("k_proj.bias"))
