"""LoRA through PEFT: names, sharing, initial values, the formula of the paper, and factors of a part."""

from dataclasses import replace

import pytest
import torch

from fedgen import tree
from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.errors import ModelError
from fedgen.extraction.rolling import Rolling
from fedgen.extraction.static import Static
from fedgen.model.shared import TextBase
from fedgen.model.tiny import Tiny
from fedgen.types import Dim, Encoded, Part
from tests.conformance.grounds import make_ground
from tests.unit.model.families import FAMILIES, HEAD, IDS, gpt2, mask, unequal


@pytest.fixture(scope="module")
def base():
    return Tiny().load(0)


def attach(base, option):
    module = option.attach(base.replica(private=option.trains_base))
    return base.learner(module, option.parameters(module))


def test_names_are_those_of_pefts_files(base, tmp_path):
    from safetensors.torch import load_file

    learner = attach(base, Lora(rank=2))
    learner.module.save_pretrained(tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == learner.parameters().keys()


def test_only_the_factors_train_and_the_base_is_shared(base):
    first, second = attach(base, Lora(rank=2)), attach(base, Lora(rank=2))
    assert all(p.dtype == torch.float32 for p in first.parameters().values())
    trainable = [n for n, p in first.module.named_parameters() if p.requires_grad]
    assert trainable
    assert all(".lora_" in n for n in trainable)
    frozen = {p.data_ptr() for p in base.module.parameters()}
    for learner in (first, second):
        assert {p.data_ptr() for n, p in learner.module.named_parameters() if ".lora_" not in n} == frozen
    own = [{p.data_ptr() for p in learner.parameters().values()} for learner in (first, second)]
    assert not own[0] & own[1]


def test_output_is_w_x_plus_alpha_over_r_b_a_x(base):
    learner = attach(base, Lora(rank=2, alpha=6.0, targets=("q_proj",)))
    generator = torch.Generator().manual_seed(0)
    learner.load({name: torch.randn(p.shape, generator=generator) for name, p in learner.parameters().items()})
    layer = learner.module.get_base_model().model.layers[0].self_attn.q_proj
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(9))
    a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
    expected = x @ layer.base_layer.weight.T + 6.0 / 2 * (x @ a.T @ b.T)
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_initial_b_is_zero_and_a_is_uniform_and_fixed_by_the_generator(base):
    option = Lora(rank=4)
    learner = attach(base, option)
    states = [option.initial(learner.module, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])
        if ".lora_B." in name:
            assert not tensor.any()
        else:
            bound = tensor.shape[1] ** -0.5
            assert 0.8 * bound < tensor.abs().max() <= bound
            assert not torch.equal(tensor, states[2][name])


def test_only_the_top_layers_are_adapted(base):
    names = attach(base, Lora(top_layers=0.5)).parameters()
    assert names
    assert all(".layers.1." in name for name in names)


def test_a_layer_that_is_not_there_is_named(base):
    with pytest.raises(ModelError, match="no_such_proj"):
        attach(base, Lora(targets=("no_such_proj",)))


def test_the_rank_is_an_axis_of_every_factor(base):
    option = Lora(rank=4)
    state = attach(base, option).state()
    axes = option.axes(state, base.axes)
    assert axes.units == {**base.axes.units, "rank": 4}
    for name, dims in axes.dims.items():
        assert dims["lora_B" in name] == Dim("rank")
        assert state[name].shape["lora_B" in name] == 4


def test_factors_lie_on_the_axes_of_what_they_adapt(base):
    option = Lora(rank=2)
    axes = option.axes(attach(base, option).state(), base.axes)
    layer, rank, residual = "base_model.model.model.layers.1.", Dim("rank"), Dim("residual")
    # Two query heads of 16 on each key-value head.
    expected = {
        "self_attn.q_proj": (residual, Dim("kv.1", 32)),
        "self_attn.k_proj": (residual, Dim("kv.1", 16)),
        "self_attn.v_proj": (residual, Dim("kv.1", 16)),
        "self_attn.o_proj": (Dim("kv.1", 32), residual),
        "mlp.gate_proj": (residual, Dim("ffn.1")),
        "mlp.up_proj": (residual, Dim("ffn.1")),
        "mlp.down_proj": (Dim("ffn.1"), residual),
    }
    for name, (reads, writes) in expected.items():
        assert axes.dims[f"{layer}{name}.lora_A.weight"] == (rank, reads)
        assert axes.dims[f"{layer}{name}.lora_B.weight"] == (writes, rank)
    assert set(axes.members.values()) == {("layer", 0), ("layer", 1)}
    assert axes.members[f"{layer}mlp.up_proj.lora_A.weight"] == ("layer", 1)
    assert len(axes.dims) == len(axes.members) == 2 * 7 * 2


def test_factors_beside_weights_with_the_inputs_first_read_and_write_as_these_do():
    base, option = text_base(gpt2()), Lora(rank=2)
    axes = option.axes(attach(base, option).state(), base.axes)
    layer, rank, residual = "base_model.model.transformer.h.0.", Dim("rank"), Dim("residual")
    assert axes.dims[f"{layer}attn.c_attn.lora_A.weight"] == (rank, residual)
    assert axes.dims[f"{layer}attn.c_attn.lora_B.weight"] == (Dim("kv.0", HEAD, (0, 12, 24)), rank)
    assert axes.dims[f"{layer}attn.c_proj.lora_A.weight"] == (rank, Dim("kv.0", HEAD))
    assert axes.dims[f"{layer}attn.c_proj.lora_B.weight"] == (residual, rank)
    assert axes.dims[f"{layer}mlp.c_fc.lora_B.weight"] == (Dim("ffn.0"), rank)
    assert axes.dims[f"{layer}mlp.c_proj.lora_A.weight"] == (rank, Dim("ffn.0"))


# --- a part with its slices of the factors ------------------------------------------------------------------------


def text_base(module):
    return TextBase(module, None, "0" * 64, 64)


def loss_of(learner):
    logits = learner.module(input_ids=IDS, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()), logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", [Lora(rank=3), Lora(rank=3, top_layers=0.5), Lora(rank=2, targets=("CLOSING",))])
def test_a_part_with_slices_of_the_factors_is_the_masked_whole_with_all_of_them(family, option):
    """In what it gives and in every gradient of a factor; where the part has no factor the whole has no gradient."""
    known = FAMILIES[family]
    if option.targets == ("CLOSING",):
        option = replace(option, targets=(known.feed_forward.rpartition(".")[2],))
    # In fp64, or rounding would hide what is wrong by a millionth.
    base, kept = text_base(known.make().double()), unequal(known)
    module = option.attach(base.replica(private=False)).double()
    whole = base.learner(module, option.parameters(module))
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randn(t.shape, generator=generator).double() * 0.3 for n, t in whole.state().items()}
    whole.load(state)
    mask(known, whole.plain(), kept)
    plan = tree.plan_of(option.axes(state, base.axes), kept)
    part_base = base.part(kept)
    module = option.attach(part_base.replica(private=False), plan.keys()).double()
    part = part_base.learner(module, option.parameters(module))
    assert part.parameters().keys() == plan.keys()
    part.load(tree.cut(state, plan))
    (part_loss, given), (whole_loss, wanted) = loss_of(part), loss_of(whole)
    assert (given - wanted).abs().max() <= 1e-6
    part_loss.backward()
    whole_loss.backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in whole.parameters().items()}
    inside = tree.cut(gradients, plan)
    assert tree.largest(inside) > 1e-3
    own = {n: p.grad for n, p in part.parameters().items()}
    assert tree.largest(tree.subtract(own, inside)) <= 1e-6
    outside = tree.copy(gradients)
    tree.paste(plan, tree.scale(inside, -1.0), outside)
    assert tree.largest(outside) == 0.0


def test_a_part_may_have_fewer_ranks_as_well(base):
    """The rank is an axis like any other; what is scaled by alpha / rank is the rank of the whole."""
    option = Lora(rank=4, alpha=8.0)
    ground = make_ground(base, option, extraction=Static(axes=("rank", "ffn")))
    learner = ground.learner(ground.part("attic", 1, 0.5), 1, "attic")
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    assert learner.parameters()[f"{name}A.weight"].shape == (2, 64)
    assert learner.parameters()[f"{name}B.weight"].shape == (96, 2)
    a, b = torch.randn(2, 64), torch.randn(96, 2)
    learner.load({f"{name}A.weight": a, f"{name}B.weight": b})
    layer = learner.module.get_base_model().model.layers[0].mlp.up_proj
    x = torch.randn(3, 64)
    assert torch.allclose(layer(x), x @ layer.base_layer.weight.T + 8.0 / 4 * (x @ a.T @ b.T), atol=1e-4)


# --- one factor at a time -----------------------------------------------------------------------------------------


def test_alternating_trains_b_in_odd_rounds_and_a_in_even_ones(base):
    option = Lora(rank=2, alternate=True)
    ground = make_ground(base, option, extraction=Rolling())
    batch, state = [Encoded((1, 2, 3, 4), 2)], {name: t + 0.1 for name, t in initial_state(ground).items()}
    for round, trained in ((1, ".lora_B."), (2, ".lora_A."), (3, ".lora_B."), (4, ".lora_A.")):
        part = ground.part("attic", round, 0.5)
        learner = ground.learner(part, round, "attic")
        everything = tree.plan_of(ground.axes, part.kept)
        assert set(learner.parameters()) == {name for name in everything if trained in name}
        assert learner.state().keys() == ground.returned(part, round).keys()
        # Both travel to the client, so that it has what the others have learned.
        assert ground.sent(part).keys() == everything.keys()
        assert not ground.is_plain(Part(), round)
        learner.load(tree.cut(state, everything))
        learner.loss(batch).backward()
        with_gradient = {name for name, p in option.parameters(learner.module).items() if p.grad is not None}
        assert with_gradient == set(learner.parameters())


def initial_state(ground):
    [learner] = ground.experiment.learners(ground.base, 1)
    return ground.experiment.initial_state(learner)


def test_without_alternating_both_are_trained_in_every_round(base):
    ground = make_ground(base, Lora(rank=2))
    assert all(Lora().is_trained(name, round) for name in ground.axes.dims for round in (1, 2))
    assert not any(Lora().is_fixed(name) for name in ground.axes.dims)
    assert ground.is_plain(Part(), 1)


def test_full_trains_every_weight_of_a_private_copy(base):
    learner = attach(base, Full())
    frozen = {p.data_ptr() for p in base.module.parameters()}
    assert not frozen & {p.data_ptr() for p in learner.parameters().values()}
    learner.loss([Encoded((1, 2, 3, 4), 2)]).backward()
    assert all(p.grad is not None for p in learner.parameters().values())
    # Tied embeddings are one tensor.
    assert "lm_head.weight" not in learner.parameters()
    assert "model.embed_tokens.weight" in learner.parameters()


@pytest.mark.parametrize(
    "fields", [{"rank": 0}, {"alpha": 0.0}, {"top_layers": 0.0}, {"top_layers": 1.5}, {"targets": "q_proj"}]
)
def test_values_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Lora(**fields)
