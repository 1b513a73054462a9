"""The mean over holders against hand-computed numbers, brute force, and the mean over all."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fedgen import tree
from fedgen.aggregation.held_sum import HeldSum
from fedgen.aggregation.masked_mean import MaskedMean
from fedgen.aggregation.mean import Mean
from fedgen.errors import ClientError
from fedgen.types import Update

ROWS, COLUMNS = 5, 7
WHOLE = {"w": (None, None), "v": (None,)}


def positions(size):
    """Some of so many positions, ascending, or None for all."""
    some = st.sets(st.integers(0, size - 1), min_size=1).map(lambda kept: torch.tensor(sorted(kept)))
    return st.none() | some


def plans():
    """Plans of a matrix whose two dimensions are cut, and of a vector that follows its columns."""
    return st.builds(lambda rows, columns: {"w": (rows, columns), "v": (columns,)}, positions(ROWS), positions(COLUMNS))


WEIGHTED_PLANS = st.lists(st.tuples(plans(), st.integers(1, 1000)), min_size=1, max_size=6)


def state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(ROWS, COLUMNS, generator=generator),
        "v": torch.randn(COLUMNS, generator=generator),
    }


def update(plan, weight=1, seed=1):
    return Update(plan, tree.cut(state(seed), plan), weight)


def fold(option, updates, before, server=None):
    total = option.zero(before)
    for one in updates:
        option.add(total, one)
    return option.apply(before, option.init(before) if server is None else server, total)


def same_bits(a, b):
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def counted(plans_and_weights, name):
    """Weight behind each entry, entry by entry."""
    mass = torch.zeros(state()[name].shape)
    for plan, weight in plans_and_weights:
        kept = [range(n) if i is None else i.tolist() for n, i in zip(mass.shape, plan[name], strict=True)]
        for position in itertools.product(*kept):
            mass[position] += weight
    return mass


def reachable(value):
    """Tensors that an object keeps alive."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in reachable(item)]
    return reachable(vars(value)) if isinstance(value, HeldSum) else []


class Made(TorchFunctionMode):
    """Notes the size of every tensor that a call of torch makes anew, whatever becomes of it."""

    def __init__(self):
        super().__init__()
        self.num_bytes = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.num_bytes.append(tensor.untyped_storage().nbytes())
        return result


# --- the rule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # Held by the first (3 examples), by both, by the second (1), by nobody.
        ({}, [1 + 2, 1 + (3 * 2 + 1 * 6) / 4, 1 + 6, 1.0]),
        ({"weighting": "uniform"}, [1 + 2, 1 + (2 + 6) / 2, 1 + 6, 1.0]),
        ({"coverage_power": 0.0}, [1 + 3 * 2 / 4, 1 + 12 / 4, 1 + 1 * 6 / 4, 1.0]),
        ({"coverage_power": 0.5}, [1 + 2 * (3 / 4) ** 0.5, 1 + 3, 1 + 6 * (1 / 4) ** 0.5, 1.0]),
        ({"learning_rate": 0.5}, [1 + 1, 1 + 1.5, 1 + 3, 1.0]),
    ],
)
def test_two_clients_of_different_parts(fields, expected):
    received = [
        Update({"v": (torch.tensor([0, 1]),)}, {"v": torch.full((2,), 2.0)}, 3),
        Update({"v": (torch.tensor([1, 2]),)}, {"v": torch.full((2,), 6.0)}, 1),
    ]
    after, server = fold(MaskedMean(**fields), received, {"v": torch.ones(4)})
    assert after["v"].tolist() == pytest.approx(expected, rel=1e-6)
    assert server == {}


@settings(max_examples=40)
@given(mix=WEIGHTED_PLANS)
def test_equal_changes_give_that_change_whatever_the_mix_of_parts(mix):
    before, change = state(), state(1)
    after, _ = fold(MaskedMean(), [update(plan, weight) for plan, weight in mix], before)
    for name in before:
        expected = torch.where(counted(mix, name) > 0, before[name] + change[name], before[name])
        assert torch.allclose(after[name], expected, rtol=0, atol=1e-6)


@settings(max_examples=40)
@given(mix=WEIGHTED_PLANS, power=st.sampled_from([0.0, 0.3, 1.0]))
def test_it_is_the_sum_over_holders_scaled_by_their_share(mix, power):
    received = [update(plan, weight, seed) for seed, (plan, weight) in enumerate(mix, 1)]
    before = state()
    after, _ = fold(MaskedMean(coverage_power=power), received, before)
    weight = sum(weight for _, weight in mix)
    for name in before:
        total = torch.zeros(before[name].shape, dtype=torch.float64)
        for one in received:
            full = torch.zeros(before[name].shape, dtype=torch.float64)
            tree.paste({name: one.plan[name]}, {name: one.tensors[name].double()}, {name: full})
            total += one.num_examples * full
        mass = counted(mix, name).double()
        mean = torch.where(mass > 0, total / mass * (mass / weight) ** (1 - power), 0)
        assert torch.allclose(after[name].double(), before[name].double() + mean, rtol=0, atol=2e-6)


@settings(max_examples=40)
@given(mix=WEIGHTED_PLANS)
def test_with_no_power_of_coverage_it_is_the_mean_over_all(mix):
    received = [update(plan, weight, seed) for seed, (plan, weight) in enumerate(mix, 1)]
    ours, _ = fold(MaskedMean(coverage_power=0.0), received, state())
    mean, _ = fold(Mean(), received, state())
    assert all(torch.allclose(ours[name], mean[name], rtol=0, atol=2e-6) for name in mean)


@pytest.mark.parametrize("fields", [{}, {"momentum": 0.9, "learning_rate": 0.7}, {"weighting": "uniform"}])
def test_with_whole_models_it_is_the_mean(fields):
    received = [update(WHOLE, weight, seed) for seed, weight in enumerate((1, 7, 3, 1000), 1)]
    ours, ours_server = fold(MaskedMean(**fields), received, state())
    mean, mean_server = fold(Mean(**fields), received, state())
    assert all(torch.allclose(ours[name], mean[name], rtol=0, atol=1e-6) for name in mean)
    assert all(torch.allclose(ours_server[name], mean_server[name], rtol=0, atol=1e-6) for name in mean_server)


def test_one_client_with_all_of_it_is_believed():
    after, _ = fold(MaskedMean(), [update(WHOLE, 3)], state())
    assert all(torch.allclose(after[name], state()[name] + state(1)[name], rtol=0, atol=1e-6) for name in after)


def test_the_order_of_clients_is_lost_in_the_last_bits():
    parts = [
        {"w": (torch.tensor([0, 2]), None), "v": (None,)},
        {"w": (None, torch.tensor([1, 3])), "v": (torch.tensor([1, 3]),)},
        WHOLE,
    ]
    received = [update(plan, weight, weight) for plan, weight in zip(parts, (5, 2, 11), strict=True)]
    results = [fold(MaskedMean(), order, state())[0] for order in itertools.permutations(received)]
    for result in results[1:]:
        assert all(torch.allclose(result[name], results[0][name], rtol=0, atol=1e-6) for name in result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cut", [(True, False), (False, True), (True, True)])
def test_positions_that_lie_scattered(cut, dtype):
    """Every second of 80: too many stretches to be added one after the other."""
    index = torch.arange(0, 80, 2)
    before, change = torch.zeros(80, 80, dtype=dtype), torch.randn(80, 80).to(dtype)
    kept = tuple(index if one else None for one in cut)
    some = Update({"w": kept}, tree.cut({"w": change}, {"w": kept}), 5)
    after, _ = fold(
        MaskedMean(coverage_power=0.0), [some, Update({"w": (None, None)}, {"w": before}, 3)], {"w": before}
    )
    held = torch.zeros(80, 80)
    held[torch.arange(0, 80, 1 + cut[0])[:, None], torch.arange(0, 80, 1 + cut[1])] = 5 / 8
    assert torch.allclose(after["w"].float(), held * change.float(), rtol=1e-6 if dtype == torch.float32 else 1e-2)


# --- what was not held is not touched ----------------------------------------------------------------------------


def test_what_is_cut_goes_back_where_it_was():
    plan = {"w": (torch.tensor([4, 1]), torch.tensor([0, 6])), "v": (torch.tensor([3]),)}
    before = tree.zeros(state())
    after, _ = fold(MaskedMean(), [Update(plan, tree.cut(state(), plan), 1)], before)
    assert all(torch.equal(tree.cut(after, plan)[name], tree.cut(state(), plan)[name]) for name in plan)


@settings(max_examples=40)
@given(mix=WEIGHTED_PLANS, power=st.sampled_from([0.0, 0.5, 1.0]), momentum=st.sampled_from([0.0, 0.9]))
def test_only_what_was_held_is_touched(mix, power, momentum):
    """Outside lie NaN and a zero with a sign, which no sum would leave as they are."""
    masses = {name: counted(mix, name) for name in state()}
    before = {name: torch.where(masses[name] > 0, t, math.nan) for name, t in state().items()}
    before["w"][:, 2] = torch.where(masses["w"][:, 2] > 0, before["w"][:, 2], -0.0)
    server = {name: torch.where(masses[name] > 0, t, -0.0) for name, t in state(9).items()} if momentum else {}
    option = MaskedMean(coverage_power=power, momentum=momentum)
    after, momenta = fold(option, [update(plan, weight) for plan, weight in mix], before, server)
    for name, mass in masses.items():
        outside = mass == 0
        assert after[name][~outside].isfinite().all()
        assert same_bits(after[name][outside], before[name][outside])
        if momentum:
            assert same_bits(momenta[name][outside], server[name][outside])
            assert not (momenta[name] == server[name])[~outside].any()


def test_momentum_of_an_entry_waits_for_its_next_holder():
    option = MaskedMean(momentum=0.5)
    both, first = (None,), (torch.tensor([0]),)
    start = {"v": torch.zeros(2)}
    one, momenta = fold(option, [Update({"v": both}, {"v": torch.tensor([1.0, 1.0])}, 1)], start)
    two, momenta = fold(option, [Update({"v": first}, {"v": torch.tensor([1.0])}, 1)], one, momenta)
    # Held twice: v = 1, then 0.5 · 1 + 1. Held once: v stays 1, and moves nothing in the second round.
    assert momenta["v"].tolist() == [1.5, 1.0]
    assert two["v"].tolist() == [2.5, 1.0]


def test_a_tensor_that_nobody_was_sent_is_handed_on():
    before = state()
    after, _ = fold(MaskedMean(), [update({"v": (None,)})], before)
    assert after["w"] is before["w"]


def test_without_updates_both_states_stay_as_they_are():
    before = state()
    after, server = fold(MaskedMean(momentum=0.9), [], before)
    assert all(after[name] is before[name] for name in before)
    assert all(not t.any() for t in server.values())


# --- counts ------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(mix=WEIGHTED_PLANS)
def test_the_weight_behind_an_entry_is_rows_times_columns(mix):
    total = HeldSum({name: t.shape for name, t in state().items()})
    for plan, weight in mix:
        total.fold(plan, tree.cut(state(), plan), weight)
    for name in state():
        assert torch.equal(total.mass(name).expand(state()[name].shape), counted(mix, name))


def test_counts_are_as_small_as_what_was_cut():
    total = HeldSum({"w": torch.Size((5, 7, 3)), "o": torch.Size((5, 7)), "v": torch.Size((7,)), "s": torch.Size(())})
    rows, columns = torch.tensor([0, 4]), torch.tensor([1, 2, 5])
    for plan, weight in (
        ({"w": (rows, None, None), "o": (rows, None), "v": (None,), "s": ()}, 2),
        ({"w": (None, None, None), "o": (None, columns), "v": (torch.arange(7),), "s": ()}, 3),
    ):
        ones = {"w": torch.ones(5, 7, 3), "o": torch.ones(5, 7), "v": torch.ones(7), "s": torch.ones(())}
        total.fold(plan, tree.cut(ones, plan), weight)
    assert total.mass("w").tolist() == [[[5.0]], [[3.0]], [[3.0]], [[3.0]], [[5.0]]]
    assert total.mass("o").shape == (5, 7)
    assert total.mass("o")[0].tolist() == [2, 5, 5, 2, 2, 5, 2]
    assert total.mass("o")[1].tolist() == [0, 3, 3, 0, 0, 3, 0]
    assert total.mass("v").tolist() == [5.0]
    assert total.mass("s").item() == 5.0


def test_three_dimensions_can_be_cut():
    shape = torch.Size((2, 3, 2))
    total = HeldSum({"w": shape})
    kept = (torch.tensor([1]), torch.tensor([0, 2]), torch.tensor([0]))
    total.fold({"w": kept}, {"w": torch.ones(1, 2, 1)}, 4)
    assert total.mass("w").tolist() == [[[0, 0], [0, 0], [0, 0]], [[4, 0], [0, 0], [4, 0]]]
    assert torch.equal(total.mass("w"), total.sums["w"])


# --- memory ------------------------------------------------------------------------------------------------------


def test_a_total_holds_one_number_per_entry_and_the_plans_own_indices():
    option, before = MaskedMean(), state()
    total, generator, mine = option.zero(before), torch.Generator().manual_seed(0), []
    for number in range(20):
        kept = [torch.randperm(n, generator=generator)[: 1 + number % 4].sort().values for n in (ROWS, COLUMNS)]
        mine += [index.data_ptr() for index in kept]
        option.add(total, update({"w": tuple(kept), "v": (kept[1],)}, 1 + number, number))
    held = reachable(total)
    numbers = [tensor for tensor in held if tensor.is_floating_point()]
    assert (
        sum(t.untyped_storage().nbytes() for t in numbers) == tree.num_bytes(before) == 4 * (ROWS * COLUMNS + COLUMNS)
    )
    others = [tensor for tensor in held if not tensor.is_floating_point()]
    assert others
    assert {tensor.data_ptr() for tensor in others} <= set(mine)


def test_equal_plans_are_kept_once():
    option, before = MaskedMean(), state()
    total = option.zero(before)
    for number in range(20):
        columns = torch.tensor([1, 3])
        option.add(total, update({"w": (torch.tensor([0, 4]), columns), "v": (columns,)}, 1 + number, number))
    assert len([tensor for tensor in reachable(total) if not tensor.is_floating_point()]) == 2


def test_the_next_state_lies_where_the_sums_were():
    option, before = MaskedMean(), state()
    total = option.zero(before)
    option.add(total, update({"w": (torch.tensor([0, 4]), torch.tensor([1, 3])), "v": (None,)}))
    places = {name: t.data_ptr() for name, t in total.sums.items()}
    after, _ = option.apply(before, {}, total)
    assert {name: t.data_ptr() for name, t in after.items()} == places
    assert reachable(total.sums) == []


@pytest.mark.parametrize("cut", [(False, False), (False, True), (True, True)])
def test_no_more_than_a_tensor_is_made_on_the_way(cut):
    size, kept, num_tensors = 200, 100, 4
    before = {f"w{number}": torch.randn(size, size) for number in range(num_tensors)}
    generator = torch.Generator().manual_seed(0)
    option = MaskedMean()
    total = option.zero(before)
    for number in range(5):
        places = [torch.randperm(size, generator=generator)[:kept].sort().values for _ in cut]
        plan = dict.fromkeys(before, tuple(index if one else None for index, one in zip(places, cut, strict=True)))
        some = Update(plan, tree.cut(before, plan), 1 + number)
        with Made() as made:
            option.add(total, some)
        # Values are scaled as they are added; only scattered entries of a block are brought together for it.
        assert max(made.num_bytes) <= (kept * kept * 4 if all(cut) else size * 8)
    with Made() as made:
        option.apply(before, {}, total)
    # Counts: one per entry where both dimensions are cut, else one row per plan.
    assert max(made.num_bytes) <= size * 4 * (size if all(cut) else 5)


def test_half_precision_is_summed_in_fp32():
    before = {"v": torch.full((3,), 1.0, dtype=torch.bfloat16)}
    # 1 + 2**-7 is the next bfloat16 after 1: 300 changes of 2**-9 are lost one by one, their weighted sum is not.
    tiny = Update({"v": (torch.tensor([0, 2]),)}, {"v": torch.full((2,), 2.0**-9, dtype=torch.bfloat16)}, 1)
    large = Update({"v": (torch.tensor([0]),)}, {"v": torch.full((1,), 1.0, dtype=torch.bfloat16)}, 100)
    after, _ = fold(MaskedMean(coverage_power=0.0), [tiny] * 300 + [large], before)
    assert after["v"].dtype == torch.bfloat16
    expected = torch.tensor([1 + (300 * 2**-9 + 100) / 400, 1.0, 1 + 300 * 2**-9 / 400])
    assert after["v"].tolist() == expected.bfloat16().tolist()


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "plan", "tensors", "weight"),
    [
        ("too_large", {"v": (None,)}, {"v": torch.full((COLUMNS,), 2.0**100)}, 2**30),
        ("non_finite", {"v": (None,)}, {"v": torch.full((COLUMNS,), math.nan)}, 1),
        ("non_finite", {"v": (None,)}, {"v": torch.full((COLUMNS,), -math.inf)}, 1),
        ("shape", {"v": (torch.tensor([1, 2]),)}, {"v": torch.ones(3)}, 1),
        ("shape", {"v": (torch.tensor([1, 2]),)}, {"v": torch.ones(1)}, 1),
        ("shape", {"w": (None, torch.tensor([1]))}, {"w": torch.ones(ROWS, COLUMNS)}, 1),
        ("names", {"v": (None,), "w": (None, None)}, {"v": torch.ones(COLUMNS)}, 1),
        ("names", {"v": (None,)}, {"v": torch.ones(COLUMNS), "w": torch.ones(ROWS, COLUMNS)}, 1),
    ],
)
def test_an_update_that_cannot_be_folded_leaves_no_trace(reason, plan, tensors, weight):
    option, before, honest = MaskedMean(), state(), update(WHOLE, 5)
    total = option.zero(before)
    option.add(total, honest)
    with pytest.raises(ClientError) as caught:
        option.add(total, Update(plan, tensors, weight))
    assert caught.value.reason == reason
    after, _ = option.apply(before, {}, total)
    expected, _ = fold(option, [honest], before)
    assert all(same_bits(after[name], expected[name]) for name in after)


def test_sums_at_the_bound_are_finite():
    option, before = MaskedMean(), {"v": torch.zeros(1)}
    total = option.zero(before)
    largest = Update({"v": (None,)}, {"v": torch.full((1,), 2.0**126)}, 1)
    option.add(total, largest)
    option.add(total, largest)
    with pytest.raises(ClientError):
        option.add(total, Update({"v": (None,)}, {"v": torch.full((1,), 2.0**80)}, 1))
    assert option.apply(before, {}, total)[0]["v"].item() == 2.0**126


@pytest.mark.parametrize(
    "fields",
    [
        {"coverage_power": -0.1},
        {"coverage_power": 1.1},
        {"coverage_power": math.nan},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"momentum": 1.0},
        {"momentum": -0.1},
    ],
)
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match="must be"):
        MaskedMean(**fields)


def test_a_discount_takes_from_the_weight_and_not_from_the_change():
    before = {"w": torch.zeros(2)}
    fresh = Update({"w": (torch.tensor([0]),)}, {"w": torch.tensor([5.0])}, 1)
    stale = Update({"w": (None,)}, {"w": torch.tensor([1.0, 1.0])}, 6, staleness=3, discount=0.5)
    # (1*6*0.5 + 5*1) / (6*0.5 + 1) = 2 where both held it; where only the stale one did, its change as it is
    after, _ = fold(MaskedMean(), [fresh, stale], before)
    assert after["w"].tolist() == [2.0, 1.0]
    # uniform: (0.5*1 + 5) / 1.5; with coverage_power 0 the second entry gets 0.5*1 / 1.5
    after, _ = fold(MaskedMean(weighting="uniform", coverage_power=0.0), [fresh, stale], before)
    assert after["w"].tolist() == pytest.approx([5.5 / 1.5, 0.5 / 1.5])
