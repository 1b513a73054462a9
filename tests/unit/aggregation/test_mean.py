"""FedAvg and FedAvgM against hand-computed numbers."""

import dataclasses
import itertools

import pytest
import torch

from fedgen import tree
from fedgen.aggregation.mean import Mean
from fedgen.errors import ClientError
from fedgen.types import Update

PLAN = {"w": (None,)}


def run(option, state, updates, server=None):
    total = option.zero(state)
    for values, weight in updates:
        option.add(total, Update(PLAN, {"w": torch.tensor(values)}, weight))
    return option.apply(state, option.init(state) if server is None else server, total)


def test_weights_are_numbers_of_examples():
    # 1 + (1*3 + 5*1) / 4 = 3, and 2 + (0*3 + 4*1) / 4 = 3
    state, server = run(Mean(), {"w": torch.tensor([1.0, 2.0])}, [([1.0, 0.0], 3), ([5.0, 4.0], 1)])
    assert state["w"].tolist() == [3.0, 3.0]
    assert server == {}


def test_uniform_weights_and_server_step():
    # 1 + 0.5 * (1 + 5) / 2 = 2.5
    state, _ = run(Mean(weighting="uniform", learning_rate=0.5), {"w": torch.tensor([1.0])}, [([1.0], 3), ([5.0], 1)])
    assert state["w"].tolist() == [2.5]


def test_momentum_accumulates_over_rounds():
    option = Mean(momentum=0.5)
    state, server = run(option, {"w": torch.tensor([0.0])}, [([1.0], 1)])
    state, server = run(option, state, [([1.0], 1)], server)
    # v1 = 1, v2 = 0.5 * 1 + 1 = 1.5; w = 1 + 1.5
    assert server["w"].tolist() == [1.5]
    assert state["w"].tolist() == [2.5]


def test_order_of_arrival_changes_no_bit():
    generator = torch.Generator().manual_seed(0)
    updates = [(torch.randn(50, generator=generator).tolist(), n) for n in (1, 7, 3, 1000)]
    option, start = Mean(momentum=0.9), {"w": torch.randn(50, generator=generator)}
    results = [run(option, start, order) for order in itertools.permutations(updates)]
    for state, server in results[1:]:
        assert torch.equal(state["w"], results[0][0]["w"])
        assert torch.equal(server["w"], results[0][1]["w"])
    exact = sum(torch.tensor(v, dtype=torch.float64) * n for v, n in updates) / 1011
    assert torch.allclose(results[0][0]["w"].double(), start["w"].double() + exact, atol=1e-6)
    assert torch.allclose(results[0][1]["w"].double(), exact, atol=1e-7)


def test_order_of_arrival_changes_no_bit_of_a_mean_of_parts():
    generator = torch.Generator().manual_seed(1)
    start = {"a": torch.randn(4, 3, generator=generator), "b": torch.randn(5, generator=generator)}
    rows = (None, torch.tensor([0, 2]), torch.tensor([3]), torch.tensor([1, 2, 3]))
    plans = [{"a": (kept, None), "b": (None,)} for kept in rows]
    updates = [
        Update(plan, tree.cut({name: torch.randn(t.shape, generator=generator) for name, t in start.items()}, plan), n)
        for plan, n in zip(plans, (1, 7, 3, 1000), strict=True)
    ]
    results = []
    for order in itertools.permutations(updates):
        total = Mean().zero(start)
        for update in order:
            Mean().add(total, update)
        results.append(Mean().apply(start, {}, total)[0])
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in start)


def test_no_update_changes_nothing():
    start = {"w": torch.tensor([1.0])}
    state, server = run(Mean(momentum=0.9), start, [])
    assert state is start
    assert server["w"].tolist() == [0.0]


def test_a_change_that_could_overflow_is_refused_and_leaves_the_total_alone():
    option = Mean()
    total = option.zero({"w": torch.zeros(1)})
    option.add(total, Update(PLAN, {"w": torch.tensor([1.0])}, 1))
    with pytest.raises(ClientError) as caught:
        option.add(total, Update(PLAN, {"w": torch.tensor([2.0**20])}, 2**7))
    assert caught.value.reason == "too_large"
    state, _ = option.apply({"w": torch.zeros(1)}, {}, total)
    assert state["w"].tolist() == [1.0]


@pytest.mark.parametrize("fields", [{"learning_rate": 0.0}, {"momentum": 1.0}, {"momentum": -0.1}])
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match="must be"):
        Mean(**fields)


def discounted(values, num_examples, discount):
    return Update(PLAN, {"w": torch.tensor(values)}, num_examples, staleness=1, discount=discount)


def test_a_discount_takes_from_the_weight_and_not_from_the_change():
    # (1*6*0.5 + 5*1) / (6*0.5 + 1) = 2; alone, a discounted change counts in full
    option, start = Mean(), {"w": torch.tensor([0.0])}
    total = option.zero(start)
    option.add(total, discounted([1.0], 6, 0.5))
    option.add(total, Update(PLAN, {"w": torch.tensor([5.0])}, 1))
    assert option.apply(start, {}, total)[0]["w"].tolist() == [2.0]
    total = Mean(weighting="uniform").zero(start)
    Mean(weighting="uniform").add(total, discounted([3.0], 6, 0.25))
    assert option.apply(start, {}, total)[0]["w"].tolist() == [3.0]


def test_with_discounts_no_order_changes_a_bit():
    generator = torch.Generator().manual_seed(2)
    start = {"w": torch.randn(50, generator=generator)}
    updates = [
        discounted(torch.randn(50, generator=generator).tolist(), n, round(2**20 * (1 + s) ** -0.5) / 2**20)
        for s, n in enumerate((1, 7, 3, 1000, 2**31))
    ]
    results = []
    for order in itertools.permutations(updates):
        total = Mean().zero(start)
        for update in order:
            Mean().add(total, dataclasses.replace(update, tensors=tree.scale(update.tensors, 2.0**-9)))
        results.append(Mean().apply(start, {}, total)[0]["w"])
    assert all(torch.equal(results[0], other) for other in results[1:])
    weights = [update.num_examples * update.discount for update in updates]
    mean = sum(u.tensors["w"].double() * w for u, w in zip(updates, weights, strict=True)) / sum(weights) * 2.0**-9
    assert torch.allclose(results[0].double(), start["w"].double() + mean, atol=1e-6)
