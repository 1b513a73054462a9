"""A window trains what a gradient of the whole model would train at its positions, and begins as the whole."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedgen import tree
from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.errors import ModelError
from fedgen.model.shared import TextBase
from fedgen.model.window import Rows, Window
from fedgen.types import Encoded
from tests.unit.model.families import FAMILIES, IDS, gpt2, llama, unequal

BATCH = [Encoded((7, 3, 9, 27, 5), 2), Encoded((7, 3, 11, 4), 3), Encoded((1, 2, 3, 4, 5, 6, 7), 1)]
TOKENS = torch.tensor([3, 4, 5, 7, 8, 28])
"""Some of them in the batch, and some that are not."""
OUTPUTS, INPUTS = torch.tensor([0, 2]), torch.tensor([1, 3, 4])


def base_of(module):
    return TextBase(module, None, "0" * 64, 64)


def learners(module, adapter, kept):
    """A learner over the whole and one with a window, in the same state; and the plan of the window."""
    base = base_of(module)
    found = []
    for windowed in (False, True):
        replica = adapter.attach(base.replica(private=adapter.trains_base))
        parameters = adapter.parameters(replica)
        state = {name: p.data for name, p in parameters.items()}
        plan = tree.plan_of(adapter.axes(state, base.axes), kept)
        learner = base.learner(replica, parameters, plan if windowed else None)
        generator = torch.Generator().manual_seed(0)
        if not adapter.trains_base:
            learner.load({n: torch.randn(t.shape, generator=generator) * 0.3 for n, t in state.items()})
        found.append(learner)
    return *found, plan


CASES = [
    pytest.param(family, adapter, id=f"{family}-{type(adapter).__name__}")
    for family in FAMILIES
    for adapter in (Full(), Lora(rank=4))
]


def kept_for(family, adapter):
    others = {"vocab": TOKENS} if adapter.trains_base else {"rank": torch.tensor([0, 2, 3])}
    return unequal(FAMILIES[family]) | others


# --- one projection, by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(OUTPUTS, INPUTS), (OUTPUTS, None), (None, INPUTS), (None, None)])
@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_a_window_adds_its_change_at_the_crossing_of_outputs_and_inputs(kind, outputs, inputs, bias):
    generator = torch.Generator().manual_seed(0)
    projection = nn.Linear(5, 4, bias=bias) if kind == "Linear" else Conv1D(4, 5)
    if kind == "Conv1D" and not bias:
        projection.bias = None
        projection.forward = lambda x: x @ projection.weight
    for parameter in projection.parameters():
        parameter.data.normal_(generator=generator)
    x = torch.randn(2, 3, 5, generator=generator)
    before = projection(x).detach()
    window = Window(projection, outputs, inputs)
    assert torch.equal(window(x), before)
    assert window.weight is projection.weight
    rows = range(4) if outputs is None else outputs.tolist()
    columns = range(5) if inputs is None else inputs.tolist()
    assert window.change.shape == ((len(rows), len(columns)) if kind == "Linear" else (len(columns), len(rows)))
    # Of a closing projection, whose outputs lie on no axis, the bias is trained as it is.
    assert (window.bias_change is not None) == (bias and outputs is not None)
    own = {name for name, p in window.named_parameters() if p.requires_grad}
    assert own == {"change"} | ({"bias_change"} if window.bias_change is not None else set()) | (
        {"projection.bias"} if bias and outputs is None else set()
    )
    window.change.data.normal_(generator=generator)
    expected = before.clone()
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            entry = window.change[i, j] if kind == "Linear" else window.change[j, i]
            expected[..., row] += entry.detach() * x[..., column]
    if window.bias_change is not None:
        window.bias_change.data.normal_(generator=generator)
        for i, row in enumerate(rows):
            expected[..., row] += window.bias_change[i].detach()
    assert torch.allclose(window(x), expected, atol=1e-5)


# --- whole models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "adapter"), CASES)
def test_a_model_with_windows_begins_as_the_whole(family, adapter):
    whole, windowed, _ = learners(FAMILIES[family].make(), adapter, kept_for(family, adapter))
    assert torch.equal(windowed.module(IDS).logits, whole.module(IDS).logits)
    assert windowed.loss(BATCH) == whole.loss(BATCH)


@pytest.mark.parametrize(("family", "adapter"), CASES)
def test_gradients_are_those_of_the_whole_at_the_positions_of_the_plan(family, adapter):
    whole, windowed, plan = learners(FAMILIES[family].make(), adapter, kept_for(family, adapter))
    for learner in (whole, windowed):
        learner.loss(BATCH).backward()
    wanted = {name: p.grad for name, p in whole.parameters().items()}
    assert windowed.parameters().keys() == plan.keys()
    assert any(index is not None for kept in plan.values() for index in kept)
    largest = tree.largest(wanted)
    for name, gradient in tree.cut(wanted, plan).items():
        found = windowed.parameters()[name].grad
        assert found.shape == gradient.shape
        assert torch.allclose(found, gradient, rtol=1e-5, atol=1e-5 * largest), name
    # No gradient of the size of the whole is ever made.
    assert {id(p) for p in windowed.module.parameters() if p.grad is not None} == {
        id(p) for p in windowed.parameters().values()
    }


@pytest.mark.parametrize(("family", "adapter"), CASES)
def test_after_a_step_the_model_is_the_whole_with_the_change_pasted_in(family, adapter):
    whole, windowed, plan = learners(FAMILIES[family].make(), adapter, kept_for(family, adapter))
    frozen = {name: tensor.clone() for name, tensor in windowed.tensors.items()}
    trained_whole = {name for name, kept in plan.items() if all(index is None for index in kept)}
    before = windowed.state()
    assert {name: list(t.shape) for name, t in before.items()} == {
        name: tree.extent(frozen[name], kept) for name, kept in plan.items()
    }
    windowed.loss(BATCH).backward()
    torch.optim.SGD(windowed.parameters().values(), lr=0.05).step()
    change = tree.subtract(windowed.state(), before)
    assert tree.largest(change) > 1e-3
    # Nothing but the windows, and what is in the plan as a whole, has changed.
    for name, tensor in windowed.tensors.items():
        assert torch.equal(tensor, frozen[name]) == (name not in trained_whole or not change[name].any()), name
    state = whole.state()
    tree.paste(plan, change, state)
    whole.load(state)
    given, wanted = windowed.module(IDS).logits, whole.module(IDS).logits
    assert (given - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert windowed.loss(BATCH).item() == pytest.approx(whole.loss(BATCH).item(), abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_of_a_softmax_over_some_tokens_the_rows_of_the_window_are_trained_as_well(family):
    whole, windowed, plan = learners(FAMILIES[family].make(), Full(), kept_for(family, Full()))
    among = torch.tensor([2, 3, 4, 5, 6, 7, 9, 11, 27])
    change = {name: torch.zeros_like(p) for name, p in windowed.parameters().items()}
    for name, parameter in windowed.parameters().items():
        if plan[name][0] is not None and torch.equal(plan[name][0], TOKENS):
            change[name] = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1
            parameter.data += change[name]
    state = whole.state()
    tree.paste(plan, change, state)
    whole.load(state)
    losses = [learner.loss(BATCH, among) for learner in (whole, windowed)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for loss in losses:
        loss.backward()
    wanted = tree.cut({name: p.grad for name, p in whole.parameters().items()}, plan)
    for name, gradient in wanted.items():
        assert torch.allclose(windowed.parameters()[name].grad, gradient, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("make", [llama, gpt2])
def test_of_a_tied_head_and_its_embedding_there_is_one_window(make):
    _, windowed, _ = learners(make(), Full(), {"vocab": TOKENS})
    plain = windowed.plain()
    rows, head = plain.get_input_embeddings(), plain.get_output_embeddings()
    assert isinstance(rows, Rows)
    assert isinstance(head, Window)
    assert head.change is rows.change
    assert head.weight is rows.weight
    assert rows.change.shape == (len(TOKENS), rows.weight.shape[1])


def test_the_token_that_fills_gaps_is_looked_up_and_not_learned_from():
    table = nn.Embedding(6, 2, padding_idx=3)
    rows = Rows(table, torch.tensor([1, 3]))
    rows.change.data = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    ids = torch.tensor([[0, 1, 3]])
    assert torch.equal(rows(ids), table(ids) + torch.tensor([[[0.0, 0.0], [10.0, 20.0], [0.0, 0.0]]]))
    rows(ids).sum().backward()
    assert rows.change.grad.tolist() == [[1, 1], [0, 0]]
    assert table.weight.grad is None


@pytest.mark.parametrize("adapter", [Full(), Lora(rank=4)])
def test_a_state_of_the_whole_is_loaded_beneath_the_windows(adapter):
    whole, windowed, _ = learners(gpt2(), adapter, unequal(FAMILIES["gpt2"]))
    state = {name: tensor * 1.25 for name, tensor in whole.state().items()}
    for learner in (whole, windowed):
        learner.load(state)
    assert torch.equal(windowed.module(IDS).logits, whole.module(IDS).logits)


def test_what_is_not_in_the_plan_is_frozen():
    base, adapter = base_of(llama()), Lora(rank=2)
    replica = adapter.attach(base.replica(private=False))
    parameters = adapter.parameters(replica)
    axes = adapter.axes({name: p.data for name, p in parameters.items()}, base.axes)
    plan = {
        name: kept
        for name, kept in tree.plan_of(axes, {"ffn.0": INPUTS, "layer": torch.tensor([0, 1])}).items()
        if ".lora_B." in name
    }
    learner = base.learner(replica, parameters, plan)
    assert learner.parameters().keys() == plan.keys()
    trained = {id(p) for p in learner.parameters().values()}
    assert {id(p) for p in replica.parameters() if p.requires_grad} == trained
    # All of them can still be loaded.
    assert learner.tensors.keys() == parameters.keys()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("model.embed_tokens.weight", "Embedding"), ("model.layers.0.input_layernorm.weight", "LlamaRMSNorm")],
)
def test_what_is_no_projection_is_refused(name, kind):
    base = base_of(llama())
    replica = Full().attach(base.replica(private=True))
    plan = tree.plan_of(base.axes, {"residual": torch.tensor([0, 1])})
    said = rf"{name.removesuffix('.weight')} is a {kind}, of which no window can be trained; with"
    with pytest.raises(
        ModelError, match=rf"{said} extraction_mode=window, extraction\.axes may hold ffn, kv and vocab"
    ):
        base.learner(replica, Full().parameters(replica), {name: plan[name]})
