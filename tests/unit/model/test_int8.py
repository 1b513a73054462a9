"""Models whose matrices are 8-bit integers: off by half a scale per entry, and by no more than rounding from there."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedgen import seeds, tree
from fedgen.adapter.frozen_a import FrozenA
from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.device import Holding, answer
from fedgen.errors import ModelError
from fedgen.extraction.ordered import Ordered
from fedgen.messages import Request
from fedgen.model.causal_lm import CausalLM
from fedgen.model.int8 import quantise
from fedgen.model.quantised import Quantised
from fedgen.model.tiny import Tiny
from fedgen.types import Encoded, Part
from tests.conformance.grounds import CLIENTS, make_ground
from tests.unit.model.families import FAMILIES, IDS, gpt2, llama, qwen2, unequal

BATCH = [Encoded((7, 3, 9, 27, 5), 2), Encoded((7, 3, 11, 4), 3)]


@pytest.fixture(autouse=True)
def plain_processor(monkeypatch):
    """One without instructions for bfloat16: models work in fp32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("models"), {"vocab_size": 260}
    modules = {
        "llama": llama(**made),
        "untied in pieces": llama(**made, tie_word_embeddings=False),
        "qwen2": qwen2(**made, sliding_window=64),
        "gpt2": gpt2(**made),
    }
    for name, module in modules.items():
        pieces = {"max_shard_size": "12KB"} if "pieces" in name else {}
        module.save_pretrained(root / name, **pieces)
        Tiny().load(0).tokenizer.save_pretrained(root / name)
    return {name: (root / name, module) for name, module in modules.items()}


def rounded(module):
    """A copy with fp32 weights that have been made integers by hand and back again."""
    plain = copy.deepcopy(module)
    done = set()
    for child in plain.modules():
        if isinstance(child, nn.Linear | nn.Embedding) or type(child).__name__ == "Conv1D":
            weight, outputs = child.weight.data, 0 if isinstance(child, nn.Linear | nn.Embedding) else 1
            if weight.data_ptr() not in done:
                scale = weight.abs().amax(1 - outputs, keepdim=True) / 127
                weight.copy_((weight / scale).round() * scale)
                done.add(weight.data_ptr())
    return plain


def learner_of(base, adapter=None):
    module = base.replica(private=False)
    if adapter is None:
        return base.learner(module, {})
    module = adapter.attach(module)
    learner = base.learner(module, adapter.parameters(module))
    state = adapter.initial(module, seeds.derive(0, "initial"))
    # Not noughts: both factors get a gradient.
    learner.load({name: tensor + 0.02 if ".lora_B." in name else tensor for name, tensor in state.items()})
    return learner


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 99), st.sampled_from([1e-6, 1.0, 1e4]))
def test_an_entry_is_off_by_half_a_scale_at_most(rows, columns, seed, size):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    made = quantise(weight, torch.float32)
    scales = weight.abs().max(1).values / 127
    assert torch.equal(made.rows.scales, scales)
    assert bool(((made.float() - weight).abs() <= scales[:, None] * 0.5001).all())
    assert made.rows.entries.abs().max() == 127


def test_a_row_of_noughts_stays_one():
    made = quantise(torch.tensor([[0.0, 0.0], [1.0, -2.0]]), torch.float32)
    assert made.float().tolist()[0] == [0.0, 0.0]
    assert made.rows.entries.tolist() == [[0, 0], [64, -127]]


KINDS = ("llama", "untied in pieces", "qwen2", "gpt2")


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_rounded_model(folders, kind):
    folder, module = folders[kind]
    base = CausalLM(source=str(folder), dtype="int8", attention="eager").load(0)
    names = {name for name, tensor in base.weights.items() if isinstance(tensor, Quantised)}
    assert names == {name for name, p in module.named_parameters() if p.dim() == 2}
    ours, theirs = base.module(IDS).logits, rounded(module)(IDS).logits
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())
    assert {t.dtype for t in base.weights.values()} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter", [Lora(rank=2), FrozenA(rank=2)])
def test_gradients_of_an_adapter_are_those_on_the_rounded_model(folders, kind, adapter):
    folder, module = folders[kind]
    base = CausalLM(source=str(folder), dtype="int8", attention="eager").load(0)
    learners = [learner_of(one, adapter) for one in (base, replace(base, module=rounded(module)))]
    losses = [learner.loss(BATCH) for learner in learners]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    gradients = []
    for learner, loss in zip(learners, losses, strict=True):
        loss.backward()
        gradients.append({name: p.grad for name, p in learner.parameters().items()})
    assert tree.largest(tree.subtract(*gradients)) <= 1e-5 * tree.largest(gradients[1])
    assert tree.largest(gradients[1]) > 0


def test_with_bfloat16_around_it_the_loss_is_that_of_the_rounded_model_but_for_rounding(folders, monkeypatch):
    folder, module = folders["llama"]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    base = CausalLM(source=str(folder), dtype="int8").load(0)
    assert {t.dtype for t in base.weights.values()} == {torch.bfloat16}
    learner = learner_of(base, Lora(rank=2))
    exact = learner_of(replace(base, module=rounded(module)), Lora(rank=2))
    losses = [one.loss(BATCH) for one in (learner, exact)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=2e-2)
    losses[0].backward()
    assert {p.grad.dtype for p in learner.parameters().values()} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_read_alone_is_the_part_of_the_whole_and_of_the_rounded_model(folders, kind):
    folder, module = folders[kind]
    option = CausalLM(source=str(folder), dtype="int8", attention="eager")
    kept = unequal(FAMILIES[kind if kind in FAMILIES else "llama"])
    base = option.load(0)
    alone, cut, plain = option.load(0, kept), base.part(kept), replace(base, module=rounded(module)).part(kept)
    assert alone.weights.keys() == cut.weights.keys() == plain.weights.keys()
    for name, tensor in plain.weights.items():
        assert torch.allclose(cut.weights[name].float(), tensor, rtol=1e-6, atol=0), name
        assert torch.equal(alone.weights[name].float(), cut.weights[name].float()), name
    assert alone.axes == cut.axes == plain.axes
    assert alone.fingerprint == base.fingerprint == CausalLM(source=str(folder), dtype="float32").load(0).fingerprint
    logits = [one.module(IDS).logits for one in (alone, cut, plain)]
    assert torch.equal(logits[0], logits[1])
    assert float((logits[1] - logits[2]).abs().max()) <= 1e-5 * float(logits[2].abs().max())
    scores, wanted = (learner_of(one).importance(BATCH) for one in (cut, plain))
    assert all(torch.allclose(scores[axis], wanted[axis], rtol=1e-3, atol=1e-6) for axis in wanted)
    assert learner_of(alone).generate("lamp", 5) == learner_of(plain).generate("lamp", 5)


def test_a_part_that_is_read_alone_keeps_no_memory_of_the_whole(folders):
    part = CausalLM(source=str(folders["llama"][0]), dtype="int8").load(0, {"ffn.0": torch.arange(3)})
    rows = part.weights["model.layers.0.mlp.down_proj.weight"].rows
    assert rows.entries.untyped_storage().nbytes() == rows.entries.nbytes == 3 * 36


# --- the tiny model -----------------------------------------------------------------------------------------------


def test_the_tiny_model_has_the_same_weights_in_every_type():
    plain, half, few = (Tiny(dtype=dtype).load(0) for dtype in ("float32", "bfloat16", "int8"))
    assert plain.fingerprint == half.fingerprint == few.fingerprint == Tiny().load(0).fingerprint
    for name, tensor in rounded(plain.module).named_parameters():
        assert torch.equal(half.weights[name], plain.weights[name].bfloat16())
        assert torch.equal(few.weights[name].float(), tensor)
    assert few.module.get_output_embeddings().weight is few.module.get_input_embeddings().weight


def test_replicas_share_the_integers_and_none_is_trained():
    base = Tiny(dtype="int8").load(0)
    first, second = base.replica(private=False), base.replica(private=False)
    assert all(a is b for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert {
        name for name, p in Lora().attach(first).named_parameters() if p.requires_grad and "lora" not in name
    } == set()
    with pytest.raises(ModelError, match=r"held in few bits.*adapter=lora, or model\.dtype=float32"):
        base.replica(private=True)
    with pytest.raises(ModelError, match="cannot be trained"):
        make_ground(base, Full())


@pytest.mark.parametrize("mode", ["cut", "window"])
@pytest.mark.parametrize("adapter", [Lora(rank=2), FrozenA(rank=2)])
def test_a_device_trains_its_part_and_says_what_it_holds(mode, adapter):
    base = Tiny(dtype="int8").load(0)
    ground = make_ground(base, adapter, extraction_mode=mode)
    [whole] = ground.experiment.learners(base, 1)
    kept = {"layer": torch.tensor([1]), "ffn.1": torch.tensor([0, 5, 6, 100]), "kv.1": torch.tensor([1])}
    part = Part(0.5, kept)
    state = ground.experiment.initial_state(whole)
    payload = ground.experiment.wire.encode(state, ground.sent(part))
    before = {name: tensor.float() for name, tensor in base.weights.items()}
    request = Request(1, CLIENTS[0], 0.0, part, payload, base.fingerprint)
    reply = answer(ground, request, whole, Holding(BATCH, ["", ""]))
    assert reply.error == ""
    change = ground.experiment.wire.decode(reply.payload)
    assert 0 < tree.largest(change) < float("inf")
    assert {name: list(t.shape) for name, t in change.items()} == {
        name: tree.extent(state[name], index) for name, index in ground.returned(part, 1).items()
    }
    assert all(torch.equal(tensor.float(), before[name]) for name, tensor in base.weights.items())
    # What is frozen, and in fp32 the factors, and the window into them that is trained.
    num_frozen = sum(t.nbytes for t in (base if mode == "window" else base.part(kept)).weights.values())
    plan = tree.plan_of(ground.axes, {} if mode == "window" else kept)
    tensors = {**state, **ground.fixed}
    num_factors = 4 * sum(math.prod(tree.extent(tensors[name], index)) for name, index in plan.items())
    opened = [t for name, t in change.items() if t.shape != state[name].shape] if mode == "window" else []
    assert reply.metrics["held_bytes"] == num_frozen + num_factors + sum(t.nbytes for t in opened)


def test_bytes_of_a_part_are_those_of_its_integers_and_scales():
    base = Tiny(dtype="int8").load(0)
    ground = make_ground(base, Lora(rank=2))
    part = Part(0.5, {"ffn.0": torch.arange(10), "kv.1": torch.tensor([0])})
    held = sum(t.nbytes for t in base.part(part.kept).weights.values())
    # A share of a column has a share of the scales.
    assert held - 4 * 3 * 64 <= ground.base_bytes(part, None) <= held


def test_narrower_models_of_it_are_views_of_its_integers():
    base = Tiny(dtype="int8").load(0)
    ground = make_ground(base, Lora(rank=2), extraction=Ordered())
    learner = ground.learner(Part(1.0), 1, CLIENTS[0])
    plain = make_ground(replace(base, module=rounded(Tiny().load(0).module)), Lora(rank=2), extraction=Ordered())
    other = plain.learner(Part(1.0), 1, CLIENTS[0])
    [whole] = ground.experiment.learners(base, 1)
    state = ground.experiment.initial_state(whole)
    for one in (learner, other):
        one.load(state)
    for _ in range(4):
        losses = [one.loss(BATCH) for one in (learner, other)]
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
