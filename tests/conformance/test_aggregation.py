"""What every aggregation keeps, whatever it makes of the updates."""

import itertools
import math
from collections.abc import Iterable

import pytest
import torch

from fedgen import tree
from fedgen.errors import ClientError
from fedgen.stages import Aggregation
from fedgen.types import Plan, State, Update
from tests.conformance.options import build, disturb, options

A, B = "x.lora_A.weight", "x.lora_B.weight"
WHOLE: Plan = {"a": (None, None), "b": (None,), A: (None, None), B: (None, None)}
PART: Plan = {"a": (torch.tensor([2, 0]), None), "b": (torch.tensor([1]),)}


@pytest.fixture(params=options("aggregation"))
def aggregation(request: pytest.FixtureRequest) -> Aggregation:
    return build("aggregation", request.param)


def state(seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (4, 3), "b": (5,), A: (2, 6), B: (5, 2)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def updates(plan: Plan = WHOLE) -> list[Update]:
    weights = (1, 7, 3, 1000)
    return [Update(plan, tree.cut(state(10 + number), plan), weight) for number, weight in enumerate(weights)]


def fold(aggregation: Aggregation, received: Iterable[Update]) -> tuple[State, State]:
    before = state()
    total = aggregation.zero(before)
    for update in received:
        aggregation.add(total, update)
    return aggregation.apply(before, aggregation.init(before), total)


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(a: State, b: State, tolerance: float = 1e-5) -> bool:
    """Whether two states say the same, to a tolerance: of a pair of factors only the product says anything."""
    a, b = products(a), products(b)
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], tolerance, tolerance) for name in a)


def products(state: State) -> State:
    if A not in state:
        return state
    return {name: t for name, t in state.items() if name not in (A, B)} | {"x": state[B] @ state[A]}


def test_it_is_an_aggregation(aggregation):
    assert isinstance(aggregation, Aggregation)


def test_the_next_state_has_the_names_shapes_and_types_of_the_last(aggregation):
    after, server = fold(aggregation, updates())
    assert [(n, t.shape, t.dtype) for n, t in after.items()] == [(n, t.shape, t.dtype) for n, t in state().items()]
    assert math.isfinite(tree.largest(after))
    assert math.isfinite(tree.largest(server))
    assert not same(after, state())


def test_the_order_of_the_updates_changes_nothing_that_matters(aggregation):
    """The loop folds them in one order; sums of fp32 in another differ in their last bits."""
    results = [fold(aggregation, order) for order in itertools.permutations(updates())]
    for after, server in results[1:]:
        assert close(after, results[0][0], 1e-6)
        assert close(server, results[0][1], 1e-6)


def test_one_order_gives_the_same_bits_every_time(aggregation):
    disturb()
    results = [fold(aggregation, updates()) for _ in range(2)]
    assert same(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])


def test_equal_updates_count_as_one(aggregation):
    update = updates()[0]
    assert close(fold(aggregation, [update] * 5)[0], fold(aggregation, [update])[0])


def test_only_the_proportions_of_the_weights_matter(aggregation):
    scaled = [Update(update.plan, update.tensors, 6 * update.num_examples) for update in updates()]
    assert close(fold(aggregation, scaled)[0], fold(aggregation, updates())[0])


def test_what_nobody_was_sent_stays_as_it_is(aggregation):
    after, _ = fold(aggregation, updates(PART))
    untouched = {"a": [1, 3], "b": [0, 2, 3, 4], A: [0, 1], B: [0, 1, 2, 3, 4]}
    for name, rows in untouched.items():
        assert torch.equal(after[name][rows], state()[name][rows])
    assert not torch.equal(after["a"][[0, 2]], state()["a"][[0, 2]])


def test_without_updates_nothing_changes(aggregation):
    before = state()
    after, server = aggregation.apply(before, aggregation.init(before), aggregation.zero(before))
    assert same(after, before)
    assert same(server, aggregation.init(before))


def test_what_goes_in_is_left_alone(aggregation):
    before, received = state(), updates()
    server = aggregation.init(before)
    kept = tree.copy(server)
    total = aggregation.zero(before)
    for update in received:
        aggregation.add(total, update)
    aggregation.apply(before, server, total)
    assert same(before, state())
    assert same(server, kept)
    assert all(same(update.tensors, fresh.tensors) for update, fresh in zip(received, updates(), strict=True))


def test_a_refused_update_leaves_no_trace(aggregation):
    honest = updates()
    huge = Update(WHOLE, tree.scale(state(3), 1e30), 10**9)
    before = state()
    total = aggregation.zero(before)
    aggregation.add(total, honest[0])
    with pytest.raises(ClientError):
        aggregation.add(total, huge)
    for update in honest[1:]:
        aggregation.add(total, update)
    after, _ = aggregation.apply(before, aggregation.init(before), total)
    assert same(after, fold(aggregation, honest)[0])
