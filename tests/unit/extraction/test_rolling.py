"""FedRolex: windows by hand, the law of coverage without exception up to 24 units, and the hole in pairs of axes."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgen.errors import ConfigError
from fedgen.extraction.rolling import Rolling
from fedgen.types import Choice


def window(option, units, num_kept, round, place=0, num_clients=1):
    choice = Choice("ffn.0", units, num_kept, round, "a", place=place, num_clients=num_clients)
    return option.keep(choice).tolist()


def test_the_window_moves_on_by_one_unit_per_round_and_wraps():
    windows = [window(Rolling(), 5, 3, round) for round in range(1, 7)]
    assert windows == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [0, 3, 4], [0, 1, 4], [0, 1, 2]]


def test_smaller_windows_lie_within_larger_ones():
    for round in range(1, 12):
        parts = [set(window(Rolling(), 11, num_kept, round)) for num_kept in range(1, 12)]
        assert all(small < large for small, large in itertools.pairwise(parts))


def test_a_stride_of_its_own_size_tiles_the_axis():
    assert [window(Rolling(stride=None), 6, 2, round) for round in (1, 2, 3, 4)] == [[0, 1], [2, 3], [4, 5], [0, 1]]
    # 3 of 8 units: all are held within ceil(8 / 3) = 3 rounds
    assert [window(Rolling(stride=None), 8, 3, round) for round in (1, 2, 3)] == [[0, 1, 2], [3, 4, 5], [0, 6, 7]]


@pytest.mark.parametrize("units", range(1, 25))
def test_tiles_cover_the_axis_in_as_many_rounds_as_fit_into_it(units):
    for num_kept in range(1, units + 1):
        rounds = range(1, math.ceil(units / num_kept) + 1)
        held = {unit for round in rounds for unit in window(Rolling(stride=None), units, num_kept, round)}
        assert held == set(range(units))


def test_striped_clients_cover_the_axis_in_one_round():
    striped = Rolling(phase="striped")
    # client c of 4 starts at c * 8 / 4, one further in each round
    assert [window(striped, 8, 2, 1, place, 4) for place in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [window(striped, 8, 2, 2, place, 4) for place in range(4)] == [[1, 2], [3, 4], [5, 6], [0, 7]]
    # 7 units among 3 clients: offsets 0, 7 // 3 = 2 and 14 // 3 = 4
    assert [window(striped, 7, 3, 1, place, 3) for place in range(3)] == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    assert [window(Rolling(), 7, 3, 1, place, 3) for place in range(3)] == [[0, 1, 2]] * 3


def test_blocks_are_kept_or_left_as_a_whole():
    option = Rolling(stride=2, block=2)
    windows = [window(option, 8, 4, round) for round in (1, 2, 3, 4, 5)]
    assert windows == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [0, 1, 6, 7], [0, 1, 2, 3]]
    assert window(option, 8, 3, 1) == [0, 1, 2, 3]  # ceil(3 / 2) = 2 blocks
    assert window(Rolling(stride=None, block=2), 8, 3, 2) == [4, 5, 6, 7]
    striped = Rolling(stride=2, block=2, phase="striped")
    assert [window(striped, 8, 2, 1, place, 3) for place in range(3)] == [[0, 1], [2, 3], [4, 5]]  # 4 blocks: 0, 1, 2


def test_the_last_block_may_be_short():
    option = Rolling(stride=4, block=4)  # 10 units: blocks of 4, 4 and 2
    assert [window(option, 10, 4, round) for round in (1, 2, 3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert window(option, 10, 5, 3) == [0, 1, 2, 3, 8, 9]
    assert window(option, 10, 10, 2) == list(range(10))
    assert window(option, 3, 1, 7) == [0, 1, 2]  # an axis of one block is kept whole


@pytest.mark.parametrize("block", [2, 3, 8])
def test_blocks_round_the_number_of_units_as_documented(block):
    option = Rolling(stride=block, block=block)
    for units in range(1, 25):
        for num_kept in range(1, units + 1):
            num_blocks = math.ceil(num_kept / block)
            lengths = {len(window(option, units, num_kept, round)) for round in range(1, units // block + 2)}
            missing = -units % block  # so many units does the last block lack
            assert lengths <= {num_blocks * block, num_blocks * block - missing}


@pytest.mark.parametrize("units", range(1, 25))
def test_the_law_of_coverage(units):
    """Over n / g rounds, g = gcd(n, stride), all units are held equally often iff g divides k; all ever iff g <= k."""
    for stride in range(1, units + 1):
        option, common = Rolling(stride=stride), math.gcd(units, stride)
        for num_kept in range(1, units + 1):
            times = [0] * units
            for start in range(0, units * stride // common, stride):  # the windows by brute force
                for offset in range(num_kept):
                    times[(start + offset) % units] += 1
            assert (len(set(times)) == 1) == (num_kept % common == 0)
            assert (min(times) == 0) == (common > num_kept)
            if min(times) == 0:
                with pytest.raises(ConfigError, match=f"{times.count(0)} of them are never in a window"):
                    window(option, units, num_kept, 1)
                continue
            rounds = torch.stack([torch.tensor(window(option, units, num_kept, 1 + r)) for r in range(units // common)])
            assert torch.bincount(rounds.view(-1), minlength=units).tolist() == times


@pytest.mark.parametrize("block", [2, 5])
def test_the_law_holds_of_blocks(block):
    for num_blocks in range(1, 9):
        units = num_blocks * block - 1
        for stride in range(1, num_blocks + 1):
            common = math.gcd(num_blocks, stride)
            for num_kept in range(1, num_blocks + 1):
                option = Rolling(stride=stride * block, block=block)
                if common > num_kept:
                    with pytest.raises(ConfigError, match=f"{num_kept} out of {num_blocks} blocks of {block} units"):
                        window(option, units, min(num_kept * block, units), 1)
                    continue
                rounds = range(1, num_blocks // common + 1)
                held = {u for r in rounds for u in window(option, units, min(num_kept * block, units), r)}
                assert held == set(range(units))


def test_a_stride_that_leaves_units_out_is_refused_with_one_that_does_not():
    # starts 0, 6, 12, 18 and windows of 4: units 4, 5, 10, 11, ... are left out; 5 is coprime to 24
    message = (
        r"extraction.stride is 6: windows of 4 out of 24 units of axis ffn.0 then start at multiples of 6 only, and 8 "
        r"of them are never in a window; with stride 5, or with null"
    )
    with pytest.raises(ConfigError, match=message):
        window(Rolling(stride=6), 24, 4, 1)
    # in blocks of 8: starts 0 and 2 of 4 blocks, windows of one
    with pytest.raises(
        ConfigError, match=r"1 out of 4 blocks of 8 units .* multiples of 2 only, and 2 of .* stride 8,"
    ):
        window(Rolling(stride=16, block=8), 32, 8, 1)


def test_the_advice_is_sound():
    for units in range(2, 25):
        for stride in (d for d in range(2, 2 * units + 1) if math.gcd(units, d) > 1):
            for num_kept in range(1, math.gcd(units, stride)):
                with pytest.raises(ConfigError) as caught:
                    window(Rolling(stride=stride), units, num_kept, 1)
                better = int(str(caught.value).split("with stride ")[1].split(",")[0])
                assert 1 <= better < stride
                assert num_kept % math.gcd(units, better) == 0


@pytest.mark.parametrize(
    ("inverse_width", "never_held"), [(2, 1 / 128), (4, 0.5 + 1 / 128), (8, 0.75 + 1 / 128), (16, 0.875 + 1 / 128)]
)
def test_two_dimensions_that_roll_in_phase_leave_a_hole(inverse_width, never_held):
    """A 128 × 128 matrix at widths 1/2, 1/4, 1/8, 1/16: 0.8, 50.8, 75.8 and 88.3 percent are never held."""
    assert hole(128, 128, inverse_width) == never_held


def test_two_dimensions_of_unequal_size_leave_a_hole_too():
    # at width 1/16 windows of 32 and 16: 32 + 16 - 1 of 256 cyclic distances occur
    assert hole(512, 256, 16) == 1 - 47 / 256  # 81.6 percent


def hole(num_rows, num_columns, inverse_width):
    """Share of the entries that no round holds, by counting: the cycle has lcm(rows, columns) rounds."""
    held = torch.zeros(num_rows, num_columns, dtype=torch.bool)
    for round in range(1, math.lcm(num_rows, num_columns) + 1):
        rows = torch.tensor(window(Rolling(), num_rows, num_rows // inverse_width, round))
        columns = torch.tensor(window(Rolling(), num_columns, num_columns // inverse_width, round))
        held[rows[:, None], columns] = True
    assert held.any(0).all()  # each unit for itself is held
    assert held.any(1).all()
    return 1 - held.sum().item() / held.numel()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block": 0}, "block is 0; it must be at least 1"),
        ({"stride": 0}, "stride is 0; with block 1 it must be a positive multiple of 1, or null"),
        ({"stride": -1}, "stride is -1"),
        ({"block": 8}, "stride is 1; with block 8 it must be a positive multiple of 8"),
        ({"stride": 12, "block": 8}, "stride is 12; with block 8"),
    ],
)
def test_values_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Rolling(**fields)


# --- clients that miss rounds ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    units=st.integers(1, 12),
    share=st.floats(0.05, 1.0),
    tiled=st.booleans(),
    block=st.integers(1, 2),
    delays=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_whatever_the_order_in_which_they_come_late_clients_hold_every_unit_equally_often(
    units, share, tiled, block, delays
):
    """Each client is asked whenever it is free; how late its replies come repeats a drawn pattern."""
    units *= block
    num_kept = block * max(1, round(share * units / block))
    option = Rolling(stride=None if tiled else block, block=block)
    stride = (num_kept if tiled else block) // block
    num_blocks = units // block
    cycle = num_blocks // math.gcd(num_blocks, stride)
    if num_kept // block % math.gcd(num_blocks, stride):
        return  # not even the windows of a client that is never late come out even
    for pattern in delays:
        held, missed, turns, number = Counter[int](), 0, 0, 0
        while turns < 2 * cycle:
            number += 1
            kept = option.keep(Choice("ffn.0", units, num_kept, number, "a", missed=missed)).tolist()
            assert kept == window(option, units, num_kept, turns + 1)
            held.update(kept)
            late = pattern[turns % len(pattern)]
            number, missed, turns = number + late, missed + late, turns + 1
        assert held == dict.fromkeys(range(units), 2 * cycle * num_kept // units)


def test_without_that_a_client_asked_in_every_second_round_would_see_one_half_for_ever():
    option = Rolling(stride=None)
    rounds = range(1, 20, 2)
    assert {tuple(window(option, 6, 3, number)) for number in rounds} == {(0, 1, 2)}
    tickets = [tuple(option.keep(Choice("ffn.0", 6, 3, number, "a", missed=number // 2)).tolist()) for number in rounds]
    assert tickets == [(0, 1, 2), (3, 4, 5)] * 5
