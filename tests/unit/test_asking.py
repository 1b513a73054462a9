"""What devices say of themselves, and how many are asked."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgen.asking import lowered
from fedgen.devices import Device
from tests.unit.federation.test_local import QUICK

NUMBERS = st.none() | st.integers(-(10**15), 10**15) | st.floats() | st.booleans() | st.text(max_size=4)
PLANNED = st.builds(
    Device,
    memory_bytes=st.integers(0, 10**12),
    temperature_c=st.none() | st.floats(0, 100),
    battery=st.none() | st.floats(0, 1),
)


@given(device=PLANNED, memory=NUMBERS, heat=NUMBERS, battery=NUMBERS)
def test_whatever_a_device_says_of_itself_it_never_has_more_than_the_fleet_says(device, memory, heat, battery):
    report = {"memory_bytes": memory, "temperature_c": heat, "battery": battery}
    less = lowered(device, {name: value for name, value in report.items() if value is not None})
    assert 0 <= less.memory_bytes <= device.memory_bytes
    assert device.temperature_c is None or less.temperature_c >= device.temperature_c
    assert device.battery is None or less.battery <= device.battery
    assert all(value is None or math.isfinite(value) for value in (less.temperature_c, less.battery))


def test_what_it_has_less_of_counts():
    device = Device(memory_bytes=2000, temperature_c=60.0)
    less = lowered(device, {"memory_bytes": 1500, "temperature_c": 81.5, "battery": 0.2, "cores": 1})
    assert less == dataclasses.replace(device, memory_bytes=1500, temperature_c=81.5, battery=0.2)


def test_a_device_that_is_not_planned_stays_as_the_fleet_says():
    assert lowered(Device(width=0.5), {"memory_bytes": 1, "temperature_c": 99.0}) == Device(width=0.5)


@pytest.mark.parametrize(("factor", "asked"), [(1.0, 10), (1.3, 13), (1.31, 14), (1.1, 11), (9.0, 20)])
def test_more_are_asked_than_are_needed(factor, asked):
    clients = [f"c{number:02d}" for number in range(20)]
    experiment = dataclasses.replace(QUICK, cohort_size=10, over_selection=factor)
    cohort = experiment.cohort(clients, 1)
    assert len(cohort) == asked
    assert set(dataclasses.replace(QUICK, cohort_size=10).cohort(clients, 1)) <= set(cohort)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cohort_size": 2, "over_selection": 0.9}, "at least 1"),
        ({"cohort_size": 2, "over_selection": math.inf}, "at least 1"),
        ({"over_selection": 1.3}, "all clients are asked"),
    ],
)
def test_a_factor_that_means_nothing_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(QUICK, **values)
