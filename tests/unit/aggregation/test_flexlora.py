"""Products of factors against brute force in fp64, and against hand-computed numbers."""

import dataclasses
import math

import pytest
import torch

from fedgen import tree
from fedgen.aggregation.flexlora import Flexlora
from fedgen.aggregation.masked_mean import MaskedMean
from fedgen.errors import ClientError
from fedgen.types import Update

A, B = "x.lora_A.weight", "x.lora_B.weight"
OUT, IN, RANK = 9, 7, 3
WHOLE = {A: (None, None), B: (None, None)}
ROWS, COLUMNS, RANKS = torch.tensor([1, 4, 8]), torch.tensor([0, 2, 3, 6]), torch.tensor([0, 2])


def state(seed=0, out=OUT, into=IN, rank=RANK):
    generator = torch.Generator().manual_seed(seed)
    return {A: torch.randn(rank, into, generator=generator), B: torch.randn(out, rank, generator=generator)}


def update(plan, weight=1, seed=1, scale=0.3):
    return Update(plan, tree.cut(tree.scale(state(seed), scale), plan), weight)


def fold(updates, before, **fields):
    option = Flexlora(**fields)
    total = option.zero(before)
    for one in updates:
        option.add(total, one)
    return option.apply(before, {}, total)[0]


def product(of):
    return of[B].double() @ of[A].double()


def nearest(matrix, rank=RANK):
    """The nearest matrix of a rank (Eckart and Young)."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return left[:, :rank] * values[:rank] @ right[:rank]


def changed(before, one):
    """The product after one client's change, with the factors written out in full."""
    after = {name: t.double() for name, t in before.items()}
    tree.paste(one.plan, {name: t.double() for name, t in one.tensors.items()}, after)
    return product(after)


def close(a, b, tolerance=1e-6):
    return torch.allclose(a.double(), b.double(), rtol=0, atol=tolerance * float(b.abs().max()))


# --- whole adapters: as published --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weighting", "shares"), [("num_examples", [0.1, 0.3, 0.6]), ("uniform", [1 / 3, 1 / 3, 1 / 3])]
)
def test_products_are_averaged_and_cut_back_to_their_rank(weighting, shares):
    before, received = state(), [update(WHOLE, weight, seed) for seed, weight in enumerate((1, 3, 6), 1)]
    mean = sum(share * changed(before, one) for share, one in zip(shares, received, strict=True))
    after = fold(received, before, weighting=weighting)
    assert torch.linalg.matrix_rank(mean) == IN
    assert close(product(after), nearest(mean))
    # The mean of the factors is something else.
    option = MaskedMean(weighting=weighting)
    total = option.zero(before)
    for one in received:
        option.add(total, one)
    assert not close(product(option.apply(before, {}, total)[0]), nearest(mean), 0.01)


def test_singular_values_are_shared_evenly_and_fall():
    after = fold([update(WHOLE)], state())
    values = torch.linalg.svdvals(product(after))[:RANK]
    assert close(after[B].T @ after[B], values.diag())
    assert close(after[A] @ after[A].T, values.diag())


def test_the_first_ranks_are_what_a_client_of_that_rank_would_be_sent():
    after = fold([update(WHOLE)], state())
    assert close(after[B][:, :2].double() @ after[A][:2].double(), nearest(product(after), 2))


def test_signs_are_fixed():
    before = state()
    flipped = {name: -t for name, t in before.items()}
    received = update(WHOLE)
    ours = fold([received], before)
    theirs = fold([Update(WHOLE, {name: -t for name, t in received.tensors.items()}, 1)], flipped)
    assert all(close(ours[name], theirs[name]) for name in ours)
    for column in ours[B].T:
        assert column[column.abs().argmax()] > 0


def test_one_by_one_by_hand():
    # BA = 4 · 1; one client makes it 6 · 2 = 12, another (3 examples) 4 · 5 = 20: (12 + 3 · 20) / 4 = 18.
    before = {A: torch.tensor([[1.0]]), B: torch.tensor([[4.0]])}
    received = [
        Update(WHOLE, {A: torch.tensor([[1.0]]), B: torch.tensor([[2.0]])}, 1),
        Update(WHOLE, {A: torch.tensor([[4.0]]), B: torch.tensor([[0.0]])}, 3),
    ]
    after = fold(received, before)
    assert after[A].item() == pytest.approx(math.sqrt(18))
    assert after[B].item() == pytest.approx(math.sqrt(18))


@pytest.mark.parametrize(("out", "into", "rank"), [(9, 4, 3), (4, 9, 3), (3, 3, 3), (2, 5, 4), (5, 2, 4), (1, 6, 1)])
def test_every_shape_of_matrix(out, into, rank):
    before, change = state(0, out, into, rank), state(1, out, into, rank)
    after = fold([Update(WHOLE, change, 1)], before)
    assert {name: t.shape for name, t in after.items()} == {name: t.shape for name, t in before.items()}
    assert close(product(after), nearest(product(tree.add(before, change)), rank))


# --- parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [None, RANKS])
def test_parts_are_averaged_entry_by_entry_over_those_who_held_them(ranks):
    before = state()
    parts = [
        {A: (ranks, COLUMNS), B: (ROWS, ranks)},
        {A: (None, torch.tensor([0, 1])), B: (torch.tensor([1, 2, 4]), None)},
        {A: (ranks, COLUMNS), B: (ROWS, ranks)},
    ]
    received = [update(plan, weight, seed) for seed, (plan, weight) in enumerate(zip(parts, (2, 5, 1), strict=True), 1)]
    total, mass = torch.zeros(OUT, IN, dtype=torch.float64), torch.zeros(OUT, IN, dtype=torch.float64)
    for one in received:
        held = torch.zeros(OUT, IN, dtype=torch.float64)
        held[one.plan[B][0][:, None], one.plan[A][1]] = one.num_examples
        mass += held
        total += held * changed(before, one)
    assert set(mass.flatten().tolist()) == {0, 3, 5, 8}
    expected = torch.where(mass > 0, total / mass, product(before))
    after = fold(received, before)
    assert close(product(after), nearest(expected))


def test_entries_that_nobody_held_keep_the_old_product_where_the_rank_has_room_for_it():
    before = {A: torch.zeros(RANK, IN), B: torch.zeros(OUT, RANK)}
    before[A][0, 1], before[B][2, 0] = 1.0, 5.0
    plan = {A: (None, COLUMNS), B: (ROWS, None)}
    change = {A: torch.ones(RANK, 4), B: torch.ones(3, RANK)}
    after = product(fold([Update(plan, change, 1)], before))
    # On the part B is 0 and A is 0, so that the product there becomes RANK. The rest was one entry.
    expected = torch.zeros(OUT, IN)
    expected[2, 1] = 5.0
    expected[ROWS[:, None], COLUMNS] = RANK
    assert close(after, expected)


@pytest.mark.parametrize(("name", "plan"), [(A, {A: (RANKS, COLUMNS)}), (B, {B: (ROWS, RANKS)})])
def test_a_factor_that_was_not_sent_counts_as_unchanged(name, plan):
    before, one = state(), update(plan)
    mask = torch.zeros(OUT, IN, dtype=torch.bool)
    mask[:, COLUMNS] |= name == A
    mask[ROWS] |= name == B
    expected = changed(before, one)
    assert torch.equal(expected != product(before), mask)
    assert close(product(fold([one], before)), nearest(expected))


def test_who_lacks_ranks_does_not_pull_them_towards_zero():
    before = state()
    few = {A: (torch.tensor([0]), None), B: (None, torch.tensor([0]))}
    idle = Update(few, tree.zeros(tree.cut(before, few)), 100)
    assert close(product(fold([idle, update(WHOLE, 1, scale=0.0)], before)), product(before))


# --- what was not changed ----------------------------------------------------------------------------------------


def test_without_any_change_the_factors_are_the_old_ones():
    before = state()
    nothing = Update(WHOLE, tree.zeros(before), 4)
    for received in ([], [nothing], [nothing] * 3):
        after = fold(received, before)
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_new_factors_keep_the_product():
    """A change that is lost in rounding makes new factors of the same product."""
    before = state()
    after = fold([Update(WHOLE, {A: torch.zeros(RANK, IN), B: torch.full((OUT, RANK), 1e-30)}, 1)], before)
    assert not torch.equal(after[B], before[B])
    assert close(product(after), product(before), 5e-7)
    again = fold([Update(WHOLE, {A: torch.zeros(RANK, IN), B: torch.full((OUT, RANK), 1e-30)}, 1)], after)
    assert all(close(again[name], after[name], 5e-7) for name in again)


def test_a_rank_without_weight_can_still_learn():
    """As at first, with B zero: its row of A is not lost, or neither factor would have a gradient ever again."""
    before = {A: state()[A], B: torch.zeros(OUT, RANK)}
    change = {A: torch.zeros(RANK, IN), B: torch.zeros(OUT, RANK)}
    change[B][0, 1] = 2.0
    after = fold([Update(WHOLE, change, 1)], before)
    assert close(product(after), product(tree.add(before, change)))
    assert torch.equal(after[B][:, 1:], torch.zeros(OUT, RANK - 1))
    lengths = after[A].norm(dim=1)
    assert lengths[1:].tolist() == pytest.approx([float(before[A].norm()) / math.sqrt(RANK)] * 2, rel=1e-5)
    directions = after[A] / lengths[:, None]
    assert close(directions @ directions.T, torch.eye(RANK))


# --- other tensors, and refusals ---------------------------------------------------------------------------------


def test_what_belongs_to_no_pair_gets_the_mean_over_its_holders():
    conv = {"c.lora_A.weight": torch.zeros(2, 3, 1, 1), "c.lora_B.weight": torch.zeros(4, 2, 1, 1)}
    before = {"bias": torch.zeros(4), "y.lora_B.weight": torch.ones(2, 2), **conv, **state()}
    received = [
        Update({"bias": (torch.tensor([0, 1]),)}, {"bias": torch.full((2,), 2.0)}, 3),
        Update({"bias": (torch.tensor([1, 2]),)}, {"bias": torch.full((2,), 6.0)}, 1),
        Update({"y.lora_B.weight": (None, None)}, {"y.lora_B.weight": torch.full((2, 2), 0.5)}, 7),
        Update({"c.lora_A.weight": (None,) * 4}, {"c.lora_A.weight": torch.ones(2, 3, 1, 1)}, 2),
    ]
    after = fold(received, before)
    assert list(after) == list(before)
    assert after["bias"].tolist() == [2.0, 3.0, 6.0, 0.0]
    assert after["y.lora_B.weight"].tolist() == [[1.5, 1.5], [1.5, 1.5]]
    assert after["c.lora_A.weight"].unique().tolist() == [1.0]
    assert all(after[name] is before[name] for name in (A, B, "c.lora_B.weight"))


@pytest.mark.parametrize(
    ("reason", "tensors"),
    [
        # Neither factor is too large by itself; their product is.
        ("too_large", {A: torch.full((RANK, IN), 1e25), B: torch.full((OUT, RANK), 1e25)}),
        ("too_large", {A: torch.full((RANK, IN), 1e38), B: torch.zeros(OUT, RANK)}),
        ("non_finite", {A: torch.zeros(RANK, IN), B: torch.full((OUT, RANK), math.nan)}),
        ("shape", {A: torch.zeros(RANK, IN), B: torch.zeros(RANK, OUT)}),
        ("names", {A: torch.zeros(RANK, IN)}),
    ],
)
def test_an_update_that_cannot_be_folded_leaves_no_trace(reason, tensors):
    option, before, honest = Flexlora(), state(), update(WHOLE, 5)
    total = option.zero(before)
    option.add(total, honest)
    with pytest.raises(ClientError) as caught:
        option.add(total, Update(WHOLE, tensors, 1))
    assert caught.value.reason == reason
    after, _ = option.apply(before, {}, total)
    assert all(torch.equal(after[name], fold([honest], before)[name]) for name in after)


def test_factors_of_half_precision_stay_what_they_are():
    before = {name: t.bfloat16() for name, t in state().items()}
    after = fold([Update(WHOLE, {name: (t * 0.1).bfloat16() for name, t in state(1).items()}, 2)], before)
    assert {t.dtype for t in after.values()} == {torch.bfloat16}
    expected = product(tree.add(before, {name: (t * 0.1).bfloat16() for name, t in state(1).items()}))
    assert close(product(after), expected, 0.02)


def test_changes_to_factors_of_an_earlier_round_are_refused_and_leave_no_trace():
    before = {**state(), "bias": torch.zeros(3)}
    late = dataclasses.replace(update(WHOLE), staleness=1)
    option = Flexlora()
    total = option.zero(before)
    with pytest.raises(ClientError) as caught:
        option.add(total, late)
    assert caught.value.reason == "late"
    # What belongs to no pair of factors is added up like anywhere else.
    option.add(total, Update({"bias": (None,)}, {"bias": torch.ones(3)}, 2, staleness=1, discount=0.5))
    after, _ = option.apply(before, {}, total)
    assert after["bias"].tolist() == [1.0] * 3
    assert all(torch.equal(after[name], before[name]) for name in (A, B))
