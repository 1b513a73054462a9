"""Whether a draft's wording is that of its label: train on half, score the other half, and swap.

The judge is multinomial naive Bayes with uniform priors over the presence of word n-grams (Manning, Raghavan and
Schütze, "Introduction to Information Retrieval", 2008, chapter 13). It is written out here: a few lines of counting
give the same numbers on every machine, and need no library. Values of slots are taken out of the wording, so that
neither hides the other. A window of readings is judged by the shape of its curve.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random

from fedgen import seeds
from fedgen.synthesis.features import SLOT, masked, ngrams, readings, shape, words
from fedgen.task import Draft, Task

Judge = Callable[[Sequence[Draft], Sequence[Draft]], Sequence[Mapping[str, float]]]
"""Learns from the first drafts; says of each of the second the log-probability of every label that it has learned."""

SMOOTHING = 0.5
"""Added to every count (Lidstone)."""

_SLOT_NAME = re.compile(r"\{\w+\}")

MIN_LEARNED = 3
"""A label with fewer drafts in a half cannot be judged by that half."""


def halves(drafts: Sequence[Draft], seed: int) -> tuple[list[int], list[int]]:
    """Positions of the drafts in two halves; each label is split evenly, at random by the seed."""
    places: dict[str, list[int]] = {}
    for place, draft in enumerate(drafts):
        places.setdefault(draft.label, []).append(place)
    first, second = [], []
    for label in sorted(places):
        order = places[label]
        Random(seeds.integer(seed, "halves", label)).shuffle(order)
        first += order[: len(order) // 2]
        second += order[len(order) // 2 :]
    return sorted(first), sorted(second)


def doubts(drafts: Sequence[Draft], judge: Judge, seed: int) -> list[float | None]:
    """How much likelier another label is than the draft's own, in nats; None where that cannot be judged."""
    found: list[float | None] = [None] * len(drafts)
    one, other = halves(drafts, seed)
    for learned, scored in ((one, other), (other, one)):
        counts = Counter(drafts[place].label for place in learned)
        judged = [place for place in scored if counts[drafts[place].label] >= MIN_LEARNED]
        trusted = [drafts[place] for place in learned if counts[drafts[place].label] >= MIN_LEARNED]
        if not judged:
            continue
        told = judge(trusted, [drafts[place] for place in judged])
        for place, scores in zip(judged, told, strict=True):
            own = scores[drafts[place].label]
            found[place] = max(0.0, max(scores.values()) - own)
    return found


def judge_of(task: Task) -> Judge:
    """Naive Bayes over words and pairs of words, or for a sensor over what the curve looks like.

    What the task itself says of its commands, its templates, is learned with either half.
    """
    if task.kind == "sensor":
        return lambda learned, scored: _bayes(
            [(draft.label, shape(readings(task, draft))) for draft in learned],
            [shape(readings(task, draft)) for draft in scored],
        )
    known = [
        (name, _wording(_SLOT_NAME.sub(SLOT, text).casefold().split()))
        for name, label in task.labels.items()
        for form in label.forms
        for text in form.texts
    ]
    return lambda learned, scored: _bayes(
        [*known, *((draft.label, _said(draft)) for draft in learned)], [_said(draft) for draft in scored]
    )


def _said(draft: Draft) -> set[str]:
    """The wording, and apart from it the words of slot values.

    In `set the lantern to 40 percent` the wording is that of half the labels, and `lantern` decides.
    """
    values = {f"{SLOT}{word}" for value in draft.slots.values() for word in words(value) if not word[0].isdigit()}
    return _wording(masked(draft.text, draft.slots.values())) | values


def _wording(tokens: Sequence[str]) -> set[str]:
    """Words and pairs of words, with both ends."""
    return {*tokens, *ngrams(["^", *tokens, "$"], 2)}


def _bayes(learned: Sequence[tuple[str, set[str]]], scored: Sequence[set[str]]) -> list[dict[str, float]]:
    """Log-probabilities of the labels; features that were never learned say nothing.

    Features of a set are gone through in order, so that sums of floats are the same to the bit.
    """
    counts: dict[str, Counter[str]] = {}
    for label, features in learned:
        counts.setdefault(label, Counter()).update(features)
    known = {feature for counter in counts.values() for feature in counter}
    totals = {label: counter.total() + SMOOTHING * len(known) for label, counter in counts.items()}
    told = []
    for features in scored:
        seen = sorted(features & known)
        told.append(
            {
                label: math.fsum(math.log((counter[feature] + SMOOTHING) / totals[label]) for feature in seen)
                for label, counter in sorted(counts.items())
            }
        )
    return told
