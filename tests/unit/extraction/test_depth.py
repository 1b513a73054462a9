"""Layers that stay, by hand; among them those of the measurements on a model of 30 layers."""

import itertools

import pytest
import torch

from fedgen.extraction.depth import Depth
from fedgen.types import Choice


def kept(option, units, num_kept, scores=None):
    choice = Choice(
        "layer", units, num_kept, round=1, client="a", scores=None if scores is None else torch.tensor(scores)
    )
    return option.keep(choice).tolist()


def test_a_run_in_the_middle_goes():
    # ten layers, 0, 1 and 9 protected: of 2..8 the outer ones stay, one more in front if their number is odd
    assert kept(Depth(), 10, 8) == [0, 1, 2, 3, 4, 7, 8, 9]
    assert kept(Depth(), 10, 7) == [0, 1, 2, 3, 7, 8, 9]
    assert kept(Depth(), 10, 4) == [0, 1, 2, 9]
    assert sorted(set(range(30)) - set(kept(Depth(), 30, 24))) == [13, 14, 15, 16, 17, 18]


@pytest.mark.parametrize("num_kept", range(1, 31))
def test_what_goes_from_the_middle_is_one_run(num_kept):
    gone = sorted(set(range(30)) - set(kept(Depth(), 30, num_kept)))
    assert gone == list(range(30))[gone[0] : gone[-1] + 1] if gone else num_kept == 30


def test_evenly_spaced_layers_stay():
    strided = Depth(order="strided")
    # of 2..8 three: the middles of three stretches of 7 / 3 layers, 2 + (1.17, 3.5, 5.83) rounded down
    assert kept(strided, 10, 6) == [0, 1, 3, 5, 7, 9]
    assert kept(Depth(order="strided", num_first=0, num_last=0), 12, 4) == [1, 4, 7, 10]
    assert kept(Depth(order="strided", num_first=0, num_last=0), 12, 6) == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize("num_kept", range(3, 31))
def test_strides_differ_by_one_at_most(num_kept):
    between = kept(Depth(order="strided"), 30, num_kept)[2:-1]
    gaps = {b - a for a, b in itertools.pairwise(between)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_prefix_protects_nothing():
    assert kept(Depth(order="prefix"), 10, 4) == [0, 1, 2, 3]
    assert kept(Depth(order="prefix"), 10, 1) == [0]


def test_the_least_important_go_but_for_the_protected_ones():
    scores = [0.0, 0.0, 5.0, 1.0, 4.0, 4.0, 2.0, 0.0]
    importance = Depth(order="importance")
    assert kept(importance, 8, 5, scores) == [0, 1, 2, 4, 7]  # of equal scores the first
    assert kept(importance, 8, 6, scores) == [0, 1, 2, 4, 5, 7]
    assert kept(Depth(order="importance", num_first=0, num_last=0), 8, 3, scores) == [2, 4, 5]


@pytest.mark.parametrize("order", ["middle", "strided", "importance"])
def test_with_no_room_for_all_protected_layers_the_first_come_first(order):
    option, scores = Depth(order=order, num_first=2, num_last=2), [1.0] * 8
    assert kept(option, 8, 1, scores) == [0]
    assert kept(option, 8, 2, scores) == [0, 1]
    assert kept(option, 8, 3, scores) == [0, 1, 7]
    assert kept(option, 8, 4, scores) == [0, 1, 6, 7]
    # more are protected than there are
    assert kept(option, 3, 3, scores[:3]) == [0, 1, 2]
    assert kept(option, 1, 1, scores[:1]) == [0]


def test_only_the_order_of_importance_asks_for_scores():
    assert [Depth(order=order).needs_scores for order in ("middle", "strided", "prefix", "importance")] == [
        False,
        False,
        False,
        True,
    ]
    assert Depth().axes == ("layer",)
    with pytest.raises(AssertionError, match="needs scores"):
        kept(Depth(order="importance"), 8, 5)


@pytest.mark.parametrize("name", ["num_first", "num_last"])
def test_values_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is -1; it must be at least 0"):
        Depth(**{name: -1})
