"""What every adapter keeps, whatever it makes trainable."""

import pytest
import torch

from fedgen import seeds
from fedgen.stages import Adapter
from tests.conformance.options import build, disturb, options


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
    initial = adapter.initial(learner.module, seeds.derive(0, "initial"))
    assert {name: (t.shape, t.dtype) for name, t in initial.items()} == {
        name: (p.shape, p.dtype) for name, p in learner.parameters().items()
    }


def test_the_generator_alone_decides_how_it_begins(adapter, make_learner):
    module = make_learner(adapter).module
    first = adapter.initial(module, seeds.derive(0, "initial"))
    disturb()
    second = adapter.initial(make_learner(adapter).module, seeds.derive(0, "initial"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_begins_as_the_model_itself(adapter, base, make_learner, encoded):
    plain = base.learner(base.replica(private=False), {})
    begun = make_learner(adapter)
    for a, b in zip(begun.score(encoded), plain.score(encoded), strict=True):
        assert a.nll == pytest.approx(b.nll, rel=1e-4)
        assert a.exact == b.exact


def test_every_dimension_has_an_axis_or_is_never_cut(adapter, make_learner):
    learner = make_learner(adapter)
    state = learner.state()
    axes = adapter.axes(state)
    assert axes.dims.keys() == state.keys()
    for name, tensor in state.items():
        assert len(axes.dims[name]) == tensor.dim()
        for axis, size in zip(axes.dims[name], tensor.shape, strict=True):
            assert axis is None or size % axes.units[axis] == 0, f"{name} {tuple(tensor.shape)}: {axis}"


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
