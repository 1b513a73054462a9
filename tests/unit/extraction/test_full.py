from fedgen.extraction.full import Full
from fedgen.types import Choice


def test_nothing_is_cut_whatever_the_width():
    assert Full().axes == ()
    assert not Full().needs_scores
    assert Full().keep(Choice("ffn.0", units=4, num_kept=2, round=3, client="a")).tolist() == [0, 1, 2, 3]
    assert Full().steps(0.5).widths == ()
