"""Windows are physical, and show the fault that their label names and no other."""

import itertools
import statistics
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgen.config.catalogue import shipped
from fedgen.generator.timeseries import Timeseries
from fedgen.task import Task
from fedgen.task_file import read_task
from fedgen.task_parts import Channel, Form, Label

TASK = read_task(shipped("configs") / "task" / "sensor.yaml")
OPTION = Timeseries()
DRAFTS = list(OPTION.generate(TASK, OPTION.plan(TASK, 600, 0), 0))
VARIED = list(OPTION.vary(TASK, DRAFTS, 1.0, 0))


def readings(draft) -> list[float | None]:
    return [None if word == "-" else float(word) for word in draft.text.split(": ")[1].split()]


def of(label: str, drafts=DRAFTS) -> list[tuple[Channel, list[float | None]]]:
    found = [(TASK.channels[d.slots["channel"]], readings(d)) for d in drafts if d.label == label]
    assert len(found) == 100
    return found


def longest_run(values: list[float | None]) -> int:
    return max(len(list(group)) for _, group in itertools.groupby(values))


@pytest.mark.parametrize("drafts", [DRAFTS, VARIED], ids=["as written", "varied"])
def test_all_windows_are_wellformed(drafts):
    assert Counter(TASK.wellformed(draft) for draft in drafts) == {None: 600}


@pytest.mark.parametrize("drafts", [DRAFTS, VARIED], ids=["as written", "varied"])
def test_only_dropout_lacks_readings(drafts):
    lacking = {draft.label for draft in drafts if None in readings(draft)}
    assert lacking == {"dropout"}
    assert all(1 <= window.count(None) <= 0.6 * 24 for _, window in of("dropout", drafts))


@pytest.mark.parametrize("drafts", [DRAFTS, VARIED], ids=["as written", "varied"])
def test_what_is_stuck_repeats_a_value_for_half_of_the_window(drafts):
    assert all(longest_run(window) >= 12 for _, window in of("stuck", drafts))
    assert all(longest_run(window) < 12 for label in ("normal", "spike", "drift") for _, window in of(label, drafts))


@pytest.mark.parametrize("drafts", [DRAFTS, VARIED], ids=["as written", "varied"])
def test_saturation_is_the_end_of_the_scale(drafts):
    for channel, window in of("saturation", drafts):
        assert max(window.count(channel.low), window.count(channel.high)) >= 6


def test_a_healthy_sensor_is_where_it_usually_is():
    for channel, window in of("normal"):
        margin = 5 * channel.noise
        assert channel.usual_low - margin <= min(window) <= max(window) <= channel.usual_high + margin


def test_a_spike_is_single_readings_far_off():
    for channel, window in of("spike"):
        middle, size = statistics.median(window), 0.8 * (channel.usual_high - channel.usual_low)
        jumps = [abs(b - a) for a, b in itertools.pairwise(window)]
        assert max(jumps) > 0.5 * size
        assert 1 <= sum(abs(reading - middle) > 0.5 * size for reading in window) <= 6


def test_a_drift_ends_far_from_where_a_healthy_course_would():
    ends = [abs(w[-1] - w[0]) / (c.usual_high - c.usual_low) for c, w in of("drift")]
    healthy = [abs(w[-1] - w[0]) / (c.usual_high - c.usual_low) for c, w in of("normal")]
    assert statistics.median(ends) > 2 * max(statistics.median(healthy), 0.2)


def test_noise_is_correlated_as_the_field_says():
    """First-order autoregression: the correlation of neighbours is the coefficient."""
    channel = Channel("probe", "V", -1e6, 1e6, -100.0, 100.0, 60.0, 10.0, decimals=3)
    task = Task("volts", "sensor", "Volts.", {"fine": Label("fine", (Form("fine"),), fault="none")},
                channels={"v": channel}, num_readings=4000)  # fmt: skip
    for coefficient in (0.0, 0.6):
        option = Timeseries(season=0.0, trend=0.0, autocorrelation=coefficient)
        [draft] = option.generate(task, option.plan(task, 1, 0), 0)
        window = readings(draft)
        assert statistics.correlation(window[:-1], window[1:]) == pytest.approx(coefficient, abs=0.06)
        assert statistics.stdev(window) == pytest.approx(10.0, rel=0.1)


@settings(max_examples=40, deadline=None)
@given(
    low=st.floats(-1000, 1000),
    width=st.floats(0.5, 1000),
    usual=st.tuples(st.floats(0, 0.45), st.floats(0.55, 1)),
    noise=st.floats(0, 500),
    decimals=st.integers(0, 3),
    num_readings=st.integers(2, 30),
)
def test_no_channel_gets_a_reading_outside_its_range(low, width, usual, noise, decimals, num_readings):
    ends = [low + share * width for share in usual]
    unit = 10.0**-decimals
    channel = Channel("d", "u", low - unit, low + width + unit, *ends, 60.0, noise, decimals=decimals)
    task = replace(TASK, channels={"c": channel}, num_readings=num_readings)
    drafts = list(OPTION.generate(task, OPTION.plan(task, 12, 0), 0))
    assert {task.wellformed(draft) for draft in [*drafts, *OPTION.vary(task, drafts, 1.0, 0)]} == {None}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"season": 2.0}, "season is 2.0; it is a share of the usual range"),
        ({"autocorrelation": 1.0}, "autocorrelation is 1.0; it must be at least 0 and below 1"),
        ({"fault_size": 0.05}, "fault_size is 0.05; it must be above trend, 0.1"),
        ({"per_order": 0}, "per_order is 0; it must be at least 1"),
    ],
)
def test_values_outside_their_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Timeseries(**fields)
