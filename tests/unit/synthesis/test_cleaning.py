"""No template token is left, however it was hidden, and other text is left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgen.synthesis.cleaning import FAMILIES, UNSEEN, cleaned

MARKS = [
    "<|im_start|>",
    "<|eot_id|>",
    "</s>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<start_of_turn>",
    "<think>",
    "<|im_end|>",
]


@pytest.mark.parametrize("mark", MARKS)
def test_marks_of_the_usual_templates_go_and_are_counted(mark):
    assert cleaned(f"turn {mark}on the lamp{mark}") == ("turn on the lamp", 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|im_<|im_end|>start|>lamp", "lamp"),
        ("<|im_\u200bend|>lamp", "lamp"),
        ("<\x00/s>lamp", "lamp"),
        ("</</s>s>lamp", "lamp"),
        ("[IN[INST]ST]lamp", "lamp"),
    ],
)
def test_marks_that_are_hidden_in_each_other_go_as_well(text, expected):
    assert cleaned(text)[0] == expected


@given(st.lists(st.sampled_from([*MARKS, "<|", "|>", "im_end", "<", "/s>", "lamp", " ", "\u200b", "[", "INST]"])))
def test_nothing_of_a_template_is_left_and_cleaning_again_changes_nothing(pieces):
    text, _ = cleaned("".join(pieces))
    assert not FAMILIES.search(text)
    assert not UNSEEN.search(text)
    assert cleaned(text) == (text, 0)


def test_tokens_of_a_tokenizer_go_too():
    assert cleaned("turn ~END~on", ["~END~", "~", ""]) == ("turn on", 1)


@pytest.mark.parametrize("text", ["dim to 40% < 50 > 30", "x|y", "the <b>lamp</b>", "[1, 2]", "21.5 °C, größer"])
def test_other_text_is_left_alone(text):
    assert cleaned(text) == (text, 0)
