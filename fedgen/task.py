"""A task, described in public: what can be meant, in which words and numbers; not one row of anybody's data.

A generator writes examples from such a description alone (GPT-FL: Zhang et al., 2023, arXiv 2306.02210, stage 1, where
the server knows the names of the classes and nothing else). The answer to a draft is known from what was ordered, so
what remains to be asked of its text is whether it says just that: ``Task.wellformed``.

This module imports no torch, so that a task can be read and checked at once.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from fedgen.task_faults import faults_of, rendering_faults
from fedgen.task_parts import Channel, Form, Label, Slot, spoken_interval

if TYPE_CHECKING:
    from fedgen.types import Example


@dataclass(frozen=True)
class Order:
    """Drafts that are asked for together: all of one label and form, each with slot values of its own.

    Attributes:
        index: place in the plan.
        label: name of the label.
        form: which of the label's forms.
        slots: for each draft, slot → what is said for it; for a sensor, ``channel`` → its name.
        attributes: how it is to be said (``tone``, ``length``).
        seed: of the order's own draws.
    """

    index: int
    label: str
    form: int
    slots: tuple[Mapping[str, str], ...]
    attributes: Mapping[str, str]
    seed: int

    @property
    def num(self) -> int:
        """How many drafts."""
        return len(self.slots)


@dataclass(frozen=True)
class Draft:
    """An example as a generator proposes it.

    Attributes:
        text: the utterance, or the window of readings.
        answer: what it means, known from the order.
        label: name of the label.
        slots: slot → what is said for it.
        order: index of the order that asked for it.
    """

    text: str
    answer: str
    label: str
    slots: Mapping[str, str]
    order: int


@dataclass(frozen=True)
class Task:
    """A public description of a task.

    Attributes:
        name: what it is called.
        kind: `commands`, utterances whose answers are calls; or `sensor`, windows of readings whose answers say what is
            wrong with the sensor.
        description: what it is about, in a sentence that a model can read.
        labels: name → label.
        slots: name → what a command leaves open.
        channels: name → what a sensor reads.
        tones: name → ways of wrapping a `{text}`; one of them is chosen for each order.
        rendering: how a window becomes a text, from `{channel}`, `{device}`, `{unit}`, `{interval}` and `{readings}`.
        num_readings: in a window.
        missing: stands for a reading that is not there.
        max_words: longest text of a command.
    """

    name: str
    kind: Literal["commands", "sensor"]
    description: str
    labels: Mapping[str, Label]
    slots: Mapping[str, Slot] = field(default_factory=dict)
    channels: Mapping[str, Channel] = field(default_factory=dict)
    tones: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"plain": ("{text}",)})
    rendering: str = "{channel} in {unit} every {interval}: {readings}"
    num_readings: int = 24
    missing: str = "-"
    max_words: int = 24

    def __post_init__(self) -> None:
        """Refuses what does not fit together; the message has a line for every fault, each under its key."""
        faults = faults_of(self.kind, self.labels, self.slots, self.channels)
        faults += [
            f"tones.{name}: {wrap!r} is no sentence with one {{text}}"
            for name, wraps in self.tones.items()
            for wrap in wraps
            if wrap.count("{text}") != 1 or wrap.replace("{text}", "").count("{")
        ]
        faults += [
            f"tones.{name}: it is empty; give it ways to wrap a {{text}}" for name, w in self.tones.items() if not w
        ]
        if self.kind == "sensor":
            faults += rendering_faults(self.rendering)
        if not self.tones:
            faults.append("tones: it is empty; leave it out, and everything is said plainly")
        for name in ("num_readings", "max_words"):
            if getattr(self, name) < 2:
                faults.append(f"{name}: {getattr(self, name)}; it must be at least 2")
        if not self.name.isidentifier():
            faults.insert(0, f"name: {self.name!r}; expected a word of letters, digits and underscores")
        if not self.description.strip():
            faults.insert(0, "description: it is empty; say in a sentence what the task is about")
        if faults:
            raise ValueError("\n".join(faults))

    @property
    def digest(self) -> str:
        """SHA-256 over everything that it says."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages of its texts, in the order in which they come."""
        return tuple(dict.fromkeys(form.language for label in self.labels.values() for form in label.forms))

    def answer(self, label: str, form: int, slots: Mapping[str, str]) -> str:
        """The answer that is right for a form with these slot values."""
        wanted = self.labels[label].forms[form]
        return wanted.answer.format(**{name: self.slots[name].answer(slots[name]) for name in wanted.slots})

    def draft(self, order: Order, number: int, text: str) -> Draft:
        """A text as the draft that an order asked for in that place."""
        slots = order.slots[number]
        return Draft(text, self.answer(order.label, order.form, slots), order.label, slots, order.index)

    def example(self, draft: Draft) -> "Example":
        """The draft as an example that nobody owns, in the shape of ``data=smart_home``: one turn of a user."""
        from fedgen.types import Example, Message  # with it comes torch

        return Example((Message("user", draft.text),), draft.answer, "", draft.label)

    def wellformed(self, draft: Draft) -> str | None:
        """Why a draft cannot be an example of the task, in words that are the same for all such drafts; None if it can.

        That a text names another value of a slot, or one of a slot that the answer lacks, or a number more, is against
        it: the answer would be wrong.
        """
        text = draft.text
        if not text.strip():
            return "the text is empty"
        if any(not character.isprintable() for character in text):
            return "the text has line breaks or control characters"
        label = self.labels.get(draft.label)
        if label is None:
            return "there is no such label"
        if self.kind == "sensor":
            return self._bad_answer(draft, label) or self._bad_window(draft)
        return self._bad_answer(draft, label) or self._bad_text(draft, label)

    def _bad_answer(self, draft: Draft, label: Label) -> str | None:
        for name, said in draft.slots.items():
            known: tuple[str, ...] = ()
            if self.kind == "sensor":
                known = tuple(self.channels) if name == "channel" else ()
            elif name in self.slots:
                known = self.slots[name].choices
            if said not in known:
                return f"{name} has a value outside its list or range"
        return None if self._form(draft, label) else "the answer does not follow from the label and the slots"

    def _form(self, draft: Draft, label: Label) -> Form | None:
        """The form of which the draft is."""
        given = set(draft.slots) - ({"channel"} if self.kind == "sensor" else set())
        for number, form in enumerate(label.forms):
            if set(form.slots) == given and self.answer(draft.label, number, draft.slots) == draft.answer:
                return form
        return None

    def _bad_text(self, draft: Draft, label: Label) -> str | None:
        rest = " ".join(draft.text.casefold().split())
        if len(rest.split()) > self.max_words:
            return f"the text has more than {self.max_words} words"
        # The longest first: `bedroom lamp` is gone before anybody asks whether there is a bedroom in the text.
        for name, said in sorted(draft.slots.items(), key=lambda item: (-len(item[1]), item[0])):
            before = rest
            for word in (said, self.slots[name].answer(said)):
                rest = _pattern(word).sub(" , ", rest)
            if rest == before:
                return f"the text does not mention {name}"
        form = self._form(draft, label)
        if form is not None and form.mentions and not mentions(rest, form.mentions):
            return "the text does not mention what the answer says besides the slots"
        if label.cues and not mentions(rest, label.cues):
            return "the text has no word that says what is wanted"
        if mentions(rest, label.avoids):
            return "the text has a word that means another label"
        if any(character.isdigit() for character in rest):
            return "the text has a number that the answer lacks"
        for name, slot in self.slots.items():
            if mentions(rest, slot.values):
                return f"the text has another value of {name}"
        return None

    def _bad_window(self, draft: Draft) -> str | None:
        name = draft.slots.get("channel", "")
        channel = self.channels.get(name)
        if channel is None:
            return "the window is of no channel"
        before, _, after = self.render(name, "\0").partition("\0")
        if not (draft.text.startswith(before) and draft.text.endswith(after)):
            return "the text is no window in the task's rendering"
        readings = draft.text[len(before) : len(draft.text) - len(after)].split()
        if len(readings) != self.num_readings:
            return f"the window has not {self.num_readings} readings"
        for reading in readings:
            if reading != self.missing:
                if not re.fullmatch(r"-?\d+(\.\d+)?", reading):
                    return "a reading is no number"
                if not channel.low <= float(reading) <= channel.high:
                    return "a reading is outside the range of its channel"
        return None

    def render(self, channel: str, readings: str) -> str:
        """The text of a window."""
        about = self.channels[channel]
        interval = spoken_interval(about.interval_s)
        return self.rendering.format(
            channel=channel, device=about.device, unit=about.unit, interval=interval, readings=readings
        )


def mentions(text: str, words: "tuple[str, ...] | Mapping[str, str]") -> bool:
    """Whether a text has one of the words, as a word of its own; case does not matter."""
    return any(_pattern(word).search(text.casefold()) for word in words)


@lru_cache(maxsize=4096)
def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.]){re.escape(word.casefold())}(?!\w|\.\d)")
