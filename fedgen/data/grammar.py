"""The Home Assistant intent grammar: says commands, and judges what a sentence means.

Two ways through the same templates. ``say`` walks a template down, choosing at every fork, and knows intent and slots
because it filled them. ``Judge`` asks hassil's recogniser to walk a text up, and knows nothing of how the text was
made, so each checks the other. The grammar is the package ``home-assistant-intents``, templates and recogniser are the
package ``hassil`` (both Apache-2.0, Home Assistant project); importing this module needs both.

Blocks whose answer depends on the room in which the speaker stands (``requires_context: area``) are left out: from the
text alone the room cannot be known, and without that context the recogniser refuses them as well.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

from hassil.expression import (
    Alternative,
    Expression,
    ListReference,
    Permutation,
    RuleReference,
    Sentence,
    Sequence,
    TextChunk,
)
from hassil.intents import IntentData, Intents, RangeSlotList, RangeType, SlotList, TextSlotList, WildcardSlotList
from hassil.recognize import recognize_all
from hassil.util import normalize_whitespace
from home_assistant_intents import get_intents

from fedgen.data.home import Home
from fedgen.data.inventories import FREE_TEXT

COMFORTABLE_CELSIUS = range(10, 31)
ROUND = 5
"""People ask for 45 percent, not for 43: long ranges of single steps are spoken in multiples of this."""

Value = str | int | float | list[str]


@dataclass(frozen=True)
class Template:
    """One sentence template of one intent.

    Attributes:
        intent: what it means.
        text: the template as written; templates of an intent with the same text are the same template.
        sentence: the template as parsed.
        block: the group that it stands in: fixed slots, local rules and lists, required context.
        lists: names of the lists that it may refer to.
    """

    intent: str
    text: str
    sentence: Sentence
    block: IntentData
    lists: frozenset[str]

    @property
    def domains(self) -> frozenset[str]:
        """Domains of which the device spoken of must be; empty if it may be of any, or if none is named."""
        wanted = self.block.requires_context.get("domain", ())
        return frozenset([wanted] if isinstance(wanted, str) else wanted)

    @property
    def names_device(self) -> bool:
        """Whether a device is named."""
        return "name" in self.lists

    def sayable(self, home: Home) -> bool:
        """Whether the home has a device that fits."""
        if not self.names_device:
            return True
        return any(not self.domains or device.domain in self.domains for device in home.devices)


@dataclass(frozen=True)
class Grammar:
    """The grammar of one language.

    Attributes:
        language: its code.
        intents: as hassil parsed them.
        templates: intent → its templates that can be understood from the text alone.
    """

    language: str
    intents: Intents
    templates: Mapping[str, tuple[Template, ...]]


@dataclass(frozen=True)
class Command:
    """Something said, and what it means.

    Attributes:
        text: the utterance.
        intent: as Home Assistant names it.
        call: intent and slots as one line (see ``service_call``).
    """

    text: str
    intent: str
    call: str


def service_call(intent: str, slots: Mapping[str, Value]) -> str:
    """Intent and slots as one line: no ``Hass`` prefix, slots in alphabetical order.

    >>> service_call("HassTurnOn", {"name": "desk lamp", "area": "kitchen"})
    'TurnOn(area=kitchen, name=desk lamp)'
    """
    inner = ", ".join(f"{slot}={_spell(slots[slot])}" for slot in sorted(slots))
    return f"{intent.removeprefix('Hass')}({inner})"


def _spell(value: Value) -> str:
    if isinstance(value, list):  # a word for several classes of cover at once
        return "|".join(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


@lru_cache(maxsize=16)
def load_grammar(language: str) -> Grammar:
    """Parses the grammar of a language; a second call returns the same object."""
    source = get_intents(language)
    assert source is not None, f"home-assistant-intents has no grammar for {language!r}"
    intents = Intents.from_dict(source)
    templates = {name: tuple(_templates(intents, name)) for name in intents.intents}
    return Grammar(language, intents, {name: found for name, found in templates.items() if found})


def _templates(intents: Intents, name: str) -> Iterator[Template]:
    for block in intents.intents[name].data:
        if set(block.requires_context) - {"domain"} or block.excludes_context:
            continue
        rules = {**intents.expansion_rules, **block.expansion_rules}
        for sentence in block.sentences:
            template = Template(name, sentence.text or "", sentence, block, frozenset(sentence.list_names(rules)))
            # The domain is known through the device that is named, so without one the requirement is never met.
            if template.names_device or not template.domains:
                yield template


def needed_domains(grammar: Grammar, intents: Collection[str]) -> list[frozenset[str]]:
    """For each intent that speaks of devices, the domains of which a home needs a device to say it."""
    named = [[template for template in grammar.templates[intent] if template.names_device] for intent in intents]
    domains = [frozenset[str]().union(*(template.domains for template in templates)) for templates in named]
    return [wanted for wanted in domains if wanted]


@dataclass(frozen=True)
class _Walk:
    rules: Mapping[str, Sentence]
    lists: Mapping[str, SlotList]
    names: tuple[str, ...]
    home: Home
    rng: Random


def say(grammar: Grammar, template: Template, home: Home, rng: Random) -> Command:
    """One of the many things that the template says in this home.

    Args:
        grammar: the home's language.
        template: one that is sayable in the home.
        home: whose rooms and devices are named.
        rng: chooses at every fork.
    """
    block = template.block
    domains = template.domains
    walk = _Walk(
        rules={**grammar.intents.expansion_rules, **block.expansion_rules},
        lists={**grammar.intents.slot_lists, **block.slot_lists},
        names=tuple(device.name for device in home.devices if not domains or device.domain in domains),
        home=home,
        rng=rng,
    )
    slots: dict[str, Value] = {}
    text = normalize_whitespace(_expand(template.sentence.expression, walk, slots)).strip()
    return Command(text, template.intent, service_call(template.intent, {**block.slots, **slots}))


def _expand(expression: Expression, walk: _Walk, slots: dict[str, Value]) -> str:
    match expression:
        case TextChunk():
            return expression.original_text
        case Alternative():
            return _expand(walk.rng.choice(expression.items), walk, slots)
        case Permutation():
            items = list(expression.items)
            walk.rng.shuffle(items)
            return " ".join(_expand(item, walk, slots) for item in items)
        case Sequence():
            return "".join(_expand(item, walk, slots) for item in expression.items)
        case RuleReference():
            return _expand(walk.rules[expression.rule_name].expression, walk, slots)
        case ListReference():
            text, value = _fill(expression.list_name, walk)
            if not expression.is_capture:  # captures are for the reply, not for the command
                slots[expression.slot_name] = value
            return text
    raise AssertionError(f"hassil has a new kind of expression: {type(expression).__name__}")


def _fill(list_name: str, walk: _Walk) -> tuple[str, Value]:
    """A word for a list, and the value that it stands for."""
    rng = walk.rng
    own = {"name": walk.names, "area": walk.home.areas, "floor": walk.home.floors}
    if list_name in own:
        word = rng.choice(own[list_name])
        return word, word
    words = walk.lists[list_name]
    if isinstance(words, RangeSlotList):
        number = rng.choice(_spoken_numbers(words))
        return str(number), number * (words.multiplier or 1)
    if isinstance(words, WildcardSlotList):
        text = rng.choice(FREE_TEXT.get(list_name, ("something",)))
        return text, text
    assert isinstance(words, TextSlotList), f"hassil has a new kind of list: {type(words).__name__}"
    chosen = rng.choice(words.values)
    return _expand(chosen.text_in, walk, {}), chosen.value_out


def _spoken_numbers(numbers: RangeSlotList) -> range:
    everything = range(numbers.start, numbers.stop + 1, numbers.step)
    if numbers.type is RangeType.TEMPERATURE:
        low, high = max(numbers.start, COMFORTABLE_CELSIUS.start), min(numbers.stop + 1, COMFORTABLE_CELSIUS.stop)
        return range(low, high) or everything
    if numbers.step == 1 and len(everything) > 12 * ROUND:
        return range(-(-numbers.start // ROUND) * ROUND, numbers.stop + 1, ROUND)
    return everything


@dataclass(frozen=True)
class Judge:
    """hassil's recogniser, knowing one home's rooms, floors and devices.

    Attributes:
        intents: what can be meant.
        lists: the home's words.
    """

    intents: Intents
    lists: Mapping[str, SlotList]

    def parses(self, text: str) -> dict[str, set[str]]:
        """Everything that the text can mean: service call → texts of the templates that say it. Costs milliseconds."""
        found: dict[str, set[str]] = {}
        for result in recognize_all(text, self.intents, slot_lists=dict(self.lists), language=self.intents.language):
            call = service_call(result.intent.name, {name: entity.value for name, entity in result.entities.items()})
            sentence = result.intent_sentence
            found.setdefault(call, set()).add((sentence.text or "") if sentence else "")
        return found


def judge_of(grammar: Grammar, home: Home, intents: Collection[str]) -> Judge:
    """The judge of a home's commands.

    Args:
        grammar: the home's language.
        home: whose words are known.
        intents: what can be meant; others are no possible answer, and leaving them out halves the time.
    """
    devices = [(device.name, device.name, {"domain": device.domain}) for device in home.devices]
    meant = {name: intent for name, intent in grammar.intents.intents.items() if name in intents}
    return Judge(
        replace(grammar.intents, intents=meant),
        {
            "name": TextSlotList.from_tuples(devices, allow_template=False, name="name"),
            "area": TextSlotList.from_strings(home.areas, allow_template=False, name="area"),
            "floor": TextSlotList.from_strings(home.floors, allow_template=False, name="floor"),
        },
    )
