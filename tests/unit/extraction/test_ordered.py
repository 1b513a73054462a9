"""FjORD: prefixes, and the set P of widths from which steps draw."""

import pytest

from fedgen.extraction.ordered import Ordered
from fedgen.types import Choice, Steps


def test_the_first_units_in_every_round():
    kept = [Ordered().keep(Choice("ffn.0", 10, 4, round, "a")).tolist() for round in (1, 2, 9)]
    assert kept == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize(
    ("width", "steps"),
    [
        (1.0, (0.2, 0.4, 0.6, 0.8, 1.0)),
        (0.6, (0.2, 0.4, 0.6)),
        (0.59, (0.2, 0.4)),
        (0.2, (0.2,)),
        (0.125, (0.125,)),  # none of P fits: the client trains all it holds
    ],
)
def test_steps_draw_from_the_widths_that_the_client_holds(width, steps):
    assert Ordered().steps(width).widths == steps


def test_the_widths_are_a_setting():
    assert Ordered(widths=(0.25, 1.0), distill=True).steps(0.5) == Steps((0.25,), distill=True)
    assert not Ordered().distill


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((), r"widths is \[\]; it must be one or more shares above 0 and at most 1"),
        ((0.0, 1.0), "shares above 0 and at most 1"),
        ((0.5, 1.5), "shares above 0 and at most 1"),
        ((float("nan"),), "shares above 0 and at most 1"),
        ((1.0, 0.5), r"widths is \[1.0, 0.5\]; it must be ascending"),
        ((0.5, 0.5), "each share once"),
    ],
)
def test_widths_that_are_no_shares_are_refused(widths, message):
    with pytest.raises(ValueError, match=message):
        Ordered(widths=widths)
