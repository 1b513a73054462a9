"""HeteroFL: prefixes, the same in every round and for every client of one width."""

import pytest

from fedgen.extraction.static import Static
from fedgen.types import Choice


@pytest.mark.parametrize("round", [1, 2, 17])
@pytest.mark.parametrize("client", ["a", "b"])
def test_the_first_units_in_every_round_for_everybody(round, client):
    kept = Static().keep(Choice("ffn.0", units=8, num_kept=3, round=round, client=client))
    assert kept.tolist() == [0, 1, 2]


def test_a_smaller_part_lies_within_a_larger_one():
    # the five levels of the paper on an axis of 16 units
    parts = [Static().keep(Choice("ffn.0", 16, num_kept, 1, "a")).tolist() for num_kept in (16, 8, 4, 2, 1)]
    assert parts == [list(range(16)), list(range(8)), [0, 1, 2, 3], [0, 1], [0]]


def test_every_step_uses_all_and_nobody_is_asked_for_scores():
    assert Static().steps(0.5).widths == ()
    assert not Static().needs_scores
