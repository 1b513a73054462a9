import itertools

import pytest
import torch

from fedgen.extraction.importance import Importance
from fedgen.types import Choice


def kept(scores, num_kept, **others):
    choice = Choice("ffn.0", len(scores), num_kept, round=1, client="a", scores=torch.tensor(scores))
    return Importance(**others).keep(choice).tolist()


def test_the_largest_scores_stay_in_the_order_of_the_axis():
    assert kept([0.1, 0.9, 0.3, 0.8, 0.2], 2) == [1, 3]
    assert kept([0.1, 0.9, 0.3, 0.8, 0.2], 3) == [1, 2, 3]
    assert kept([-3.0, -1.0, -2.0], 1) == [1]


def test_of_equal_scores_the_first_stay():
    assert kept([1.0, 2.0, 1.0, 1.0, 2.0], 3) == [0, 1, 4]
    assert kept([0.0] * 100, 7) == [0, 1, 2, 3, 4, 5, 6]


def test_a_smaller_part_lies_within_a_larger_one():
    scores = torch.rand(30, generator=torch.Generator().manual_seed(0)).tolist()
    parts = [set(kept(scores, num_kept)) for num_kept in range(1, 31)]
    assert all(small < large for small, large in itertools.pairwise(parts))


def test_it_asks_for_scores_and_cannot_do_without():
    assert Importance().needs_scores
    with pytest.raises(AssertionError, match="needs scores"):
        Importance().keep(Choice("ffn.0", 4, 2, round=1, client="a"))
