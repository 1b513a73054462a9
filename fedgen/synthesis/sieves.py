"""One filter each: drafts in, and for each of them why it is rejected, or None. ``filters`` puts them in a row."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedgen.synthesis.agreement import Judge, doubts
from fedgen.synthesis.cleaning import cleaned
from fedgen.synthesis.duplicates import near
from fedgen.synthesis.features import ngrams, normal, readings, roughness, words
from fedgen.task import Draft, Task
from fedgen.types import Example

Likelihood = Callable[[Sequence[str]], Sequence[float]]
"""Texts → mean negative log-likelihood per token, in nats."""

MIN_FOR_QUANTILES = 20
"""Fewer texts have no quantiles worth the name."""


@dataclass(frozen=True)
class Verdict:
    """What a filter says.

    Attributes:
        drafts: all of them, as they are after it.
        reasons: why each is rejected, in words that are the same for all such drafts; None if it is kept.
        notes: what else is to be said: numbers that it used, or that it was skipped.
    """

    drafts: Sequence[Draft]
    reasons: Sequence[str | None]
    notes: Mapping[str, int | float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Band:
    """What is usual among some numbers.

    Attributes:
        quantiles: two of them, the lower first.
        slack: the band is wider on each side by this many times their distance.
    """

    quantiles: tuple[float, float]
    slack: float

    def around(self, values: Sequence[float]) -> tuple[float, float] | None:
        """Lowest and highest usual number; None if there are too few to say."""
        finite = [value for value in values if math.isfinite(value)]
        if len(finite) < MIN_FOR_QUANTILES:
            return None
        low, high = (quantile(finite, share) for share in self.quantiles)
        return low - self.slack * (high - low), high + self.slack * (high - low)


def skipped(drafts: Sequence[Draft], why: str) -> Verdict:
    """All are kept, since the filter cannot or shall not judge."""
    return Verdict(drafts, [None] * len(drafts), {"skipped": why})


def clean(drafts: Sequence[Draft], tokens: Sequence[str], max_characters: int, *, strip: bool) -> Verdict:
    """Takes template tokens out of texts, or rejects these; rejects answers that have some, and texts that are long."""
    after, reasons, total = list[Draft](), list[str | None](), 0
    for draft in drafts:
        text, number = cleaned(draft.text, tokens)
        total += number
        why = None
        if number and not strip:
            why = "the text has template tokens"
        elif cleaned(draft.answer, tokens)[1]:
            why = "the answer has template tokens"
        elif len(text) > max_characters:
            why = f"the text has more than {max_characters} characters"
        after.append(draft if why else replace(draft, text=text))
        reasons.append(why)
    return Verdict(after, reasons, {"tokens_found": total})


def schema(drafts: Sequence[Draft], task: Task) -> Verdict:
    """What the task itself says: labels, slots, units, ranges."""
    return Verdict(drafts, [task.wellformed(draft) for draft in drafts])


def duplicates(drafts: Sequence[Draft], task: Task, threshold: float | None) -> Verdict:
    """Of texts that are the same, or nearly the same for one answer, the first is kept."""
    sensor = task.kind == "sensor"
    reasons, answers = list[str | None](), dict[str, str]()
    for draft in drafts:
        text = " ".join(draft.text.split()) if sensor else normal(draft.text)
        if text not in answers:
            answers[text] = draft.answer
            reasons.append(None)
        elif answers[text] == draft.answer:
            reasons.append("the text is there already")
        else:
            reasons.append("the text is there with another answer")
    if threshold is not None:
        new = [place for place, why in enumerate(reasons) if why is None]
        found = near([drafts[place] for place in new], threshold, by_words=sensor)
        for place, original in zip(new, found, strict=True):
            reasons[place] = None if original is None else "the text is nearly one that is there already"
    return Verdict(drafts, reasons)


def perplexity(drafts: Sequence[Draft], likelihood: Likelihood, reference: Sequence[str], band: Band) -> Verdict:
    """Texts that a model finds as surprising as the others, or as public ones."""
    # Rounded, since a model's last digits may depend on the batch and on the number of threads.
    values = [round(value, 3) for value in likelihood([draft.text for draft in drafts])]
    found = band.around([round(value, 3) for value in likelihood(reference)] if reference else values)
    if found is None:
        return skipped(drafts, f"there are fewer than {MIN_FOR_QUANTILES} texts to take quantiles of")
    reasons = [_outside(value, found, "the text is too predictable", "the text is too surprising") for value in values]
    return Verdict(drafts, reasons, {"lowest": round(found[0], 4), "highest": round(found[1], 4)})


def predictability(drafts: Sequence[Draft], task: Task, band: Band) -> Verdict:
    """Windows whose readings are foretold by the ones before them no worse than in others of their label.

    Those that are foretold better stay: a sensor that stands still is a fault to be learned, and where its label says
    otherwise the other half of the drafts tells.
    """
    values = [roughness(readings(task, draft)) for draft in drafts]
    reasons: list[str | None] = [None] * len(drafts)
    for label in sorted({draft.label for draft in drafts}):
        places = [place for place, draft in enumerate(drafts) if draft.label == label]
        found = band.around([values[place] for place in places])
        for place in places if found else ():
            assert found is not None
            reasons[place] = _outside(values[place], (-math.inf, found[1]), "", "the curve is too rough")
    return Verdict(drafts, reasons)


def consistency(drafts: Sequence[Draft], judge: Judge, margin: float, seed: int) -> Verdict:
    """Drafts whose label is about as likely as any other to a judge that has seen only the other half."""
    found = doubts(drafts, judge, seed)
    why = "the other half of the drafts speaks for another label"
    reasons = [why if doubt is not None and doubt > margin else None for doubt in found]
    return Verdict(drafts, reasons, {"not_judged": sum(doubt is None for doubt in found)})


def repetition(drafts: Sequence[Draft], max_repetition: float) -> Verdict:
    """Texts most of whose pairs of words are new."""
    why = "the text repeats itself"
    return Verdict(drafts, [why if repeats(words(draft.text)) > max_repetition else None for draft in drafts])


def diversity(drafts: Sequence[Draft], n: int, min_diversity: float) -> Verdict:
    """Texts that add an n-gram to their label, as long as the label has too few distinct ones."""
    reasons, seen, totals = list[str | None](), dict[str, set[str]](), Counter[str]()
    for draft in drafts:
        grams, known = ngrams(draft.text.casefold().split(), n), seen.setdefault(draft.label, set())
        total = totals[draft.label] + len(grams)
        if known.issuperset(grams) and len(known) < min_diversity * total:
            reasons.append("the label has enough of such texts")
            continue
        known.update(grams)
        totals[draft.label] = total
        reasons.append(None)
    distinct = sum(map(len, seen.values())) / max(1, totals.total())
    return Verdict(drafts, reasons, {f"distinct_{n}": round(distinct, 4)})


def overlap(drafts: Sequence[Draft], evaluation: Sequence[Example], n: int) -> Verdict:
    """Texts that share no n words in a row with an evaluation example; shorter ones are compared whole."""
    if not evaluation:
        return skipped(drafts, "there are no evaluation examples")
    held_out = {gram for example in evaluation for gram in ngrams(words(example.text), n)}
    why = "the text overlaps with an evaluation example"
    reasons = [None if held_out.isdisjoint(ngrams(words(draft.text), n)) else why for draft in drafts]
    return Verdict(drafts, reasons, {"evaluation_examples": len(evaluation)})


def balance(drafts: Sequence[Draft], quotas: Mapping[str, int]) -> Verdict:
    """The first of each label, as many as are wanted."""
    counts, reasons = Counter[str](), list[str | None]()
    for draft in drafts:
        counts[draft.label] += 1
        reasons.append(None if counts[draft.label] <= quotas[draft.label] else "the label has as many as are wanted")
    return Verdict(drafts, reasons)


def repeats(tokens: Sequence[str]) -> float:
    """Share of the pairs of words that occur before.

    >>> repeats("turn it on turn it on turn it on".split())
    0.625
    """
    pairs = ngrams(tokens, 2)
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """By linear interpolation between the two nearest.

    >>> quantile([1.0, 2.0, 4.0], 0.75)
    3.0
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _outside(value: float, band: tuple[float, float], below: str, above: str) -> str | None:
    low, high = band
    if value < low:
        return below
    # What is no number is above everything.
    return None if value <= high else above
