"""What is wrong with a task's description, all of it at once, each fault under its key."""

import difflib
import math
from collections.abc import Iterable, Mapping

from fedgen.task_parts import FAULTS, Channel, Form, Label, Slot, slots_of

MAX_CHOICES = 10_000
"""Numbers of a slot; a finer range is not what people say."""

PLACES = ("channel", "device", "unit", "interval", "readings")
"""What a sensor's rendering can name."""


def faults_of(
    kind: str, labels: Mapping[str, Label], slots: Mapping[str, Slot], channels: Mapping[str, Channel]
) -> list[str]:
    """A line for every fault of these parts of a task, and of how they fit together."""
    found = [] if kind in ("commands", "sensor") else [f"kind: {kind!r}; expected commands or sensor"]
    if not labels:
        found.append("labels: it is empty; a task has at least one label")
    for name, slot in slots.items():
        found += _slot_faults(f"slots.{name}", slot)
    for name, channel in channels.items():
        found += _channel_faults(f"channels.{name}", channel)
    for name, label in labels.items():
        found += _label_faults(f"labels.{name}", label, kind, slots)
    answers: dict[str, str] = {}
    for name, label in labels.items():
        for form in label.forms:
            if answers.setdefault(form.answer, name) != name:
                found.append(f"labels.{name}: its answer {form.answer!r} is that of {answers[form.answer]} as well")
    if kind == "sensor" and not channels:
        found.append("channels: it is empty; a sensor task has at least one")
    if kind == "sensor" and slots:
        found.append("slots: a sensor task has channels and no slots; leave slots out")
    if kind == "commands" and channels:
        found.append("channels: a task of commands has slots and no channels; leave channels out")
    return found


def rendering_faults(rendering: str) -> list[str]:
    """What is wrong with a sensor's rendering."""
    try:
        named = list(slots_of(rendering))
    except ValueError as error:
        return [f"rendering: {rendering!r} cannot be read: {error}"]
    found = [
        f"rendering: {{{name}}} is unknown; it can name {', '.join(PLACES)}" for name in named if name not in PLACES
    ]
    if named.count("readings") != 1:
        found.append(f"rendering: {rendering!r} has {{readings}} {named.count('readings')} times; expected once")
    return found


def _slot_faults(key: str, slot: Slot) -> list[str]:
    bounds = (slot.low, slot.high)
    if slot.values:
        found = [
            f"{key}.values: a word is empty" for said, meant in slot.values.items() if not (said.strip() and meant)
        ]
        return found + ([f"{key}: it has values and a range; give one of them"] if bounds != (None, None) else [])
    if slot.low is None or slot.high is None:
        return [f"{key}: it has no values; give values, or low and high for a number"]
    if slot.low > slot.high:
        return [f"{key}.low: {slot.low:g} is above high, {slot.high:g}"]
    if not slot.step > 0:
        return [f"{key}.step: {slot.step:g}; it must be positive"]
    if (slot.high - slot.low) / slot.step >= MAX_CHOICES:
        return [f"{key}.step: {slot.step:g} makes more than {MAX_CHOICES} numbers of the range; take a larger one"]
    return []


def _channel_faults(key: str, channel: Channel) -> list[str]:
    found = []
    if not channel.low < channel.high:
        found.append(f"{key}.low: {channel.low:g} is not below high, {channel.high:g}")
    if not channel.usual_low < channel.usual_high:
        found.append(f"{key}.usual_low: {channel.usual_low:g} is not below usual_high, {channel.usual_high:g}")
    elif not channel.low <= channel.usual_low <= channel.usual_high <= channel.high:
        found.append(
            f"{key}.usual_low: {channel.usual_low:g} to {channel.usual_high:g} is not within the range of the sensor, "
            f"{channel.low:g} to {channel.high:g}"
        )
    for name in ("interval_s", "period_s"):
        if not getattr(channel, name) > 0:
            found.append(f"{key}.{name}: {getattr(channel, name):g}; it must be positive")
    if not channel.noise >= 0 or math.isinf(channel.noise):
        found.append(f"{key}.noise: {channel.noise:g}; it must be at least 0")
    if not 0 <= channel.decimals <= 6:
        found.append(f"{key}.decimals: {channel.decimals}; it must be from 0 to 6")
    if not channel.unit.strip():
        found.append(f"{key}.unit: it is empty; say what the readings count")
    return found


def _label_faults(key: str, label: Label, kind: str, slots: Mapping[str, Slot]) -> list[str]:
    found = []
    if not key.partition(".")[2].strip():
        found.append(f"{key}: the name of a label is empty")
    if not label.means.strip():
        found.append(f"{key}.means: it is empty; say in words what the label means")
    if not label.forms:
        found.append(f"{key}.forms: it is empty; a label has at least one form")
    if kind == "sensor" and label.fault not in FAULTS:
        found.append(f"{key}.fault: {label.fault!r}; expected one of {', '.join(FAULTS)}")
    if kind == "commands" and label.fault:
        found.append(f"{key}.fault: {label.fault!r}; only the labels of a sensor task have one")
    for number, form in enumerate(label.forms):
        place = f"{key}.forms.{number}"
        if kind == "sensor":
            found += _sensor_form_faults(place, form)
        else:
            found += _form_faults(place, form, slots)
    return found


def _sensor_form_faults(place: str, form: Form) -> list[str]:
    found = [] if form.answer.strip() else [f"{place}.answer: it is empty"]
    if form.texts or "{" in form.answer:
        found.append(f"{place}: the form of a sensor's label is an answer without slots, and has no texts")
    return found


def _form_faults(place: str, form: Form, slots: Mapping[str, Slot]) -> list[str]:
    if not form.answer.strip():
        return [f"{place}.answer: it is empty"]
    if not form.texts:
        return [f"{place}.texts: it is empty; give at least one sentence"]
    try:
        wanted = list(form.slots)
    except ValueError as error:
        return [f"{place}.answer: {form.answer!r} cannot be read: {error}"]
    found = [_unknown(f"{place}.answer", name, slots) for name in wanted if name not in slots]
    for number, text in enumerate(form.texts):
        key = f"{place}.texts.{number}"
        try:
            named = list(slots_of(text))
        except ValueError as error:
            found.append(f"{key}: {text!r} cannot be read: {error}")
            continue
        found += [_unknown(key, name, slots) for name in named if name not in slots]
        found += [f"{key}: {text!r} lacks {{{name}}}, which the answer has" for name in wanted if name not in named]
        extra = [name for name in named if name in slots and name not in wanted]
        found += [f"{key}: {text!r} has {{{name}}}, which the answer lacks" for name in extra]
        found += [f"{key}: it is empty"] if not text.strip() else []
    return found


def _unknown(key: str, name: str, slots: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(slots), n=1)
    meant = f"; did you mean {{{close[0]}}}?" if close else ""
    return f"{key}: {{{name}}} is no slot of the task{meant}; it has {', '.join(slots) or 'none'}"
