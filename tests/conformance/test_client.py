"""What every kind of client keeps, however it learns."""

import math

import pytest
import torch

from fedgen import seeds, tree
from fedgen.directions import replay
from fedgen.errors import ClientError
from fedgen.stages import Client
from tests.conformance.options import build, disturb, options


@pytest.fixture(params=options("client"))
def client(request: pytest.FixtureRequest) -> Client:
    return build("client", request.param)


def train(client, learner, encoded, progress=0.0, seed=0):
    return client.train(learner, encoded, progress, seeds.derive(seed, "train"))


def test_it_is_a_client(client):
    assert isinstance(client, Client)


def test_what_it_trained_is_of_the_same_axes_whatever_the_examples(client, encoded):
    found = client.trained_units(encoded)
    assert found.keys() == client.trained_units([]).keys()
    assert all(index.tolist() == sorted(set(index.tolist())) for index in found.values())


def test_it_learns(client, make_learner, encoded):
    learner = make_learner()
    before = sum(score.nll for score in learner.score(encoded))
    for round in range(3):
        metrics = train(client, learner, encoded, seed=round).metrics
        assert math.isfinite(metrics["loss"])
        assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    assert sum(score.nll for score in learner.score(encoded)) < before


def test_the_generator_alone_decides(client, make_learner, encoded):
    first, second, other = make_learner(), make_learner(), make_learner()
    said = train(client, first, encoded).metrics
    disturb()
    assert train(client, second, encoded).metrics == said
    train(client, other, encoded, seed=1)
    a, b, c = first.state(), second.state(), other.state()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_the_change_it_tells_is_the_change_it_made(client, make_learner, encoded):
    learner = make_learner()
    before = learner.state()
    trained = train(client, learner, encoded)
    after = learner.state()
    assert trained.change.keys() == before.keys()
    assert 0 < tree.largest(trained.change) < math.inf
    for name, change in trained.change.items():
        assert torch.equal(before[name] + change, after[name]) or torch.equal(after[name] - before[name], change)


def test_a_walk_that_it_tells_is_the_change_to_the_bit(client, make_learner, encoded):
    trained = train(client, make_learner(), encoded)
    shapes = {name: tuple(tensor.shape) for name, tensor in trained.change.items()}
    if trained.walk is not None:
        walked = replay(trained.walk, shapes)
        assert all(torch.equal(walked[name], tensor) for name, tensor in trained.change.items())


def test_it_goes_to_the_end_of_the_run(client, make_learner, encoded):
    learner = make_learner()
    metrics = train(client, learner, encoded, progress=1.0).metrics
    assert math.isfinite(metrics["loss"])


def test_one_example_is_enough(client, make_learner, encoded):
    learner = make_learner()
    before = learner.state()
    train(client, learner, encoded[:1])
    after = learner.state()
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_no_example_is_refused(client, make_learner):
    with pytest.raises(ClientError) as caught:
        train(client, make_learner(), [])
    assert caught.value.reason == "no_examples"


def test_numbers_that_are_none_are_refused(client, make_learner, encoded):
    learner = make_learner()
    learner.load({name: torch.full_like(tensor, float("nan")) for name, tensor in learner.state().items()})
    with pytest.raises(ClientError) as caught:
        train(client, learner, encoded)
    assert caught.value.reason == "non_finite_loss"


def test_nothing_stays_behind_for_the_next_client(client, base, make_learner, encoded):
    shared = {name: p.clone() for name, p in base.module.named_parameters()}
    learner = make_learner()
    train(client, learner, encoded)
    assert all(p.grad is None or not p.grad.any() for p in learner.module.parameters())
    assert all(torch.equal(p, shared[name]) for name, p in base.module.named_parameters())
