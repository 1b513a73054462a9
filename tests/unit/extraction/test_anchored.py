import math

import pytest
import torch

from fedgen.errors import ConfigError
from fedgen.extraction.anchored import Anchored
from fedgen.extraction.importance import Importance
from fedgen.extraction.rolling import Rolling
from fedgen.types import Choice

SCORES = torch.tensor([0.0, 9.0, 1.0, 2.0, 8.0, 3.0, 4.0, 5.0])
"""Units 1 and 4 matter most; the others are 0, 2, 3, 5, 6, 7."""


def choice(num_kept=4, round=1, scores=SCORES, **others):
    return Choice("ffn.0", len(scores), num_kept, round, "a", scores=scores, **others)


def test_anchors_stay_and_the_rest_is_tiled():
    kept = [Anchored().keep(choice(round=round)).tolist() for round in (1, 2, 3, 4)]
    # windows of two over 0, 2, 3, 5, 6, 7
    assert kept == [[0, 1, 2, 4], [1, 3, 4, 5], [1, 4, 6, 7], [0, 1, 2, 4]]


def test_a_stride_counts_units_that_are_no_anchors():
    kept = [Anchored(stride=1).keep(choice(round=round)).tolist() for round in (1, 2, 3, 6)]
    assert kept == [[0, 1, 2, 4], [1, 2, 3, 4], [1, 3, 4, 5], [0, 1, 4, 7]]


def test_striped_clients_share_the_anchors_and_divide_the_rest():
    striped = Anchored(phase="striped")
    kept = [striped.keep(choice(place=place, num_clients=3)).tolist() for place in range(3)]
    assert kept == [[0, 1, 2, 4], [1, 3, 4, 5], [1, 4, 6, 7]]


def test_of_a_fraction_of_an_anchor_none_is_made():
    assert Anchored().keep(choice(num_kept=3)).tolist() == [0, 1, 2]  # anchor 1, window of two over 0, 2, 3, ...
    assert [Anchored().keep(choice(1, round)).tolist() for round in range(1, 9)] == [[unit] for unit in range(8)]


@pytest.mark.parametrize("num_kept", range(1, 9))
def test_the_ends_are_rolling_and_importance(num_kept):
    for round in (1, 2, 5):
        asked = choice(num_kept, round)
        assert torch.equal(Anchored(anchors=0.0).keep(asked), Rolling(stride=None).keep(asked))
        assert torch.equal(Anchored(anchors=1.0).keep(asked), Importance().keep(asked))


@pytest.mark.parametrize("anchors", [0.0, 0.25, 0.5, 0.9])
def test_every_unit_has_its_turn_and_the_others_equally_often(anchors):
    units = 13
    scores = torch.rand(units, generator=torch.Generator().manual_seed(3))
    for num_kept in range(1, units + 1):
        num_anchors = int(anchors * num_kept)
        rest, size = units - num_anchors, num_kept - num_anchors
        rounds = rest // math.gcd(rest, size)
        times = torch.zeros(units)
        for round in range(1, rounds + 1):
            times[Anchored(anchors=anchors).keep(choice(num_kept, round, scores))] += 1
        top = torch.argsort(scores, descending=True)
        assert (times[top[:num_anchors]] == rounds).all()
        assert (times[top[num_anchors:]] == rounds * size / rest).all()


def test_a_stride_that_leaves_units_out_is_refused():
    # six units besides the anchors; windows of two that start at 0 and 3 leave out the third and the sixth of them
    with pytest.raises(
        ConfigError, match=r"stride is 3: windows of 2 out of 6 units .* 2 of them are never in a window"
    ):
        Anchored(stride=3).keep(choice())


def test_it_asks_for_scores_and_cannot_do_without():
    assert Anchored().needs_scores
    with pytest.raises(AssertionError, match="needs scores"):
        Anchored().keep(Choice("ffn.0", 4, 2, round=1, client="a"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"anchors": -0.1}, "anchors is -0.1; it must be a share from 0"),
        ({"anchors": 1.1}, "anchors is 1.1"),
        ({"anchors": float("nan")}, "anchors is nan"),
        ({"stride": 0}, "stride is 0; it must be at least 1, or null"),
    ],
)
def test_values_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Anchored(**fields)


def test_rounds_that_a_client_missed_do_not_move_its_window():
    for round in (3, 4, 9):
        assert torch.equal(Anchored().keep(choice(round=round, missed=2)), Anchored().keep(choice(round=round - 2)))
