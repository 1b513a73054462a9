"""Every example, and nobody is asked."""

from fedgen.selection.all import All


def test_every_position_is_kept_whatever_the_labels():
    assert All().keep([0.0] * 4, ["a", "", "b", "a"]) == [0, 1, 2, 3]


def test_no_model_is_needed():
    assert not All().needs_scores
