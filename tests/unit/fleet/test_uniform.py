import pytest

from fedgen.devices import Device
from fedgen.fleet.uniform import Uniform


def test_all_devices_are_alike():
    assert Uniform().devices(["b", "a"], 3, 0) == {"a": Device(1.0, True), "b": Device(1.0, True)}
    assert Uniform(0.25, has_base=False).devices(["a"], 1, 0) == {"a": Device(0.25, False)}


@pytest.mark.parametrize("width", [0.0, -0.5, 1.5, float("nan")])
def test_a_width_that_is_no_share_is_refused(width):
    with pytest.raises(ValueError, match="it must be above 0 and at most 1"):
        Uniform(width)


def test_all_answers_come_as_late():
    assert Uniform(delay=3).devices(["a"], 1, 0) == {"a": Device(1.0, True, 3)}
    with pytest.raises(ValueError, match="delay is -1; it is rounds, at least 0"):
        Uniform(delay=-1)
