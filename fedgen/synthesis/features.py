"""What filters look at in a text: its words, its n-grams, and for windows of readings the shape of the curve."""

import itertools
import math
import re
from collections.abc import Iterable, Sequence

from fedgen.task import Draft, Task

WORD = re.compile(r"\w+(?:[.,]\d+)*|[^\w\s]", re.UNICODE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

SLOT = "\x00"
"""Stands for a slot's value; no word looks like it."""


def words(text: str) -> list[str]:
    """Words in lower case, numbers whole, punctuation left out.

    >>> words("Set it to 21.5 °C, please!")
    ['set', 'it', 'to', '21.5', 'c', 'please']
    """
    return [word for word in WORD.findall(text.casefold()) if word[0].isalnum() or word[0] == "_"]


def normal(text: str) -> str:
    """The text as its words alone; texts that differ in case, blanks and punctuation are the same."""
    return " ".join(words(text))


def ngrams(tokens: Sequence[str], n: int) -> list[str]:
    """Runs of n tokens; the whole, if it has fewer.

    >>> ngrams(["a", "b", "c"], 2), ngrams(["a"], 2)
    (['a b', 'b c'], ['a'])
    """
    if len(tokens) <= n:
        return [" ".join(tokens)] if tokens else []
    return [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def masked(text: str, values: Iterable[str]) -> list[str]:
    """Words of the text with each slot value as one placeholder, so that only the wording is left.

    >>> masked("turn on the ceiling lamp", ["ceiling lamp"]) == ["turn", "on", "the", SLOT]
    True
    """
    said = f" {normal(text)} "
    for value in sorted(map(normal, values), key=len, reverse=True):
        if value:
            said = said.replace(f" {value} ", f" {SLOT} ")
    return said.split()


def readings(task: Task, draft: Draft) -> list[float | None]:
    """Readings of a window in order, None for those that are missing; empty if the text is no window of the task."""
    channel = draft.slots.get("channel", "")
    if channel not in task.channels:
        return []
    before, _, after = task.render(channel, SLOT).partition(SLOT)
    if not (draft.text.startswith(before) and draft.text.endswith(after)):
        return []
    told = draft.text[len(before) : len(draft.text) - len(after)].split()
    if not all(reading == task.missing or NUMBER.fullmatch(reading) for reading in told):
        return []
    return [None if reading == task.missing else float(reading) for reading in told]


def steps(values: Sequence[float]) -> list[float]:
    """Differences of neighbours."""
    return [b - a for a, b in itertools.pairwise(values)]


def shape(window: Sequence[float | None]) -> set[str]:
    """What the curve of a window looks like, in a few words that do not depend on its unit or level.

    They are about the largest step, the spread and the shift between the ends, each in halvings against the usual step;
    whether the largest step is taken back at once; the longest run of one value and where in the range it lies; and
    readings that are missing.
    """
    values = [value for value in window if value is not None]
    found = {f"gaps {_octave(1.0 + len(window) - len(values))}"}
    if len(values) < 4:
        return found | {f"few {len(values)}"}
    moves = [abs(step) for step in steps(values)]
    moving = sorted(move for move in moves if move > 0)
    usual = moving[len(moving) // 2] if moving else 1.0
    low, high = min(values), max(values)
    length, value = _longest_run(values)
    quarter = max(1, len(values) // 4)
    shift = abs(sum(values[-quarter:]) - sum(values[:quarter])) / quarter
    largest = max(range(len(moves)), key=moves.__getitem__)
    after = values[largest + 2] if largest + 2 < len(values) else values[largest + 1]
    back = abs(after - values[largest]) < moves[largest] / 2
    place = "none" if high == low else "top" if value == high else "bottom" if value == low else "inside"
    return found | {
        f"step {_octave(moves[largest] / usual)}",
        f"spread {_octave((high - low) / usual)}",
        f"run {_octave(float(length))} {place}",
        f"run {_octave(float(length))}",
        f"shift {_octave(shift / usual)}",
        f"back {back} {moves[largest] > 4 * usual}",
    }


def roughness(window: Sequence[float | None]) -> float:
    """How badly each reading is foretold by the one before it: log of the mean step against the spread.

    It takes the place of a perplexity, where a model of language has nothing to say.
    """
    values = [value for value in window if value is not None]
    moves = [abs(step) for step in steps(values)]
    spread = max(values, default=0.0) - min(values, default=0.0)
    return math.log(1e-3 + sum(moves) / len(moves) / spread) if spread > 0 else math.log(1e-3)


def _octave(ratio: float) -> int:
    """Halvings, rounded, within -3 and 8."""
    return max(-3, min(8, round(math.log2(ratio)))) if ratio > 0 else -3


def _longest_run(values: Sequence[float]) -> tuple[int, float]:
    """Length and value of the longest run of equal neighbours."""
    runs = [(len(list(group)), value) for value, group in itertools.groupby(values)]
    return max(runs, key=lambda run: run[0])
