"""A little command language that a tiny byte-level model learns in seconds; needs no package and no download.

``set lamp 3 on: `` is answered with ``L3+``: one letter for the thing, the number, one sign for the verb. Unlike
``smart_home`` nothing here is natural language: it serves tests, first steps and timing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random

from fedgen import seeds
from fedgen.data.skew import draw_mix
from fedgen.types import Dataset, Example, Prompt

SIGNS = {"on": "+", "off": "-", "dim": "<", "boost": ">"}
THINGS = {"lamp": "L", "fan": "F", "heater": "H", "blind": "B", "radio": "R", "pump": "P", "valve": "V", "oven": "O"}
NUMBERS = "0123456789"
KNOWN_FORMS = ("{thing} {number} {verb}: ", "{verb} {thing} {number}: ", "set {thing} {number} {verb}: ")
NEW_FORMS = ("{number} {thing} {verb}: ",)
RESERVED = 5
"""One utterance in this many is for evaluation, whoever says it."""
MAX_EVAL = len(SIGNS) * len(THINGS) * len(NUMBERS) * len(KNOWN_FORMS) // RESERVED


@dataclass(frozen=True)
class Synthetic:
    """A toy command language, learnable in seconds; each owner favours other verbs.

    Evaluation splits: ``new_utterances`` (sentences that nobody trains on) and ``new_templates`` (a word order that
    nobody trains on).

    Attributes:
        num_owners: owners of training examples.
        num_train: training examples of each owner, all different.
        num_eval: examples of each evaluation split.
        num_public: examples that nobody owns, drawn among the sentences that owners use; 0 for none.
        concentration: Dirichlet concentration of an owner's mix of verbs; small: each owner uses one verb.
    """

    num_owners: int = 4
    num_train: int = 64
    num_eval: int = 64
    num_public: int = 48
    concentration: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        for name in ("num_owners", "num_train", "num_eval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_train > MAX_EVAL * (RESERVED - 1):
            raise ValueError(f"num_train is {self.num_train}; the language has {MAX_EVAL * (RESERVED - 1)} sentences")
        if not 0 <= self.num_public <= MAX_EVAL * (RESERVED - 1):
            raise ValueError(f"num_public is {self.num_public}; it must lie between 0 and {MAX_EVAL * (RESERVED - 1)}")
        if self.num_eval > MAX_EVAL:
            raise ValueError(f"num_eval is {self.num_eval}; {MAX_EVAL} sentences are reserved for evaluation")
        if not self.concentration > 0:
            raise ValueError(f"concentration is {self.concentration}; it must be positive (100: owners nearly alike)")

    def prompt(self, text: str) -> Prompt:
        """Plain text that ends like the examples do."""
        return f"{text.rstrip(': ')}: "

    def load(self, seed: int) -> Dataset:
        """Writes the sentences. An owner's examples depend on the seed and its number, not on the other owners."""
        sentences = _sentences(KNOWN_FORMS)
        Random(seeds.integer(seed, "synthetic", "reserved")).shuffle(sentences)
        reserved, free = sentences[:MAX_EVAL], sentences[MAX_EVAL:]
        novel = _sentences(NEW_FORMS)
        Random(seeds.integer(seed, "synthetic", "new_templates")).shuffle(novel)
        train = [example for i in range(self.num_owners) for example in self._owned(f"owner-{i}", free, seed)]
        public = Random(seeds.integer(seed, "synthetic", "public")).sample(free, self.num_public)
        return Dataset(
            tuple(train),
            {"new_utterances": tuple(reserved[: self.num_eval]), "new_templates": tuple(novel[: self.num_eval])},
            f"A synthetic command language (generated, no licence needed): {self.num_train} training examples for each "
            f"of {self.num_owners} owners, {self.num_eval} examples per evaluation split.",
            tuple(public),
        )

    def _owned(self, owner: str, sentences: Sequence[Example], seed: int) -> list[Example]:
        rng = Random(seeds.integer(seed, "synthetic", owner))
        mix = dict(zip(SIGNS, draw_mix(self.concentration, len(SIGNS), rng), strict=True))
        left = {verb: [example for example in sentences if example.label == verb] for verb in SIGNS}
        for examples in left.values():
            rng.shuffle(examples)
        return [_take(left, mix, rng, owner) for _ in range(self.num_train)]


def _take(left: Mapping[str, list[Example]], mix: Mapping[str, float], rng: Random, owner: str) -> Example:
    """One sentence that the owner has not used; verbs that are used up give way to the others."""
    verbs = [verb for verb, examples in left.items() if examples]
    verb = rng.choices(verbs, [mix[verb] + 1e-9 for verb in verbs])[0]
    example = left[verb].pop()
    return Example(example.prompt, example.completion, owner, example.label)


def _sentences(forms: Sequence[str]) -> list[Example]:
    return [
        Example(form.format(thing=thing, number=number, verb=verb), f"{THINGS[thing]}{number}{SIGNS[verb]}", label=verb)
        for form, thing, number, verb in product(forms, THINGS, NUMBERS, SIGNS)
    ]
