"""Prompts for a language model, made of a task's description alone, and values put into what it answers.

A prompt is a conversation: what the label means, then words and a sentence with them for each demonstration, then the
words that are wanted. All sentences of a form are candidates. Those in the length that was ordered are taken first and
stand last, where they count most; their values are others than the ones that are wanted.
"""

import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from fedgen.generator.grammar import of_length, say
from fedgen.task import Draft, Order, Task
from fedgen.task_parts import Form, Slot

Turns = tuple[str, list[tuple[str, str]], str]
"""Instruction, demonstrations as (asked, answered), what is asked last."""


def to_say(task: Task, order: Order, num_demonstrations: int, rng: Random) -> list[Turns]:
    """A prompt for each draft of an order; they differ in what is asked last."""
    label = task.labels[order.label]
    form = label.forms[order.form]
    taken = {name: {slots[name] for slots in order.slots} for name in form.slots}
    near = of_length(form, order.attributes["length"])
    texts = [text for text in form.texts if text not in near] + near
    shown = []
    for text in texts[-num_demonstrations:]:
        slots = _other_values(task, form, taken, rng)
        shown.append((_words(slots), say(task, text, order.attributes["tone"], slots, rng)))
    language = "" if form.language == "en" else f" The language is {form.language!r}."
    instruction = (
        f"{task.description} You write what people say to {label.means}. "
        f"Use all the words that you are given, and no others of their kind.{language}"
    )
    return [(instruction, shown, _words(slots)) for slots in order.slots]


def to_vary(task: Task, form: Form, drafts: Sequence[Draft], num_demonstrations: int, rng: Random) -> list[Turns]:
    """A prompt for each draft of a form, in which sentences of the task are said in other words."""
    shown = []
    for text in form.texts[:num_demonstrations]:
        slots = _other_values(task, form, {}, rng)
        tone = rng.choice(list(task.tones))
        other = rng.choice([x for x in form.texts if x != text] or list(form.texts))
        shown.append((say(task, text, tone, slots, rng), say(task, other, tone, slots, rng)))
    instruction = "You say a sentence in other words, with the same names and numbers."
    return [(instruction, shown, draft.text) for draft in drafts]


def token_ids(tokenizer: Any, turns: Turns) -> list[int]:  # noqa: ANN401 - transformers has no public base type
    """A prompt as tokens: a conversation if the model has a template for them, else plain lines."""
    instruction, shown, asked = turns
    if not tokenizer.chat_template:
        lines = [instruction, *(f"{words} -> {said}" for words, said in shown), f"{asked} ->"]
        return list(tokenizer("\n".join(lines))["input_ids"])
    from jinja2 import TemplateError

    system = [{"role": "system", "content": instruction}]
    talk = []
    for words, said in shown:
        talk += [{"role": "user", "content": words}, {"role": "assistant", "content": said}]
    talk.append({"role": "user", "content": asked})
    try:
        return list(tokenizer.apply_chat_template(system + talk, add_generation_prompt=True, return_dict=False))
    except TemplateError:  # some models have no system turn
        talk[0]["content"] = f"{instruction}\n\n{talk[0]['content']}"
        return list(tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False))


def put_values(task: Task, text: str, slots: Mapping[str, str]) -> str:
    """The text, with a wanted value in the place of another one of the same slot.

    A small model takes a value from a demonstration now and then. What it says around it is as good as any, and the
    answer is known, so the wanted value is put there. Nothing is changed where the wanted value is.
    """
    marked = " ".join(text.lower().split())
    marks = {name: f"\ue000{place}\ue001" for place, name in enumerate(slots)}  # from Unicode's private use area
    for name, said in sorted(slots.items(), key=lambda item: -len(item[1])):
        marked = _replaced(marked, said, marks[name])
    for name in slots:
        if marks[name] not in marked:
            for value in _found(marked, task.slots[name])[:1]:
                marked = _replaced(marked, value, marks[name])
    if not all(mark in marked for mark in marks.values()):
        return " ".join(text.split())
    for name, said in slots.items():
        marked = marked.replace(marks[name], said)
    return marked


def _found(text: str, slot: Slot) -> list[str]:
    """Values of a slot that a text names: the longest first, or the one number that is in it."""
    if not slot.values:
        numbers = set(re.findall(r"(?<![\w.\ue000])\d+(?:\.\d+)?", text))
        return list(numbers) if len(numbers) == 1 else []
    return [value for value in sorted(slot.values, key=lambda v: (-len(v), v)) if _replaced(text, value, "") != text]


def _replaced(text: str, value: str, mark: str) -> str:
    return re.sub(rf"(?<![\w.]){re.escape(value.lower())}(?!\w|\.\d)", mark, text)


def _other_values(task: Task, form: Form, taken: Mapping[str, set[str]], rng: Random) -> dict[str, str]:
    """Values for a demonstration: none of those that are wanted, as far as there are others."""
    found = {}
    for name in form.slots:
        choices = task.slots[name].choices
        found[name] = rng.choice([c for c in choices if c not in taken.get(name, ())] or list(choices))
    return found


def _words(slots: Mapping[str, str]) -> str:
    return ", ".join(slots.values()) or "(no words)"
