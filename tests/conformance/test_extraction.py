"""What every extraction strategy keeps, whatever it picks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgen import tree
from fedgen.stages import Extraction
from tests.conformance.options import build, disturb, options

EXTRACTIONS = {name: build("extraction", name) for name in options("extraction")}

each = pytest.mark.parametrize("name", EXTRACTIONS)
anywhere = given(units=st.integers(1, 40), round=st.integers(1, 50), client=st.text(max_size=8))


@each
def test_it_is_an_extraction(name):
    assert isinstance(EXTRACTIONS[name], Extraction)


@each
@anywhere
def test_indices_are_units_of_the_axis_and_none_twice(name, units, round, client):
    kept = EXTRACTIONS[name].keep("ffn", units, round, client)
    if kept is not None:
        assert kept.dtype == torch.int64
        assert 1 <= len(kept) <= units
        assert len(set(kept.tolist())) == len(kept)
        assert set(kept.tolist()) <= set(range(units))


@each
@anywhere
def test_both_ends_compute_the_same_indices(name, units, round, client):
    first = EXTRACTIONS[name].keep("ffn", units, round, client)
    disturb()
    second = build("extraction", name).keep("ffn", units, round, client)
    assert (first is None) == (second is None)
    assert first is None or torch.equal(first, second)


@each
@anywhere
def test_what_is_cut_goes_back_where_it_was(name, units, round, client):
    whole = {"w": torch.arange(1.0, 1.0 + 3 * units).reshape(units, 3)}
    plan = tree.plan_of({"w": ("ffn", None)}, {"ffn": EXTRACTIONS[name].keep("ffn", units, round, client)})
    back = tree.zeros(whole)
    tree.paste(plan, tree.cut(whole, plan), back)
    kept = plan["w"][0]
    rows = range(units) if kept is None else kept.tolist()
    for row in range(units):
        assert torch.equal(back["w"][row], whole["w"][row] if row in rows else torch.zeros(3))
