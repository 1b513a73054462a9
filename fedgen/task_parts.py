"""What a task's description consists of: slots, forms, labels and channels. ``task`` puts them together."""

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

FAULTS = ("none", "spike", "stuck", "drift", "dropout", "saturation")
"""What can be wrong with a sensor: nothing, single readings far off, one value repeated, a slow departure, readings
that are missing, and readings at the end of the scale."""


@dataclass(frozen=True)
class Slot:
    """What a command leaves open: one of some words, or a number.

    Attributes:
        means: what it is, in words.
        values: what is said → what stands in the answer for it; empty for a number.
        low: smallest number; None for words.
        high: largest number.
        step: between numbers that people say.
        unit: what the number counts.
    """

    means: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    step: float = 1.0
    unit: str = ""

    @property
    def choices(self) -> tuple[str, ...]:
        """Everything that can be said for it."""
        if self.low is None or self.high is None:
            return tuple(self.values)
        return tuple(spell(self.low + i * self.step) for i in range(int((self.high - self.low) / self.step + 1e-9) + 1))

    def answer(self, said: str) -> str:
        """What stands in the answer for what is said."""
        return self.values.get(said, said)


@dataclass(frozen=True)
class Form:
    """One way in which a label is meant: which slots it fills, and what can be said for it.

    Attributes:
        answer: the answer, with slots in braces.
        texts: sentences with the same slots in braces; demonstrations for a model, and all that a grammar says.
        mentions: words of which a text must have one, where the answer says something that is no slot.
        language: of the texts.
    """

    answer: str
    texts: tuple[str, ...] = ()
    mentions: tuple[str, ...] = ()
    language: str = "en"

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of its slots, in the order in which the answer has them."""
        return tuple(dict.fromkeys(slots_of(self.answer)))


@dataclass(frozen=True)
class Label:
    """A class of examples: an intent, or a state of a sensor.

    Attributes:
        means: what it is, in words.
        forms: how it is meant; a sensor's label has one without texts.
        cues: words of which every text must have one; empty if there are none that all texts share.
        avoids: words that no text may have, since they mean another label.
        fault: what is wrong with the sensor, for a sensor's label.
    """

    means: str
    forms: tuple[Form, ...]
    cues: tuple[str, ...] = ()
    avoids: tuple[str, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class Channel:
    """One quantity that a sensor reads.

    Attributes:
        device: type of the device that the sensor is in.
        unit: of the readings.
        low: smallest reading that the sensor can give.
        high: largest reading that the sensor can give.
        usual_low: where readings of a healthy sensor begin.
        usual_high: where they end.
        interval_s: seconds between readings.
        period_s: seconds after which the course repeats itself, a day as a rule.
        noise: standard deviation of what is not trend or season, in the unit.
        decimals: digits behind the point.
    """

    device: str
    unit: str
    low: float
    high: float
    usual_low: float
    usual_high: float
    interval_s: float
    noise: float
    period_s: float = 86400.0
    decimals: int = 1


def slots_of(template: str) -> Iterator[str]:
    """Names in braces, in order; a ValueError if the braces do not match."""
    return (name for _, name, _, _ in string.Formatter().parse(template) if name is not None)


def spell(number: float) -> str:
    """A number as it is said: no point where there is nothing behind it.

    >>> spell(20.0), spell(20.5)
    ('20', '20.5')
    """
    return f"{round(number, 6):g}" if abs(number) < 1e6 else str(round(number))


def spoken_interval(seconds: float) -> str:
    """Time between readings in words.

    >>> spoken_interval(600.0), spoken_interval(90.0)
    ('10 min', '90 s')
    """
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds % size == 0:
            return f"{spell(seconds / size)} {unit}"
    return f"{spell(seconds)} s"
