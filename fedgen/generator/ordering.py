"""Draws what to ask a generator for: every label as often as any other, every form, tone and slot value in turn."""

import math
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import TypeVar

from fedgen import seeds
from fedgen.errors import ConfigError
from fedgen.task import Order, Task
from fedgen.task_parts import Label

T = TypeVar("T")

LENGTHS = ("short", "long")


def require_kind(task: Task, kind: str, option: str) -> None:
    """Refuses a task of another kind.

    Raises:
        ConfigError: it is of another kind.
    """
    if task.kind != kind:
        others = {"commands": "grammar or generator=language", "sensor": "timeseries"}
        raise ConfigError(
            f"generator={option} writes for tasks of kind {kind}, and the task {task.name} is of kind {task.kind}; "
            f"choose generator={others[task.kind]}, or another task"
        )


def draw_orders(task: Task, num_examples: int, seed: int, per_order: int) -> tuple[Order, ...]:
    """Orders for so many drafts; how many a label gets differs by one at most.

    Labels come in turn, so that whatever is left of an interrupted plan is as balanced as the whole. Within a label
    forms come in turn, until they have nothing new to say; values of a slot come as from a shuffled deck.

    Args:
        task: what it is about.
        num_examples: drafts in all.
        seed: of the plan.
        per_order: drafts of an order, at most.

    Raises:
        ConfigError: num_examples is below 1.
    """
    if num_examples < 1:
        raise ConfigError(f"num_examples is {num_examples}; it must be at least 1")
    count, more = divmod(num_examples, len(task.labels))
    by_label = [
        _of_label(task, name, count + (number < more), seed, per_order) for number, name in enumerate(task.labels)
    ]
    longest = max(len(orders) for orders in by_label)
    found: list[Order] = []
    for turn in range(longest):
        for name, orders in zip(task.labels, by_label, strict=True):
            if turn < len(orders):
                form, slots, attributes = orders[turn]
                index = len(found)
                order_seed = seeds.integer(seed, "generator", "order", index)
                found.append(Order(index, name, form, slots, attributes, order_seed))
    return tuple(found)


Drawn = tuple[int, tuple[Mapping[str, str], ...], Mapping[str, str]]
"""Form, slots of each draft, attributes."""


def _of_label(task: Task, name: str, count: int, seed: int, per_order: int) -> list[Drawn]:
    label = task.labels[name]
    rng = Random(seeds.integer(seed, "generator", "plan", name))
    size = max(1, min(per_order, math.ceil(count / len(label.forms))))
    left = [_capacity(task, label, form) for form in range(len(label.forms))]
    tones, lengths = _deck(tuple(task.tones), rng), _deck(LENGTHS, rng)
    decks = _decks(task, label, rng)
    turns = _deck(range(len(label.forms)), rng)
    orders: list[Drawn] = []
    while count:
        if not any(left):
            left = [count] * len(left)  # all has been said; what is still wanted can only repeat it
        form = next(turns)
        num = min(size, count, left[form])
        if not num:
            continue
        left[form] -= num
        count -= num
        names = label.forms[form].slots if task.kind == "commands" else ("channel",)
        slots = tuple({slot: next(decks[slot]) for slot in names} for _ in range(num))
        attributes = {"tone": next(tones), "length": next(lengths)} if task.kind == "commands" else {}
        orders.append((form, slots, attributes))
    return orders


def _capacity(task: Task, label: Label, form: int) -> int:
    """How many sentences a form has."""
    if task.kind == "sensor":
        return 2**31  # windows do not run out
    slots = math.prod(len(task.slots[name].choices) for name in label.forms[form].slots)
    return slots * len(label.forms[form].texts) * sum(len(wraps) for wraps in task.tones.values())


def _decks(task: Task, label: Label, rng: Random) -> dict[str, Iterator[str]]:
    if task.kind == "sensor":
        return {"channel": _deck(tuple(task.channels), rng)}
    names = dict.fromkeys(name for form in label.forms for name in form.slots)
    return {name: _deck(task.slots[name].choices, rng) for name in names}


def _deck(cards: Sequence[T], rng: Random) -> Iterator[T]:
    """All cards in a random order, then all of them in another, without end."""
    while True:
        yield from rng.sample(cards, len(cards))
