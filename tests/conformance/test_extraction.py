"""What every extraction keeps, whatever it picks."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgen import tree
from fedgen.extraction.kinds import KINDS
from fedgen.stages import Extraction
from fedgen.types import Axes, Choice, Dim
from tests.conformance.options import build, disturb, options

EXTRACTIONS = {name: build("extraction", name) for name in options("extraction")}

each = pytest.mark.parametrize("name", EXTRACTIONS)
often_enough = settings(max_examples=30)


@st.composite
def choices(draw: st.DrawFn) -> Choice:
    """Any axis, share, round and client; scores with many ties among them."""
    units = draw(st.integers(1, 40))
    num_clients = draw(st.integers(1, 9))
    return Choice(
        axis=draw(st.sampled_from(["ffn.0", "ffn.1", "kv.0", "layer"])),
        units=units,
        num_kept=draw(st.integers(1, units)),
        round=draw(st.integers(1, 50)),
        client=draw(st.text(max_size=8)),
        place=draw(st.integers(0, num_clients - 1)),
        num_clients=num_clients,
        seed=draw(st.integers(0, 99)),
        scores=torch.tensor(draw(st.lists(st.integers(0, 5), min_size=units, max_size=units)), dtype=torch.float32),
    )


def num_kept(extraction: Extraction, choice: Choice) -> int:
    """An extraction that cuts nothing is never asked to; it keeps all."""
    return choice.num_kept if extraction.axes else choice.units


@each
def test_it_is_an_extraction(name):
    assert isinstance(EXTRACTIONS[name], Extraction)


@each
def test_it_cuts_axes_that_there_are(name):
    extraction = EXTRACTIONS[name]
    assert set(extraction.axes) <= {*KINDS, "layer"}
    assert len(set(extraction.axes)) == len(extraction.axes)


@each
@often_enough
@given(choice=choices())
def test_as_many_units_are_kept_as_were_asked_for_ascending_and_none_twice(name, choice):
    kept = EXTRACTIONS[name].keep(choice)
    assert kept.dtype == torch.int64
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert len(kept) == num_kept(EXTRACTIONS[name], choice)
    assert 0 <= int(kept[0]) <= int(kept[-1]) < choice.units


@each
@often_enough
@given(choice=choices())
def test_a_device_that_holds_everything_gets_everything(name, choice):
    kept = EXTRACTIONS[name].keep(replace(choice, num_kept=choice.units))
    assert torch.equal(kept, torch.arange(choice.units))


@each
@often_enough
@given(choice=choices())
def test_both_ends_pick_the_same_units(name, choice):
    first = EXTRACTIONS[name].keep(choice)
    disturb()
    assert torch.equal(build("extraction", name).keep(choice), first)


@each
@often_enough
@given(choice=choices())
def test_the_generators_of_others_are_left_alone(name, choice):
    before = torch.get_rng_state()
    EXTRACTIONS[name].keep(choice)
    assert torch.equal(torch.get_rng_state(), before)


@each
@often_enough
@given(choice=choices(), resumed_at=st.integers(1, 6))
def test_a_run_that_is_resumed_midway_goes_on_with_the_same_units(name, choice, resumed_at):
    through = [EXTRACTIONS[name].keep(replace(choice, round=round)) for round in range(1, 7)]
    resumed = build("extraction", name)
    for round in range(resumed_at, 7):
        assert torch.equal(resumed.keep(replace(choice, round=round)), through[round - 1])


@each
@often_enough
@given(choice=choices())
def test_scores_matter_only_to_those_who_ask(name, choice):
    extraction = EXTRACTIONS[name]
    if not extraction.needs_scores:
        assert torch.equal(extraction.keep(replace(choice, scores=None)), extraction.keep(choice))


@each
@often_enough
@given(choice=choices(), width=st.floats(0.01, 1.0))
def test_what_a_step_trains_lies_within_what_the_client_holds(name, choice, width):
    widths = EXTRACTIONS[name].steps(width).widths
    assert all(0 < step <= width for step in widths)
    if widths:  # a step takes the first units of what the client holds, so these have to be the first of the axis
        assert torch.equal(EXTRACTIONS[name].keep(choice), torch.arange(choice.num_kept))


@each
@often_enough
@given(choice=choices())
def test_what_is_cut_goes_back_where_it_was(name, choice):
    axes = Axes({"w": (Dim("a", span=2), None)}, {"a": choice.units})
    whole = {"w": torch.arange(1.0, 1.0 + 6 * choice.units).reshape(2 * choice.units, 3)}
    kept = EXTRACTIONS[name].keep(choice)
    plan = tree.plan_of(axes, {"a": kept})
    part = tree.cut(whole, plan)
    assert part["w"].shape == (2 * len(kept), 3)
    back = tree.zeros(whole)
    tree.paste(plan, part, back)
    held = torch.zeros(choice.units, dtype=torch.bool)
    held[kept] = True
    assert torch.equal(back["w"], whole["w"] * held.repeat_interleave(2)[:, None])
