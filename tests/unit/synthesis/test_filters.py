"""Planted bad drafts of every kind are caught by the filter that is there for it, and the good ones are kept."""

import math
from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from fedgen.synthesis import sieves
from fedgen.synthesis.agreement import judge_of
from fedgen.synthesis.features import SLOT, masked, readings
from fedgen.synthesis.filters import Evidence, Filters
from fedgen.task import Draft
from fedgen.types import Example, Message


def longest(text):
    """Stands in for a model: a text is as surprising as its longest word is long."""
    return float(max(map(len, text.split()), default=0))


MODEL = Evidence(likelihood=lambda texts: [longest(text) for text in texts], likelihood_of="longest word")


def sift(drafts, task, evidence=MODEL, **settings):
    quotas = dict.fromkeys(task.labels, len(drafts))
    return Filters(**settings).sift(drafts, task, evidence, quotas, 0)


def caught(sifted):
    """Text → the filter that rejects it."""
    return {rejection.draft.text: rejection.filter for rejection in sifted.rejected}


def of_label(drafts, label):
    return next(draft for draft in drafts if draft.label == label)


def refused(verdict):
    return {draft.text for draft, why in zip(verdict.drafts, verdict.reasons, strict=True) if why}


def test_good_commands_are_kept(drafts, task):
    sifted = sift(drafts, task, near_duplicate=0.99)
    assert len(sifted.kept) >= 0.98 * len(drafts)


def test_good_windows_are_kept(windows, sensor):
    sifted = sift(windows, sensor)
    assert len(sifted.kept) >= 0.95 * len(windows)


def test_each_kind_of_bad_command_is_caught_by_its_filter(drafts, task):
    on, off, volume = (of_label(drafts, label) for label in ("HassTurnOn", "HassTurnOff", "HassSetVolume"))
    planted = {
        "template tokens": replace(on, text=f"{on.text} {'x' * 5000}"),
        "schema": replace(volume, text=f"{volume.text} and 17 more"),
        "duplicates": replace(on, text=f"{on.text.upper()}!"),
        "perplexity": replace(off, text=f"{off.text} {'immediately' * 5}"),
        "repetition": replace(off, text=f"{off.text} now now now now now now now now now now now"),
    }
    held_out = Example((Message("user", drafts[60].text.upper() + "!"),), ""), Example(f"please {drafts[50].text}", "")
    evidence = replace(MODEL, evaluation=held_out)
    found = caught(sift([*drafts, *planted.values()], task, evidence, near_duplicate=0.99, max_characters=1000))
    assert {name: found.get(draft.text) for name, draft in planted.items()} == {name: name for name in planted}
    assert found[drafts[60].text] == "overlap"
    # It is short and only a part of the other, so they share no thirteen words.
    assert drafts[50].text not in found


def test_thirteen_words_in_a_row_are_too_many():
    words = [f"word{i}" for i in range(40)]
    held_out = (Example(" ".join(words[:20]), ""),)
    thirteen = Draft(" ".join(["so", *words[7:20], "then"]), "", "", {}, 0)
    twelve = Draft(" ".join(["so", *words[8:20], "then"]), "", "", {}, 0)
    assert refused(sieves.overlap([thirteen, twelve], held_out, 13)) == {thirteen.text}


def test_nearly_the_same_text_is_caught_and_another_value_is_not(task):
    def lamp(text, share):
        return Draft(text, f"LightSet(brightness={share}, name=work lamp)", "HassLightSet", {}, 0)

    one = lamp("could you dim the work lamp to 40 percent", 40)
    other, again = replace(one, text=one.text.replace("40", "45"), answer="other"), replace(one, text=f"{one.text}s")
    assert refused(sieves.duplicates([one, other, again], task, 0.85)) == {again.text}


def test_one_text_with_two_answers_is_kept_once(drafts, task):
    draft = drafts[0]
    verdict = sieves.duplicates([draft, replace(draft, answer="Other()"), draft], task, 0.85)
    assert verdict.reasons == [None, "the text is there with another answer", "the text is there already"]


def test_text_of_another_label_is_caught_by_the_other_half(drafts, task):
    others = [draft for draft in drafts if draft.label == "HassVacuumStart"][:6]
    mislabelled = {draft.text: replace(draft, label="HassSetVolume") for draft in others}
    mixed = [mislabelled.get(draft.text, draft) for draft in drafts]
    found = refused(sieves.consistency(mixed, judge_of(task), 4.0, 0))
    assert found >= set(mislabelled)
    assert len(found) <= len(mislabelled) + 0.02 * len(drafts)


def test_a_curve_of_another_label_is_caught_by_the_other_half(windows, sensor):
    wrong = {"dropout": "saturation", "stuck": "spike", "saturation": "normal"}
    mislabelled = {of_label(windows, own).text: replace(of_label(windows, own), label=wrong[own]) for own in wrong}
    mixed = [mislabelled.get(draft.text, draft) for draft in windows]
    found = refused(sieves.consistency(mixed, judge_of(sensor), 4.0, 0))
    assert found >= set(mislabelled)
    assert len(found) <= len(mislabelled) + 0.05 * len(windows)


def test_a_judge_of_ones_own_is_asked_about_the_half_that_it_has_not_seen(drafts):
    asked, labels = [], sorted({draft.label for draft in drafts})

    def judge(learned, scored):
        assert not {draft.text for draft in learned} & {draft.text for draft in scored}
        asked.extend(draft.text for draft in scored)
        return [{label: -float(label == "HassTurnOn") for label in labels} for _ in scored]

    found = refused(sieves.consistency(drafts, judge, 0.5, 0))
    assert Counter(asked) == Counter(draft.text for draft in drafts)
    assert found == {draft.text for draft in drafts if draft.label == "HassTurnOn"}


def test_a_label_with_too_few_drafts_is_not_judged(drafts, task):
    few = [*[d for d in drafts if d.label == "HassTurnOff"], *[d for d in drafts if d.label == "HassSetVolume"][:4]]
    assert sieves.consistency(few, judge_of(task), 0.0, 0).notes == {"not_judged": 4}


def test_windows_that_jump_about_are_caught(windows, sensor):
    rng = Random(1)
    normal = [draft for draft in windows if draft.label == "normal"]
    noise = [str(rng.choice([-9, 39])) for _ in range(sensor.num_readings)]
    noisy = replace(normal[0], text=sensor.render("room temperature", " ".join(noise)))
    found = refused(sieves.predictability([*normal, noisy], sensor, sieves.Band((0.25, 0.75), 1.0)))
    assert noisy.text in found
    assert len(found) <= 3


def test_readings_beyond_the_scale_are_caught_by_the_schema(windows, sensor):
    bad = replace(windows[0], text=" ".join([*windows[0].text.split()[:-1], "99.9"]))
    assert caught(sift([*windows[1:], bad], sensor))[bad.text] == "schema"


def test_readings_are_read_as_they_are_written(windows, sensor):
    for draft in windows:
        told = ["-" if value is None else f"{value:.1f}" for value in readings(sensor, draft)]
        assert draft.text == sensor.render("room temperature", " ".join(told))


def test_the_band_is_of_the_reference_if_there_is_one(drafts):
    # Longest words of 4, 5, … 24 letters: the quartiles are 9 and 19.
    reference = tuple("x" * length for length in range(4, 25))
    texts = [replace(drafts[0], text="y" * length) for length in (3, 4, 24, 25)]
    verdict = sieves.perplexity(texts, MODEL.likelihood, reference, sieves.Band((0.25, 0.75), 0.5))
    assert verdict.notes == {"lowest": 4.0, "highest": 24.0}
    assert verdict.reasons == ["the text is too predictable", None, None, "the text is too surprising"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_has_no_likelihood_is_rejected_and_does_not_move_the_band(drafts, value):
    def likelihood(texts):
        return [value if text == drafts[3].text else longest(text) for text in texts]

    band = sieves.Band((0.0, 1.0), 0.0)
    assert refused(sieves.perplexity(drafts, likelihood, (), band)) == {drafts[3].text}


def test_template_tokens_are_stripped_and_counted_or_rejected(drafts, task):
    dirty = replace(drafts[0], text=f"<|im_start|>{drafts[0].text}<|im_end|>")
    stripped = sift([dirty, *drafts[1:]], task, near_duplicate=None)
    assert stripped.notes["template tokens"]["tokens_found"] == 2
    assert drafts[0] in stripped.kept
    assert caught(sift([dirty, *drafts[1:]], task, template_tokens="reject"))[dirty.text] == "template tokens"
    answering = replace(drafts[0], answer=f"{drafts[0].answer}<|im_end|>")
    assert caught(sift([answering, *drafts[1:]], task))[answering.text] == "template tokens"


def test_a_label_with_too_few_distinct_ngrams_takes_no_more_of_the_same():
    texts = ["a b c", "a b c", "a b c", "a b d", "a b d"]
    verdict = sieves.diversity([Draft(text, "", "label", {}, 0) for text in texts], 3, 0.5)
    enough = "the label has enough of such texts"
    # Distinct over all: 1/1, 1/2, (1/3, too few), 2/3, 2/4.
    assert verdict.reasons == [None, None, enough, None, None]
    assert verdict.notes == {"distinct_3": 0.5}


def test_labels_are_cut_to_their_shares_and_the_first_stay(drafts, task):
    quotas = {label: place for place, label in enumerate(task.labels, start=1)}
    sifted = Filters(near_duplicate=None, consistency_margin=None).sift(drafts, task, Evidence(), quotas, 0)
    assert Counter(draft.label for draft in sifted.kept) == quotas
    off = [draft for draft in drafts if draft.label == "HassTurnOff"]
    assert [draft for draft in sifted.kept if draft.label == "HassTurnOff"] == off[: quotas["HassTurnOff"]]


def test_every_draft_is_kept_or_rejected_and_a_filter_that_is_null_is_left_out(drafts, task):
    optional = {
        "near_duplicate": "",
        "perplexity_quantiles": "perplexity",
        "consistency_margin": "consistency",
        "max_repetition": "repetition",
        "min_diversity": "diversity",
        "overlap_n": "overlap",
    }
    doubled = [*drafts, *drafts[:10]]
    for settings in ({}, dict.fromkeys(optional)):
        sifted = sift(doubled, task, **settings)
        assert len(sifted.kept) + len(sifted.rejected) == len(doubled)
    skipped = {name for name, notes in sifted.notes.items() if "skipped" in notes}
    assert skipped == set(optional.values()) - {""}
    assert set(caught(sifted).values()) == {"duplicates"}


def test_no_drafts_are_no_error(task):
    assert sift([], task).kept == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"near_duplicate": 0.0}, "near_duplicate is 0.0"),
        ({"perplexity_quantiles": (0.7, 0.2)}, "the lower first"),
        ({"perplexity_slack": -1.0}, "perplexity_slack is -1.0"),
        ({"consistency_margin": -0.1}, "consistency_margin is -0.1"),
        ({"overlap_n": 0}, "overlap_n is 0"),
        ({"max_characters": 0}, "max_characters is 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Filters(**settings)


def test_evidence_without_a_name_is_refused():
    with pytest.raises(ValueError, match="likelihood_of"):
        Evidence(likelihood=lambda texts: [0.0] * len(texts))


def test_slot_values_are_masked_longest_first():
    found = masked("dim the bedroom lamp in the bedroom", ["bedroom", "bedroom lamp"])
    assert found == ["dim", "the", SLOT, "in", "the", SLOT]
