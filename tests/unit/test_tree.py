"""The arithmetic against hand-computed numbers and properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgen import tree


def test_cut_takes_the_block_of_rows_and_columns():
    state = {"w": torch.arange(12.0).reshape(3, 4)}
    part = tree.cut(state, {"w": (torch.tensor([2, 0]), torch.tensor([1, 3]))})
    assert part["w"].tolist() == [[9.0, 11.0], [1.0, 3.0]]


def test_cut_does_not_copy_what_is_kept_whole():
    state = {"w": torch.zeros(3, 4)}
    assert tree.cut(state, {"w": (None, None)})["w"] is state["w"]


def test_absent_tensors_are_not_sent():
    assert tree.cut({"a": torch.zeros(1), "b": torch.zeros(1)}, {"a": (None,)}).keys() == {"a"}


@given(rows=st.sets(st.integers(0, 4), min_size=1), columns=st.sets(st.integers(0, 5), min_size=1))
def test_paste_into_zeros_gives_back_what_was_cut_and_nothing_else(rows, columns):
    state = {"w": torch.arange(1.0, 31.0).reshape(5, 6)}
    plan = {"w": (torch.tensor(sorted(rows)), torch.tensor(sorted(columns)))}
    into = tree.zeros(state)
    tree.paste(plan, tree.cut(state, plan), into)
    mask = torch.zeros(5, 6, dtype=torch.bool)
    for row in rows:
        for column in columns:
            mask[row, column] = True
    assert torch.equal(into["w"], torch.where(mask, state["w"], 0.0))


def test_plan_of_keeps_unnamed_axes_whole():
    plan = tree.plan_of({"A": ("rank", None), "B": (None, "rank"), "n": ("ffn",)}, {"rank": torch.tensor([1])})
    assert plan["A"][0].tolist() == [1]
    assert plan["A"][1] is None
    assert plan["B"][1].tolist() == [1]
    assert plan["n"] == (None,)


def test_norm_and_clip_over_all_tensors_together():
    state = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    assert float(tree.norm(state)) == 5.0
    clipped = tree.clip(state, 2.5)
    assert clipped["a"].tolist() == [1.5, 0.0]
    assert clipped["b"].tolist() == [[2.0]]
    assert tree.clip(state, 5.0) is state


@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.integers(1, 1000)), min_size=1, max_size=8), st.randoms())
def test_fixed_point_sums_do_not_depend_on_the_order(terms, random):
    def total(order):
        acc = torch.zeros(1, dtype=torch.int64)
        for value, weight in order:
            acc += tree.fixed_point({"w": torch.tensor([value])}, weight)["w"]
        return acc

    shuffled = list(terms)
    random.shuffle(shuffled)
    assert torch.equal(total(terms), total(shuffled))
    weight = sum(w for _, w in terms)
    mean = tree.floating_point({"w": total(terms)}, weight)["w"].item()
    assert mean == pytest.approx(sum(v * w for v, w in terms) / weight, abs=2**-36)


def test_states_of_different_names_are_our_own_mistake():
    with pytest.raises(AssertionError, match="differ"):
        tree.add({"a": torch.zeros(1)}, {"b": torch.zeros(1)})


def test_largest_and_bytes():
    assert math.isnan(tree.largest({"a": torch.ones(2), "b": torch.tensor([float("nan"), 1.0])}))
    assert math.isinf(tree.largest({"a": torch.tensor([1.0, -math.inf])}))
    assert tree.largest({}) == 0.0
    assert tree.largest({"a": torch.tensor([1.0, -3.0]), "e": torch.zeros(0)}) == 3.0
    assert tree.num_bytes({"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.bfloat16)}) == 16
