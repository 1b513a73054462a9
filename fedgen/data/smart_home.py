"""Commands of smart homes: an utterance in, the service call out; every home is one owner.

Utterances are drawn from the Home Assistant intent grammar (packages ``home-assistant-intents`` and ``hassil``, both
Apache-2.0), so that text and answer are known exactly and any amount can be had without a download. Homes differ in
their rooms, floors and device names, in their mix of intents (label skew by a Dirichlet distribution: Hsu et al., 2019)
and, if asked, in their language. ``hassil`` then judges every evaluation example independently.

Three splits measure three kinds of novelty, one at a time:

- ``new_utterances``: same homes, same templates, same mix; sentences that nobody trains on;
- ``new_templates``: same homes; sentences that no template of the training set can say. Intents are equally frequent;
- ``new_home``: a home that took no part, one for each language; templates as in training. Intents are equally frequent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from random import Random

from fedgen import seeds
from fedgen.data.home import Home, draw_devices, draw_home
from fedgen.data.inventories import INVENTORIES
from fedgen.data.skew import draw_mix
from fedgen.errors import DataError
from fedgen.types import Dataset, Example, Message, Prompt

PACKAGES = {"home_assistant_intents": "home-assistant-intents", "hassil": "hassil"}
"""Modules and the packages that bring them; imported when data are loaded, not when a configuration is checked."""

EIGHT_INTENTS = (
    "HassTurnOn",
    "HassTurnOff",
    "HassLightSet",
    "HassClimateSetTemperature",
    "HassFanSetSpeed",
    "HassSetPosition",
    "HassSetVolume",
    "HassVacuumStart",
)


@dataclass(frozen=True)
class SmartHome:
    """Smart-home commands drawn from the Home Assistant grammar; each home is an owner.

    Attributes:
        num_homes: homes that take part.
        num_train: training examples of each home.
        num_eval: examples of each evaluation split, shared equally by its homes (rounded down, but one at least).
        num_public: examples that nobody owns, said in homes that take no other part, one for each language; 0 for none.
        intents: what can be asked for.
        intent_concentration: Dirichlet concentration of a home's mix of intents; small: each home asks for one thing.
        num_areas: rooms of each home.
        num_devices: devices of each home.
        languages: home i speaks languages[i % len(languages)].
        held_out_templates: share of each intent's templates that are kept for evaluation (rounded; an intent with few
            templates keeps all of them for training).
        shuffle_labels: negative control: permute the answers within each home's training examples. Whatever a model
            learns from them, it is not the task; evaluation stays as it is.
    """

    num_homes: int = 4
    num_train: int = 400
    num_eval: int = 200
    num_public: int = 48
    intents: tuple[str, ...] = EIGHT_INTENTS
    intent_concentration: float = 0.5
    num_areas: int = 5
    num_devices: int = 10
    languages: tuple[str, ...] = ("en",)
    held_out_templates: float = 0.1
    shuffle_labels: bool = False

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        for name in ("num_homes", "num_train", "num_eval", "num_areas", "num_devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_public < 0:
            raise ValueError(f"num_public is {self.num_public}; it must be at least 0 (none)")
        if not self.intents or len(set(self.intents)) < len(self.intents):
            raise ValueError(f"intents is {list(self.intents)}; name at least one, and each once")
        if not self.intent_concentration > 0:
            raise ValueError(
                f"intent_concentration is {self.intent_concentration}; it must be positive "
                "(0.1: very uneven, 100: nearly even)"
            )
        if not 0 <= self.held_out_templates < 1:
            raise ValueError(f"held_out_templates is {self.held_out_templates}; it must be at least 0 and below 1")
        unknown = [language for language in self.languages if language not in INVENTORIES]
        if unknown or not self.languages:
            raise ValueError(f"languages is {list(self.languages)}; known are {', '.join(INVENTORIES)}")
        num_areas = min(len(INVENTORIES[language].areas) for language in self.languages)
        if self.num_areas > num_areas:
            raise ValueError(f"num_areas is {self.num_areas}; the inventory has {num_areas} rooms to choose from")
        num_devices = min(INVENTORIES[language].num_devices for language in self.languages)
        if self.num_devices > num_devices:
            raise ValueError(f"num_devices is {self.num_devices}; the inventory has {num_devices} to choose from")

    def prompt(self, text: str) -> Prompt:
        """One turn of a user."""
        return (Message("user", text),)

    def load(self, seed: int) -> Dataset:
        """Draws homes and what is said in them.

        A home depends on the seed, its number and the settings, not on how many other homes there are. Within a home no
        utterance occurs twice in a split, and an utterance of an evaluation split is in no home's training set.

        Raises:
            DataError: a package is missing, an intent is unknown, or the homes have too little to say.
        """
        _require_packages()
        from fedgen.data.grammar import load_grammar, needed_domains
        from fedgen.data.speaker import Speaker, hold_out

        spoken = [self.languages[i % len(self.languages)] for i in range(self.num_homes)]
        grammars, needed, known, held_out = {}, {}, {}, {}
        for language in sorted(set(spoken)):
            grammar = grammars[language] = load_grammar(language)
            known[language], held_out[language] = hold_out(grammar, self.intents, self.held_out_templates, seed)
            needed[language] = needed_domains(grammar, self.intents)
        homes = [self._draw_home(f"home-{i}", x, needed[x], seed) for i, x in enumerate(spoken)]
        new_homes = [self._draw_home(f"new-home-{i}", x, needed[x], seed) for i, x in enumerate(grammars)]
        per_home = max(1, self.num_eval // len(homes))
        per_new_home = max(1, self.num_eval // len(new_homes))

        train, usual, unheard, elsewhere, shown = [], [], [], [], []
        for home in homes:
            grammar, templates = grammars[home.language], known[home.language]
            speaker = Speaker(seed, grammar, home, self.intents, templates, self._draw_mix(home, seed))
            train.append(self._shuffled(speaker.training(self.num_train), home, seed))
            usual.append(speaker.evaluation("new_utterances", per_home))
            even = dict.fromkeys(held_out[home.language], 1.0)
            novel = replace(speaker, templates=held_out[home.language], mix=even)
            unheard.append(novel.evaluation("new_templates", per_home, unlike=templates))
        for i, home in enumerate(new_homes):
            templates = known[home.language]
            even = dict.fromkeys(templates, 1.0)
            speaker = Speaker(seed, grammars[home.language], home, self.intents, templates, even)
            elsewhere.append(speaker.evaluation("new_home", per_new_home))
            open_home = self._draw_home(f"public-home-{i}", home.language, needed[home.language], seed)
            # Divided so that together they are num_public, however many languages there are.
            share = len(range(i, self.num_public, len(new_homes)))
            shown.append(replace(speaker, home=open_home).public(share))

        splits = {"new_utterances": usual, "new_templates": unheard, "new_home": elsewhere}
        evaluation = {name: _in_turn(parts) for name, parts in splits.items() if any(parts)}
        description = self._describe(evaluation)
        return Dataset(tuple(x for part in train for x in part), evaluation, description, _in_turn(shown))

    def _draw_home(self, name: str, language: str, needed: Sequence[frozenset[str]], seed: int) -> Home:
        inventory = INVENTORIES[language]
        rng = _rng(seed, "home", name)
        devices = draw_devices(inventory, self.num_devices, needed, rng)
        return draw_home(name, language, inventory, num_areas=self.num_areas, devices=devices, rng=rng)

    def _draw_mix(self, home: Home, seed: int) -> dict[str, float]:
        rng = _rng(seed, "mix", home.name)
        return dict(zip(self.intents, draw_mix(self.intent_concentration, len(self.intents), rng), strict=True))

    def _shuffled(self, examples: list[Example], home: Home, seed: int) -> list[Example]:
        """The examples, or with shuffle_labels the same prompts with the answers (and their labels) permuted."""
        if not self.shuffle_labels:
            return examples
        answers = examples.copy()
        _rng(seed, "shuffle", home.name).shuffle(answers)
        pairs = zip(examples, answers, strict=True)
        return [replace(example, completion=other.completion, label=other.label) for example, other in pairs]

    def _describe(self, evaluation: Mapping[str, Sequence[Example]]) -> str:
        sizes = ", ".join(f"{name} {len(examples)}" for name, examples in evaluation.items())
        control = " The training answers are permuted (negative control)." if self.shuffle_labels else ""
        return (
            f"Smart-home commands of {self.num_homes} simulated homes ({', '.join(sorted(set(self.languages)))}; "
            f"{len(self.intents)} intents), drawn from the Home Assistant intent grammar (home-assistant-intents "
            f"{version('home-assistant-intents')}, Apache-2.0): {self.num_train} training examples per home; "
            f"evaluation: {sizes}.{control}"
        )


def _require_packages() -> None:
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise DataError(
            f"data=smart_home needs the packages {' and '.join(PACKAGES.values())}, and {' and '.join(missing)} is "
            f"missing: pip install {' '.join(PACKAGES.values())}"
        )


def _rng(seed: int, *path: str) -> Random:
    return Random(seeds.integer(seed, "smart_home", *path))


def _in_turn(parts: Sequence[Sequence[Example]]) -> tuple[Example, ...]:
    """The first of each part, then the second of each: every prefix has about as many of one home as of another."""
    longest = max(len(part) for part in parts)
    return tuple(part[i] for i in range(longest) for part in parts if i < len(part))
