"""The offline generator: sentences of the task's own templates, filled with the values that were ordered.

It plays the part of the language model in GPT-FL (Zhang et al., 2023, arXiv 2306.02210, stage 1), writes thousands of
drafts in a second and gives the same ones everywhere. What it can say is what the description says; for more, there
is the language model.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random

import fedgen
from fedgen import seeds
from fedgen.generator.ordering import draw_orders, require_kind
from fedgen.task import Draft, Order, Task
from fedgen.task_parts import Form


@dataclass(frozen=True)
class Grammar:
    """Sentences of the task's own templates; no model, at once.

    Attributes:
        per_order: drafts of one label and form that are asked for together, at most.
    """

    per_order: int = 16

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if self.per_order < 1:
            raise ValueError(f"per_order is {self.per_order}; it must be at least 1")

    @property
    def kind(self) -> str:
        """`commands`."""
        return "commands"

    @property
    def licence(self) -> str:
        """That of the task's templates, which are fedgen's own in the tasks that come with it."""
        return "that of the task's own templates (Apache-2.0 for the tasks that come with fedgen)"

    def plan(self, task: Task, num_examples: int, seed: int) -> tuple[Order, ...]:
        """Orders for so many drafts.

        Raises:
            ConfigError: the task is of another kind, or num_examples below 1.
        """
        require_kind(task, self.kind, "grammar")
        return draw_orders(task, num_examples, seed, self.per_order)

    def generate(self, task: Task, orders: Iterable[Order], seed: int) -> Iterator[Draft]:
        """A template of the form for each draft, in the length and the tone of the order."""
        for order in orders:
            form = task.labels[order.label].forms[order.form]
            for number, slots in enumerate(order.slots):
                rng = Random(seeds.integer(seed, "generator", "grammar", order.index, order.seed, number))
                template = rng.choice(of_length(form, order.attributes["length"]))
                yield task.draft(order, number, say(task, template, order.attributes["tone"], slots, rng))

    def vary(self, task: Task, drafts: Iterable[Draft], degree: float, seed: int) -> Iterator[Draft]:
        """With probability `degree` a draft is said in another template of its form and any tone."""
        for number, draft in enumerate(drafts):
            rng = Random(seeds.integer(seed, "generator", "grammar", "vary", draft.order, number))
            form = form_of(task, draft)
            if rng.random() < degree:
                text = say(task, rng.choice(form.texts), rng.choice(list(task.tones)), draft.slots, rng)
                draft = replace(draft, text=text)
            yield draft

    def fingerprint(self) -> str:
        """Name, version and settings."""
        return f"grammar per_order={self.per_order} fedgen={fedgen.__version__}"


def of_length(form: Form, length: str) -> list[str]:
    """The shorter or the longer half of a form's templates; one in the middle is in both."""
    texts = sorted(form.texts, key=lambda text: (len(text.split()), text))
    half = (len(texts) + 1) // 2
    return texts[:half] if length == "short" else texts[-half:]


def say(task: Task, template: str, tone: str, slots: Mapping[str, str], rng: Random) -> str:
    """A template with its slots filled, in a tone."""
    return rng.choice(task.tones[tone]).format(text=template.format(**slots))


def form_of(task: Task, draft: Draft) -> Form:
    """The form of which a well-formed draft is."""
    label = task.labels[draft.label]
    return next(
        form
        for number, form in enumerate(label.forms)
        if set(form.slots) == set(draft.slots) and task.answer(draft.label, number, draft.slots) == draft.answer
    )
