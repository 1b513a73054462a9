"""Values from yaml against annotations."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgen.config.fit import Misfit, fit


@pytest.mark.parametrize(
    ("value", "hint", "wanted"),
    [
        (3, int, 3),
        (3, float, 3.0),
        ("1e-3", float, 1e-3),
        ("-2.5E+2", float, -250.0),
        (None, int | None, None),
        (4, int | None, 4),
        ("adamw", Literal["adamw", "sgd"], "adamw"),
        (["a", "b"], tuple[str, ...], ("a", "b")),
        ([1, "x"], tuple[int, str], (1, "x")),
        ([1, 2], list[float], [1.0, 2.0]),
        ("all", str | tuple[str, ...], "all"),
        (["a"], str | tuple[str, ...], ("a",)),
        ({"a": 1}, Mapping[str, float], {"a": 1.0}),
        ("here", Path, Path("here")),
        (True, bool, True),
        ({"whatever": [1]}, Any, {"whatever": [1]}),
    ],
)
def test_what_fits_arrives_as_the_annotation_wants_it(value, hint, wanted):
    found = fit(value, hint)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (True, int, "not a whole number"),
        (True, float, "not a number"),
        (1.5, int, "1.5 is not a whole number"),
        ("3", int, "'3' is not a whole number"),
        ("fast", float, "not a number"),
        (math.nan, float, "not a finite number"),
        (-math.inf, float, "not a finite number"),
        (None, int, "not a whole number"),
        (2026, str, "2026 is not text; quote it twice"),
        ("adam", Literal["adamw", "sgd"], "'adam' is not one of 'adamw', 'sgd'"),
        (1, Literal[True], "not one of True"),
        ("q_proj", tuple[str, ...], r"not a list; write \[q_proj\]"),
        ([1], tuple[int, int], "has 1 items; expected 2"),
        (["a", 1], tuple[str, ...], "1 is not text"),
        ("x", int | None, "'x' is not a whole number or null"),
        ([], dict[str, int], "not a mapping"),
        (1, bool, "not true or false"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_wanted(value, hint, message):
    with pytest.raises(Misfit, match=message):
        fit(value, hint)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_written_as_text_is_the_number(number):
    assert fit(repr(number), float) == number


def test_annotations_that_options_do_not_use_are_a_defect():
    with pytest.raises(TypeError, match="do not use"):
        fit(1, "int")
