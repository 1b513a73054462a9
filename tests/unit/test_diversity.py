"""Gradient diversity against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgen.diversity import Diversity
from fedgen.types import Update

STATE = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
WHOLE = {"a": (None, None), "b": (None,)}


def change(values):
    flat = torch.tensor(values, dtype=torch.float32)
    return {"a": flat[:6].reshape(2, 3), "b": flat[6:]}


def diversity(changes, plans=None):
    found = Diversity(STATE)
    for number, values in enumerate(changes):
        found.add(Update(plans[number] if plans else WHOLE, values, 1))
    return found.value()


@given(st.integers(2, 6), st.lists(st.integers(-3, 3), min_size=10, max_size=10).filter(any))
def test_equal_changes_have_one_over_their_number(number, values):
    assert diversity([change(values)] * number) == pytest.approx(1 / number)


def test_changes_at_right_angles_have_one():
    assert diversity([change([2.0] + [0.0] * 9), change([0.0] * 9 + [5.0])]) == pytest.approx(1.0)


@given(st.lists(st.lists(st.floats(-2, 2, width=16), min_size=10, max_size=10), min_size=2, max_size=5))
def test_it_is_the_sum_of_squared_norms_over_the_squared_norm_of_the_sum(rows):
    table = torch.tensor(rows, dtype=torch.float64)
    below = float(table.sum(0).square().sum())
    if below < 1e-3:
        return
    assert diversity([change(row) for row in rows]) == pytest.approx(float(table.square().sum()) / below, rel=1e-3)


def test_a_part_counts_where_it_lies():
    part = {"b": (torch.tensor([1, 3]),)}
    found = diversity([change([0.0] * 7 + [3.0, 0.0, 0.0]), {"b": torch.tensor([3.0, 4.0])}], [WHOLE, part])
    assert found == pytest.approx((9 + 25) / (36 + 16))


def test_one_change_or_changes_that_cancel_have_none():
    assert diversity([change([1.0] * 10)]) is None
    assert diversity([change([1.0] * 10), change([-1.0] * 10)]) is None
