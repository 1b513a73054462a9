"""What every adapter keeps, whatever it makes trainable."""

import pytest
import torch

from fedgen import seeds, tree
from fedgen.stages import Adapter
from fedgen.types import Dim
from tests.conformance.options import build, disturb, options

PARTS = [
    {"ffn.0": torch.tensor([1, 2, 7]), "ffn.1": torch.tensor([0]), "kv.0": torch.tensor([1])},
    {"layer": torch.tensor([1]), "kv.1": torch.tensor([0])},
    {"residual": torch.arange(0, 32, 2)},
]


def initial(adapter, learner):
    return adapter.initial(learner.module, seeds.derive(0, "initial"))


@pytest.fixture(params=options("adapter"))
def adapter(request: pytest.FixtureRequest) -> Adapter:
    return build("adapter", request.param)


def test_it_is_an_adapter(adapter):
    assert isinstance(adapter, Adapter)


def test_its_parameters_and_nothing_else_can_be_trained(adapter, make_learner):
    learner = make_learner(adapter)
    trainable = {id(parameter) for parameter in learner.parameters().values()}
    assert trainable
    assert {id(p) for p in learner.module.parameters() if p.requires_grad} == trainable


def test_the_initial_state_fits_the_parameters(adapter, make_learner):
    learner = make_learner(adapter)
    assert {name: (t.shape, t.dtype) for name, t in initial(adapter, learner).items()} == {
        name: (p.shape, p.dtype) for name, p in adapter.parameters(learner.module).items()
    }


def test_what_is_fixed_is_never_trained_and_all_else_is_in_some_round(adapter, make_learner):
    learner = make_learner(adapter)
    names = set(adapter.parameters(learner.module))
    fixed = {name for name in names if adapter.is_fixed(name)}
    trained = {name for name in names if adapter.is_trained(name, 1) or adapter.is_trained(name, 2)}
    assert trained == names - fixed
    assert all(
        adapter.is_trained(name, round + 2) == adapter.is_trained(name, round) for name in names for round in (1, 2)
    )
    assert learner.parameters().keys() == trained


def test_the_generator_alone_decides_how_it_begins(adapter, make_learner):
    first = initial(adapter, make_learner(adapter))
    disturb()
    second = initial(adapter, make_learner(adapter))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_begins_as_the_model_itself(adapter, base, make_learner, encoded):
    plain = base.learner(base.replica(private=False), {})
    begun = make_learner(adapter)
    for a, b in zip(begun.score(encoded), plain.score(encoded), strict=True):
        assert a.nll == pytest.approx(b.nll, rel=1e-4)
        assert a.exact == b.exact


def test_every_dimension_has_an_axis_or_is_never_cut(adapter, base, make_learner):
    state = initial(adapter, make_learner(adapter))
    axes = adapter.axes(state, base.axes)
    assert axes.dims.keys() == state.keys()
    for name, tensor in state.items():
        assert len(axes.dims[name]) == tensor.dim()
        for dim, size in zip(axes.dims[name], tensor.shape, strict=True):
            if dim is not None:
                assert isinstance(dim, Dim)
                assert size == axes.units[dim.axis] * dim.span * len(dim.starts), f"{name} {tuple(tensor.shape)}: {dim}"
    # What the model's own axes are called and how long they are is not for the adapter to change.
    assert base.axes.units.items() <= axes.units.items()
    for name, (axis, unit) in axes.members.items():
        assert axis == "layer"
        assert f".layers.{unit}." in name


@pytest.mark.parametrize("kept", PARTS)
def test_on_a_part_it_makes_the_tensors_that_the_part_has_and_cuts_them_as_the_part_is_cut(
    adapter, base, make_learner, kept
):
    state = initial(adapter, make_learner(adapter))
    plan = tree.plan_of(adapter.axes(state, base.axes), kept)
    module = adapter.attach(base.part(kept).replica(private=adapter.trains_base), plan.keys())
    parameters = adapter.parameters(module)
    assert parameters.keys() == plan.keys()
    assert {name: list(p.shape) for name, p in parameters.items()} == {
        name: tree.extent(state[name], index) for name, index in plan.items()
    }
    # Of the part the adapter says what it says of the whole.
    cut = tree.cut(state, plan)
    assert adapter.axes(cut, base.part(kept).axes).dims.keys() == cut.keys()


@pytest.mark.parametrize("kept", PARTS)
def test_a_part_begins_as_the_part_of_the_model_itself(adapter, base, make_learner, encoded, kept):
    state = initial(adapter, make_learner(adapter))
    plan = tree.plan_of(adapter.axes(state, base.axes), kept)
    part = base.part(kept)
    module = adapter.attach(part.replica(private=adapter.trains_base), plan.keys())
    learner = part.learner(module, adapter.parameters(module))
    learner.load(tree.cut(state, plan))
    plain = part.learner(part.replica(private=False), {})
    for a, b in zip(learner.score(encoded), plain.score(encoded), strict=True):
        assert a.nll == pytest.approx(b.nll, rel=1e-4)


def test_a_batch_reaches_what_can_be_trained_and_leaves_shared_weights_alone(adapter, base, make_learner, encoded):
    shared = {name: p.clone() for name, p in base.module.named_parameters()}
    learner = make_learner(adapter)
    optimiser = torch.optim.SGD(learner.parameters().values(), lr=0.05)
    before = learner.loss(encoded).item()
    for _ in range(2):
        # Twice: a factor that begins at zero lets no gradient through to its partner in the first step.
        optimiser.zero_grad()
        learner.loss(encoded).backward()
        gradients = {name: p.grad for name, p in learner.parameters().items()}
        optimiser.step()
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values())
    assert learner.loss(encoded).item() < before
    assert all(torch.equal(p, shared[name]) for name, p in base.module.named_parameters())


def test_two_learners_do_not_share_what_they_train(adapter, make_learner):
    first, second = make_learner(adapter), make_learner(adapter)
    before = second.state()
    first.load({name: tensor + 1 for name, tensor in first.state().items()})
    after = second.state()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_what_is_loaded_is_what_is_read_back(adapter, make_learner):
    learner = make_learner(adapter)
    wanted = {name: tensor * 0.5 + 0.25 for name, tensor in learner.state().items()}
    learner.load(wanted)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in learner.state().items())
