"""What the people of one home say: draws commands by their mix of intents until there are enough different ones.

The grammar knows what one template can say; a speaker knows what a home says, and which of it is for evaluation.
Importing this module needs the packages of ``grammar``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from fedgen import seeds
from fedgen.data.grammar import Command, Grammar, Judge, Template, judge_of, say
from fedgen.data.home import Home
from fedgen.errors import DataError
from fedgen.types import Example, Message

RESERVED = 5
"""One utterance in this many is for evaluation, whichever home says it."""

MAX_MISSES = 60
"""After so many unusable draws in a row an intent has nothing new to say (by chance: 0.8**60, about 1e-6)."""

Templates = Mapping[str, tuple[Template, ...]]
"""Intent → templates."""


@dataclass(frozen=True)
class Speaker:
    """The people of a home.

    Attributes:
        seed: of the run.
        grammar: of their language.
        home: where they live.
        intents: all that can be meant in this data set, in any home.
        templates: intent → the templates that they use.
        mix: intent → how often they ask for it, in any unit.
    """

    seed: int
    grammar: Grammar
    home: Home
    intents: tuple[str, ...]
    templates: Templates
    mix: Mapping[str, float]

    def training(self, num_examples: int) -> list[Example]:
        """Examples that are not reserved for evaluation."""

        def learn(command: Command) -> Example | None:
            return None if _reserved(self.seed, command.text) else self._example(command)

        return self._enough(self._draw("train", num_examples, learn), num_examples, "to train on")

    def public(self, num_examples: int) -> list[Example]:
        """Examples that nobody owns, not reserved for evaluation; fewer than asked for, if the home has less to say."""

        def show(command: Command) -> Example | None:
            return None if _reserved(self.seed, command.text) else replace(self._example(command), owner="")

        return self._draw("public", num_examples, show)

    def evaluation(self, split: str, num_examples: int, unlike: Templates | None = None) -> list[Example]:
        """Examples that are reserved for evaluation, each with the other answers that hassil accepts.

        Args:
            split: which one.
            num_examples: how many.
            unlike: only what none of these templates can say in this sense. What remains may be less than was asked
                for, or nothing: one template often says what another says as well.
        """
        judge = judge_of(self.grammar, self.home, self.intents)
        examples = self._draw(split, num_examples, lambda command: self._judged(command, judge, unlike or {}))
        return examples if unlike is not None else self._enough(examples, num_examples, f"in the split {split}")

    def _judged(self, command: Command, judge: Judge, unlike: Templates) -> Example | None:
        if not _reserved(self.seed, command.text):
            return None
        parses = judge.parses(command.text)
        heard = {template.text for template in unlike.get(command.intent, ())}
        if command.call not in parses or parses[command.call] & heard:
            return None
        return self._example(command, tuple(sorted(set(parses) - {command.call})))

    def _example(self, command: Command, alternatives: tuple[str, ...] = ()) -> Example:
        prompt = (Message("user", command.text),)
        return Example(prompt, command.call, self.home.name, command.intent, alternatives)

    def _draw(self, purpose: str, num_examples: int, accept: Callable[[Command], Example | None]) -> list[Example]:
        """Draws by the mix until there are enough, or until no intent has anything new that is accepted."""
        rng = Random(seeds.integer(self.seed, "smart_home", purpose, self.home.name))
        sayable = {name: [x for x in self.templates[name] if x.sayable(self.home)] for name in self.mix}
        intents = [name for name, templates in sayable.items() if templates]
        misses = dict.fromkeys(intents, 0)
        seen: set[str] = set()
        examples: list[Example] = []
        while intents and len(examples) < num_examples:
            # The tiny extra weight lets an intent of share zero step in when the others have nothing left to say.
            intent = rng.choices(intents, [self.mix[name] + 1e-9 for name in intents])[0]
            command = say(self.grammar, rng.choice(sayable[intent]), self.home, rng)
            key = command.text.casefold()
            example = None if key in seen else accept(command)
            seen.add(key)
            misses[intent] = 0 if example else misses[intent] + 1
            if example:
                examples.append(example)
            elif misses[intent] == MAX_MISSES:
                intents.remove(intent)
        return examples

    def _enough(self, examples: list[Example], num_examples: int, what: str) -> list[Example]:
        if len(examples) < num_examples:
            raise DataError(
                f"{self.home.name} has {len(examples)} different utterances {what}, and {num_examples} were asked for; "
                "lower num_train or num_eval, or give it more intents, areas or devices"
            )
        return examples


def hold_out(grammar: Grammar, intents: Sequence[str], share: float, seed: int) -> tuple[Templates, Templates]:
    """Divides the templates of each intent into those that homes use and those that no client sees.

    Args:
        grammar: of one language.
        intents: which intents.
        share: how much of each is held out, rounded; at least one template stays.
        seed: of the run.

    Returns:
        Known templates of every intent; held out templates of the intents that have any.

    Raises:
        DataError: an intent is unknown in this language.
    """
    unknown = [intent for intent in intents if intent not in grammar.templates]
    if unknown:
        raise DataError(
            f"intents has {', '.join(unknown)}, but the grammar of {grammar.language!r} knows "
            f"{', '.join(sorted(grammar.templates))}"
        )
    known, held_out = {}, {}
    for intent in intents:
        templates = grammar.templates[intent]
        texts = sorted({template.text for template in templates})
        rng = Random(seeds.integer(seed, "smart_home", "templates", grammar.language, intent))
        unheard = set(rng.sample(texts, min(round(share * len(texts)), len(texts) - 1)))
        known[intent] = tuple(template for template in templates if template.text not in unheard)
        if unheard:
            held_out[intent] = tuple(template for template in templates if template.text in unheard)
    return known, held_out


def _reserved(seed: int, text: str) -> bool:
    """Whether an utterance is for evaluation. Decided by the text alone, so it holds across all homes."""
    return seeds.integer(seed, "smart_home", "reserved", text.casefold()) % RESERVED == 0
