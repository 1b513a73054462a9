"""Mixes of levels: exact proportions when they are dealt out, right on average when they are drawn."""

from collections import Counter

import pytest

from fedgen.devices import Device
from fedgen.fleet.levels import Levels

REAL_WORLD = (6.0, 10.0, 11.0, 18.0, 55.0)


def five(**others):
    """The five levels of the papers."""
    return Levels(**{"widths": (1.0, 0.5, 0.25, 0.125, 0.0625), **others})


def clients(number):
    return [f"client-{i:03d}" for i in range(number)]


def widths(fleet, number, round=1, seed=0):
    return {client: device.width for client, device in fleet.devices(clients(number), round, seed).items()}


def counts(fleet, number, **others):
    found = Counter(widths(fleet, number, **others).values())
    return [found[width] for width in fleet.widths]


def test_levels_are_equally_common_unless_shares_are_given():
    assert counts(five(), 100) == [20, 20, 20, 20, 20]
    assert counts(five(shares=REAL_WORLD), 100) == [6, 10, 11, 18, 55]
    assert counts(five(shares=tuple(share / 100 for share in REAL_WORLD)), 100) == [6, 10, 11, 18, 55]


def test_what_rounding_down_leaves_goes_to_the_largest_remainders():
    # 20 clients: quotas 1.2, 2.0, 2.2, 3.6, 11.0; rounded down they make 19, and 0.6 is the largest remainder
    assert counts(five(shares=REAL_WORLD), 20) == [1, 2, 2, 4, 11]
    # 7 clients: quotas of 1.4 each; two are left, for the first levels
    assert counts(five(), 7) == [2, 2, 1, 1, 1]
    assert counts(five(), 3) == [1, 1, 1, 0, 0]


def test_levels_are_dealt_out_once_per_run():
    fleet = five()
    assert widths(fleet, 50, round=9) == widths(fleet, 50, round=1)
    assert widths(fleet, 50, seed=1) != widths(fleet, 50)
    # by chance, and not by name: the first ten names do not have the ten widest devices
    assert set(list(widths(fleet, 50).values())[:10]) != {1.0}


def test_levels_that_are_redrawn_are_right_on_average():
    fleet = five(shares=REAL_WORLD, redraw=True)
    total = [0] * 5
    for round in range(1, 41):
        total = [a + b for a, b in zip(total, counts(fleet, 100, round=round), strict=True)]
    # 4000 draws, expected 240, 400, 440, 720, 2200; standard deviations 15, 19, 20, 24, 31
    expected = [240, 400, 440, 720, 2200]
    spread = [(4000 * share / 100 * (1 - share / 100)) ** 0.5 for share in REAL_WORLD]
    assert all(abs(a - b) < 4 * s for a, b, s in zip(total, expected, spread, strict=True))


def test_a_draw_depends_on_nothing_but_seed_round_and_client():
    fleet = five(redraw=True)
    all_clients = fleet.devices(clients(60), 4, 0)
    some = fleet.devices(clients(60)[10:20], 4, 0)
    assert some == {client: all_clients[client] for client in clients(60)[10:20]}
    assert fleet.devices(clients(60), 5, 0) != all_clients
    assert fleet.devices(clients(60), 4, 1) != all_clients


@pytest.mark.parametrize("redraw", [False, True])
def test_devices_that_are_too_small_take_no_part(redraw):
    everyone = widths(five(redraw=redraw), 50)
    without = widths(five(redraw=redraw, min_width=0.25), 50)
    assert without == {client: width if width >= 0.25 else 0.0 for client, width in everyone.items()}
    assert set(without.values()) == {1.0, 0.5, 0.25, 0.0}


def test_whether_they_keep_the_base_is_said_of_all():
    assert Levels((0.5,), has_base=False).devices(["a"], 1, 0) == {"a": Device(0.5, False)}


@pytest.mark.parametrize("redraw", [False, True])
def test_a_level_is_as_late_as_it_is_said_to_be(redraw):
    delays = (0, 0, 1, 2, 4)
    devices = five(delays=delays, redraw=redraw).devices(clients(50), 3, 0)
    assert {(device.width, device.delay) for device in devices.values()} == set(zip(five().widths, delays, strict=True))
    assert {device.delay for device in five(redraw=redraw).devices(clients(50), 3, 0).values()} == {0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": ()}, r"widths is \[\]; it must be one or more shares"),
        ({"widths": (1.0, 0.0)}, "shares above 0 and at most 1"),
        ({"widths": (1.5,)}, "shares above 0 and at most 1"),
        ({"shares": (1.0, 2.0)}, "shares has 2 numbers; widths has 5"),
        ({"shares": ()}, "shares has 0 numbers; widths has 5"),
        ({"shares": (1.0, 2.0, 0.0, 1.0, 1.0)}, "each must be positive"),
        ({"shares": (float("inf"), 2.0, 1.0, 1.0, 1.0)}, "each must be positive"),
        ({"min_width": -0.1}, "min_width is -0.1"),
        ({"delays": (1, 2)}, "delays has 2 numbers; widths has 5"),
        ({"delays": (0, 0, 0, 0, -1)}, r"delays is \[0, 0, 0, 0, -1\]; each is rounds, at least 0"),
        ({"widths": (0.5, 0.25), "min_width": 0.75}, "min_width is 0.75; .* at most 0.5, .* or no device takes part"),
    ],
)
def test_values_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        five(**fields)
