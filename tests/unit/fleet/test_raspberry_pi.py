"""Boards: memory by specification, dealt in proportion, less of it in busy rounds."""

from collections import Counter

import pytest

from fedgen.fleet.raspberry_pi import BOARDS, MIB, RaspberryPi

CLIENTS = [f"home-{number:02}" for number in range(20)]


def test_a_board_has_what_its_name_says_less_the_system():
    devices = RaspberryPi(boards=("4_2g",), system_mib=248).devices(CLIENTS, 1, 0)
    assert {device.memory_bytes for device in devices.values()} == {1800 * MIB}
    assert {device.kind for device in devices.values()} == {"raspberry_pi_4_2g"}
    for board, memory in BOARDS.items():
        amount = board.rpartition("_")[2]
        assert not amount.endswith("g") or int(amount[:-1]) * 1024 == memory


def test_boards_are_dealt_out_in_proportion_and_stay_where_they_are():
    fleet = RaspberryPi(boards=("3b_plus", "5_4g"), shares=(3.0, 1.0), step_seconds=(8.0, 2.0), link_mbit_per_s=8.0)
    first, later = fleet.devices(CLIENTS, 1, 0), fleet.devices(CLIENTS, 9, 0)
    assert first == later
    assert Counter(device.kind for device in first.values()) == {"raspberry_pi_3b_plus": 15, "raspberry_pi_5_4g": 5}
    assert {(d.kind, d.step_seconds, d.link_bytes_per_s) for d in first.values()} == {
        ("raspberry_pi_3b_plus", 8.0, 1e6),
        ("raspberry_pi_5_4g", 2.0, 1e6),
    }


def test_in_a_busy_round_half_is_left():
    fleet = RaspberryPi(boards=("4_1g",), system_mib=24, busy=0.25)
    found = Counter(d.memory_bytes // MIB for round in range(1, 41) for d in fleet.devices(CLIENTS, round, 3).values())
    assert found.keys() == {1000, 500}
    # 800 draws at a quarter: four standard deviations are 49.
    assert abs(found[500] - 200) < 49


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"boards": ("6_64g",)}, "choose one or more of zero_2w"),
        ({"boards": ()}, "choose one or more"),
        ({"shares": (1.0,)}, "boards has 4, one is due to each"),
        ({"step_seconds": (1.0, 1.0, 0.0, 1.0)}, "each must be positive"),
        ({"boards": ("zero_2w",), "system_mib": 512}, "below 512 MiB"),
        ({"busy": 1.5}, "it is a chance"),
        ({"link_mbit_per_s": 0.0}, "must be positive, or null"),
    ],
)
def test_what_no_fleet_has_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        RaspberryPi(**fields)
