"""The arithmetic against hand-computed numbers and properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgen import tree
from fedgen.types import Axes, Dim


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
    dims = {"A": (Dim("rank"), None), "B": (None, Dim("rank")), "n": (Dim("ffn"),)}
    plan = tree.plan_of(Axes(dims, {"rank": 3, "ffn": 5}), {"rank": torch.tensor([1])})
    assert plan["A"][0].tolist() == [1]
    assert plan["A"][1] is None
    assert plan["B"][1].tolist() == [1]
    assert plan["n"] == (None,)


def test_positions_of_units_that_span_several():
    # Units of three positions; the second and the third.
    assert tree.positions(Dim("kv", 3), torch.tensor([1, 2]), 4).tolist() == [3, 4, 5, 6, 7, 8]
    # Two blocks of four units of two, one after the other, as in a fused projection.
    fused = tree.positions(Dim("kv", 2, (0, 8)), torch.tensor([0, 3]), 4)
    assert fused.tolist() == [0, 1, 6, 7, 8, 9, 14, 15]
    assert tree.positions(Dim("kv", 2), torch.tensor([], dtype=torch.int64), 4).tolist() == []


@given(units=st.sets(st.integers(0, 9)), span=st.integers(1, 4), num_blocks=st.integers(1, 3))
def test_positions_are_those_of_a_plain_loop(units, span, num_blocks):
    dim = Dim("kv", span, tuple(block * 10 * span for block in range(num_blocks)))
    index = torch.tensor(sorted(units), dtype=torch.int64)
    expected = [start + u * span + i for start in dim.starts for u in sorted(units) for i in range(span)]
    assert tree.positions(dim, index, 10).tolist() == expected == sorted(expected)


@pytest.mark.parametrize("units", [[-1, 0], [0, 4]])
def test_units_that_are_not_there_are_our_own_mistake(units):
    with pytest.raises(AssertionError, match="kv: units out of range"):
        tree.positions(Dim("kv"), torch.tensor(units), 4)


def test_a_plan_goes_by_span_starts_and_layer():
    axes = Axes(
        dims={
            "embedding": (None, Dim("residual")),
            "0.query": (Dim("kv.0", 4), Dim("residual")),
            "0.fused": (Dim("residual"), Dim("kv.0", 2, (0, 6))),
            "0.norm": (None,),
            "1.query": (Dim("kv.1", 4), Dim("residual")),
            "2.norm": (None,),
        },
        units={"kv.0": 3, "kv.1": 3, "residual": 5, "layer": 3},
        members={"0.query": ("layer", 0), "0.fused": ("layer", 0), "0.norm": ("layer", 0)}
        | {"1.query": ("layer", 1), "2.norm": ("layer", 2)},
    )
    kept = {"kv.0": torch.tensor([0, 2]), "kv.1": torch.tensor([1]), "layer": torch.tensor([0, 2])}
    plan = tree.plan_of(axes, kept)
    as_lists = {n: tuple(None if i is None else i.tolist() for i in dims) for n, dims in plan.items()}
    assert as_lists == {
        "embedding": (None, None),
        "0.query": ([0, 1, 2, 3, 8, 9, 10, 11], None),
        "0.fused": (None, [0, 1, 4, 5, 6, 7, 10, 11]),
        "0.norm": (None,),
        "2.norm": (None,),
    }
    # Without a word about layers every tensor is there.
    assert tree.plan_of(axes, {}).keys() == axes.dims.keys()
    assert tree.is_whole(tree.plan_of(axes, {}))
    # Axes that these tensors do not lie on make no difference.
    assert tree.is_whole(tree.plan_of(axes, {"rank": torch.tensor([0])}))


def test_tensors_on_one_axis_share_one_index():
    axes = Axes({"a": (Dim("ffn"), None), "b": (None, Dim("ffn")), "c": (Dim("ffn", 2),)}, {"ffn": 4})
    plan = tree.plan_of(axes, {"ffn": torch.tensor([1])})
    assert plan["a"][0] is plan["b"][1]
    assert plan["c"][0].tolist() == [2, 3]


@st.composite
def tensors_and_plans(draw):
    """A tensor of up to three dimensions and sorted positions of each; of a long one, more stretches than MAX_RUNS."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    kept = []
    long = draw(st.none() | st.integers(0, len(shape) - 1))
    for dim, size in enumerate(shape):
        if dim == long:
            shape[dim] = 3 * tree.MAX_RUNS
            # Every second position, and some of those between.
            between = draw(st.sets(st.integers(0, shape[dim] // 2 - 1).map(lambda n: 2 * n + 1), max_size=12))
            kept.append(torch.tensor(sorted({*range(0, shape[dim], 2)} | between)))
        else:
            chosen = draw(st.none() | st.sets(st.integers(0, size - 1)))
            kept.append(None if chosen is None else torch.tensor(sorted(chosen), dtype=torch.int64))
    return torch.arange(1.0, 1.0 + math.prod(shape)).reshape(shape), tuple(kept)


def mesh(tensor, kept):
    """Plain advanced indexing of the crossing."""
    lists = [torch.arange(n) if index is None else index for n, index in zip(tensor.shape, kept, strict=True)]
    return torch.meshgrid(*lists, indexing="ij")


@given(tensors_and_plans())
def test_cut_is_advanced_indexing(drawn):
    tensor, kept = drawn
    part = tree.cut({"w": tensor}, {"w": kept})["w"]
    assert torch.equal(part, tensor[mesh(tensor, kept)])
    assert list(part.shape) == tree.extent(tensor, kept)


@given(tensors_and_plans(), st.sampled_from([1, -1.0, 0.25]), st.sampled_from([torch.float32, torch.float64]))
def test_paste_adds_by_advanced_indexing_and_touches_nothing_else(drawn, weight, dtype):
    tensor, kept = drawn
    where = mesh(tensor, kept)
    values = tensor[where] + 0.5
    into = torch.full(tensor.shape, float("nan"), dtype=dtype)
    into[where] = 2.0
    expected = into.clone()
    expected[where] += weight * values
    tree.paste({"w": kept}, {"w": values}, {"w": into}, weight)
    assert torch.equal(into.nan_to_num(-1e9), expected.nan_to_num(-1e9))


@pytest.mark.parametrize("num_runs", [tree.MAX_RUNS, tree.MAX_RUNS + 1])
def test_stretches_and_single_positions_come_to_the_same(num_runs):
    """On both sides of the number from which on positions are copied one by one."""
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(2 * num_runs, 2 * num_runs, 3, generator=generator)
    index = torch.arange(0, 2 * num_runs, 2)
    for kept in ((index, None, None), (None, index, None), (index, index, torch.tensor([0, 2]))):
        part = tree.cut({"w": tensor}, {"w": kept})["w"]
        assert torch.equal(part, tensor[mesh(tensor, kept)])
        into = tensor.clone()
        tree.paste({"w": kept}, {"w": part}, {"w": into})
        doubled = tensor.clone()
        doubled[mesh(tensor, kept)] *= 2
        assert torch.equal(into, doubled)


def test_one_stretch_is_a_view_and_several_are_a_copy():
    tensor = torch.arange(12.0).reshape(6, 2)
    one, two = torch.tensor([2, 3, 4]), torch.tensor([0, 1, 4])
    assert tree.cut({"w": tensor}, {"w": (one, None)})["w"].data_ptr() == tensor[2].data_ptr()
    copied = tree.cut({"w": tensor}, {"w": (two, None)})["w"]
    assert copied.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


@given(tensors_and_plans(), st.data())
def test_the_extent_of_an_overlap_is_that_of_the_common_positions(drawn, data):
    tensor, first = drawn
    second = tuple(
        data.draw(
            st.none() | st.sets(st.integers(0, size - 1)).map(lambda s: torch.tensor(sorted(s), dtype=torch.int64))
        )
        for size in tensor.shape
    )

    def held(kept, dim):
        return set(range(tensor.shape[dim])) if kept[dim] is None else set(kept[dim].tolist())

    common = [len(held(first, dim) & held(second, dim)) for dim in range(tensor.dim())]
    assert tree.overlap(tensor, first, second) == tree.overlap(tensor, second, first) == common
    assert tree.overlap(tensor, first, first) == tree.extent(tensor, first)
    assert tree.overlap(tensor, first, None) == [0] * tensor.dim()


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


@pytest.mark.parametrize("step", [1, 2])
def test_a_cut_into_memory_that_is_there_is_the_same_and_lies_there(step):
    """Stretches, and with every other position more of them than are copied one by one."""
    state = {"w": torch.randn(9, 200, generator=torch.Generator().manual_seed(0)), "v": torch.arange(5.0)}
    plan = {"w": (torch.tensor([0, 1, 7]), torch.arange(0, 200, step)), "v": (None,)}
    expected = tree.cut(state, plan)
    out = {name: torch.full(tensor.shape, torch.nan) for name, tensor in expected.items()}
    part = tree.cut(state, plan, out)
    assert all(torch.equal(out[name], expected[name]) for name in expected)
    assert all(part[name].data_ptr() == out[name].data_ptr() for name in expected)
