"""The offline generator says what the description says, and only that."""

import re
from collections import Counter

import pytest

from fedgen.config.catalogue import shipped
from fedgen.generator.grammar import Grammar, of_length
from fedgen.task_file import read_task
from fedgen.task_parts import Form

TASK = read_task(shipped("configs") / "task" / "smart_home.yaml")
OPTION = Grammar()
DRAFTS = list(OPTION.generate(TASK, OPTION.plan(TASK, 400, 0), 0))


def test_all_that_it_says_is_wellformed():
    assert Counter(TASK.wellformed(draft) for draft in DRAFTS) == {None: 400}


def test_what_it_says_is_a_template_of_the_task_in_a_tone_with_the_values_put_in():
    wraps = [re.escape(wrap).replace(r"\{text\}", "(.*)") for ways in TASK.tones.values() for wrap in ways]
    for draft in DRAFTS:
        texts = [t.format(**draft.slots) for f in TASK.labels[draft.label].forms if set(f.slots) == set(draft.slots)
                 for t in f.texts]  # fmt: skip
        bare = [match[1] for wrap in wraps if (match := re.fullmatch(wrap, draft.text))]
        assert set(bare) & set(texts), draft


def test_most_of_it_is_said_once():
    assert len({draft.text for draft in DRAFTS}) > 380


def test_short_and_long_are_the_halves_of_a_forms_sentences():
    form = Form("A()", ("a b c", "a", "a b c d e", "a b", "a b c d"))
    assert of_length(form, "short") == ["a", "a b", "a b c"]
    assert of_length(form, "long") == ["a b c", "a b c d", "a b c d e"]
    assert of_length(Form("A()", ("a",)), "short") == of_length(Form("A()", ("a",)), "long") == ["a"]


def test_a_variation_is_another_sentence_for_the_same_answer():
    varied = list(OPTION.vary(TASK, DRAFTS, 1.0, 0))
    assert all(TASK.wellformed(draft) is None for draft in varied)
    changed = sum(a.text != b.text for a, b in zip(DRAFTS, varied, strict=True))
    half = sum(a.text != b.text for a, b in zip(DRAFTS, OPTION.vary(TASK, DRAFTS, 0.5, 0), strict=True))
    assert changed > 300
    assert 0.35 * changed < half < 0.65 * changed


def test_no_order_is_of_nothing():
    with pytest.raises(ValueError, match="per_order is 0; it must be at least 1"):
        Grammar(per_order=0)
