import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hassil.intents import TextSlotList
from hassil.recognize import recognize_all

from fedgen.data.grammar import load_grammar, needed_domains, say, service_call
from fedgen.data.home import draw_devices, draw_home
from fedgen.data.inventories import INVENTORIES
from fedgen.data.smart_home import EIGHT_INTENTS, SmartHome
from fedgen.data.speaker import hold_out
from fedgen.errors import DataError
from fedgen.types import Message

SMALL = SmartHome(num_homes=3, num_train=40, num_eval=30)


@pytest.fixture(scope="module")
def dataset():
    return SMALL.load(0)


def home_in(language, seed=0, intents=EIGHT_INTENTS, num_devices=12):
    rng, inventory = Random(seed), INVENTORIES[language]
    devices = draw_devices(inventory, num_devices, needed_domains(load_grammar(language), intents), rng)
    return draw_home("home", language, inventory, num_areas=5, devices=devices, rng=rng)


def understood(text, home, grammar):
    """What hassil makes of a text, spelt out here once more: intent and slots, numbers as numbers."""
    lists = {
        "name": TextSlotList.from_tuples([(d.name, d.name, {"domain": d.domain}) for d in home.devices], name="name"),
        "area": TextSlotList.from_strings(home.areas, name="area"),
        "floor": TextSlotList.from_strings(home.floors, name="floor"),
    }
    for result in recognize_all(text, grammar.intents, slot_lists=lists, language=home.language):
        yield result.intent.name, {name: entity.value for name, entity in result.entities.items()}


def slots_of(call):
    """A service call taken apart again."""
    name, inner = re.fullmatch(r"(\w+)\((.*)\)", call).groups()
    slots = dict(part.split("=", 1) for part in inner.split(", ")) if inner else {}
    return "Hass" + name, slots


def agrees(call, intent, slots):
    said_intent, said = slots_of(call)
    if said_intent != intent or said.keys() != slots.keys():
        return False
    for name, value in slots.items():
        if isinstance(value, int | float):
            if float(said[name]) != float(value):
                return False
        elif said[name] != ("|".join(value) if isinstance(value, list) else str(value)):
            return False
    return True


@pytest.mark.parametrize(
    ("language", "num_draws"), [("en", 200), ("de", 40), ("fr", 40), ("es", 40), ("nl", 40), ("it", 40)]
)
def test_hassil_understands_what_is_said_as_it_was_meant(language, num_draws):
    grammar, home, rng = load_grammar(language), home_in(language), Random(1)
    intents = set()
    for _ in range(num_draws):
        intent = rng.choice(EIGHT_INTENTS)
        template = rng.choice([x for x in grammar.templates[intent] if x.sayable(home)])
        command = say(grammar, template, home, rng)
        assert command.intent == intent
        assert any(agrees(command.call, *parse) for parse in understood(command.text, home, grammar)), command
        intents.add(intent)
    assert intents == set(EIGHT_INTENTS)


def test_every_intent_of_the_language_can_be_said_and_understood():
    grammar, rng = load_grammar("en"), Random(2)
    home = home_in("en", intents=tuple(grammar.templates), num_devices=25)
    assert len(grammar.templates) > 35
    for intent, templates in grammar.templates.items():
        command = say(grammar, rng.choice([x for x in templates if x.sayable(home)]), home, rng)
        parses = understood(command.text, home, grammar)
        assert any(service_call(*parse) == command.call for parse in parses), (intent, command)


def test_a_command_that_depends_on_the_speakers_room_is_never_said():
    grammar = load_grammar("en")
    blocks = [block for intent in EIGHT_INTENTS for block in grammar.intents.intents[intent].data]
    here = [block for block in blocks if "area" in block.requires_context]
    used = [template.block for intent in EIGHT_INTENTS for template in grammar.templates[intent]]
    assert here
    assert not any(block is other for block in here for other in used)


def test_a_service_call_has_sorted_slots_and_whole_numbers():
    call = service_call("HassLightSet", {"name": "desk lamp", "brightness": 40.0, "area": "den"})
    assert call == "LightSet(area=den, brightness=40, name=desk lamp)"
    assert service_call("HassTurnOn", {"device_class": ["blind", "shade"]}) == "TurnOn(device_class=blind|shade)"
    assert service_call("HassX", {"temperature": 20.5}) == "X(temperature=20.5)"
    assert service_call("HassNevermind", {}) == "Nevermind()"


def test_sizes_owners_and_order(dataset):
    assert Counter(example.owner for example in dataset.train) == {"home-0": 40, "home-1": 40, "home-2": 40}
    assert list(dataset.evaluation) == ["new_utterances", "new_templates", "new_home"]
    for name in ("new_utterances", "new_templates"):
        owners = [example.owner for example in dataset.evaluation[name]]
        assert owners == ["home-0", "home-1", "home-2"] * 10  # taking turns, so a prefix shows every home
    assert Counter(example.owner for example in dataset.evaluation["new_home"]) == {"new-home-0": 30}
    assert "Apache-2.0" in dataset.description
    assert "40 training examples per home" in dataset.description
    example = dataset.train[0]
    assert example.prompt == SMALL.prompt(example.text) == (Message("user", example.text),)
    assert all("Hass" + x.completion.partition("(")[0] == x.label for x in dataset.train)


def test_nothing_that_is_measured_was_trained_on_in_any_home(dataset):
    trained = {example.text.casefold() for example in dataset.train}
    for split in dataset.evaluation.values():
        assert trained.isdisjoint(example.text.casefold() for example in split)
    for part in (dataset.train, *dataset.evaluation.values()):
        said = [(example.owner, example.text.casefold()) for example in part]
        assert len(said) == len(set(said))


def test_public_commands_are_said_in_a_home_that_takes_no_other_part(dataset):
    assert len({example.text.casefold() for example in dataset.public}) == len(dataset.public) == 48
    assert {example.owner for example in dataset.public} == {""}
    assert {example.label for example in dataset.public} == set(SMALL.intents)  # asked for equally often
    measured = {example.text.casefold() for split in dataset.evaluation.values() for example in split}
    assert measured.isdisjoint(example.text.casefold() for example in dataset.public)
    learnt = {example.completion for example in dataset.train}
    assert sum(example.completion in learnt for example in dataset.public) < 0.5 * 48  # other rooms and devices


def test_public_commands_change_no_other_example(dataset):
    without = replace(SMALL, num_public=0).load(0)
    assert without.public == ()
    assert (without.train, without.evaluation) == (dataset.train, dataset.evaluation)


def test_public_homes_share_the_examples_and_say_what_they_can():
    both = SmartHome(num_homes=2, num_train=5, num_eval=4, num_public=7, languages=("en", "de")).load(0)
    german = set(INVENTORIES["de"].areas + INVENTORIES["de"].floors)
    assert len(both.public) == 7
    assert any(any(word in example.text for word in german) for example in both.public)
    few = SmartHome(num_homes=1, num_train=5, num_eval=4, num_public=5000, intents=("HassVacuumStart",)).load(0)
    assert 10 < len(few.public) < 5000


def test_templates_are_divided_by_their_texts():
    grammar = load_grammar("en")
    known, held_out = hold_out(grammar, EIGHT_INTENTS, 0.1, seed=0)
    for intent in EIGHT_INTENTS:
        texts = {template.text for template in grammar.templates[intent]}
        kept = {template.text for template in known[intent]}
        unheard = {template.text for template in held_out.get(intent, ())}
        assert kept
        assert kept | unheard == texts
        assert kept.isdisjoint(unheard)
        assert len(unheard) == round(0.1 * len(texts))
    assert hold_out(grammar, EIGHT_INTENTS, 0.0, seed=0)[1] == {}
    assert hold_out(grammar, EIGHT_INTENTS, 0.1, seed=1)[1] != held_out


def test_new_templates_are_said_by_no_template_of_the_training_set(dataset):
    grammar = load_grammar("en")
    known, _ = hold_out(grammar, SMALL.intents, SMALL.held_out_templates, seed=0)
    texts = {intent: {template.text for template in templates} for intent, templates in known.items()}
    names = [name for names in INVENTORIES["en"].devices.values() for name in names]
    for example in dataset.evaluation["new_templates"]:
        lists = {  # any home at all, so wider than the example's own
            "name": TextSlotList.from_strings(names, name="name"),
            "area": TextSlotList.from_strings(INVENTORIES["en"].areas, name="area"),
            "floor": TextSlotList.from_strings(INVENTORIES["en"].floors, name="floor"),
        }
        for result in recognize_all(example.text, grammar.intents, slot_lists=lists, language="en"):
            slots = {name: entity.value for name, entity in result.entities.items()}
            if service_call(result.intent.name, slots) == example.completion:
                assert result.intent_sentence.text not in texts[example.label]


def test_alternatives_are_the_other_parses():
    # "pause the 80 second timer" may also ask for the timer named "80 second".
    option = SmartHome(num_homes=1, num_train=5, num_eval=40, intents=("HassPauseTimer",), held_out_templates=0.0)
    split = option.load(0).evaluation["new_utterances"]
    grammar = load_grammar("en")
    home = replace(home_in("en"), areas=INVENTORIES["en"].areas)  # timers name no device, and at most one room
    several = 0
    for example in split:
        parses = {
            service_call(*parse) for parse in understood(example.text, home, grammar) if parse[0] in option.intents
        }
        assert {example.completion, *example.alternatives} == parses
        assert example.completion not in example.alternatives
        several += bool(example.alternatives)
    assert several > 0


def test_homes_differ_in_their_words_and_in_their_mix():
    uneven = SmartHome(num_homes=6, num_train=60, num_eval=6, intent_concentration=0.05).load(0)
    even = SmartHome(num_homes=6, num_train=60, num_eval=6, intent_concentration=1000.0).load(0)

    def top(dataset):
        counts = [Counter(x.label for x in dataset.train if x.owner == f"home-{i}") for i in range(6)]
        return sum(max(count.values()) for count in counts) / (6 * 60)

    assert top(uneven) > 0.5 > 0.25 > top(even)
    calls = [{x.completion for x in even.train if x.owner == f"home-{i}"} for i in range(2)]
    assert len(calls[0] & calls[1]) < 0.3 * len(calls[0])


def test_a_home_does_not_depend_on_how_many_others_there_are(dataset):
    more = replace(SMALL, num_homes=5).load(0)
    assert more.train[: 3 * 40] == dataset.train


def test_the_seed_decides_in_every_process(dataset):
    assert SMALL.load(0) == dataset
    assert {x.text for x in SMALL.load(1).train} != {x.text for x in dataset.train}
    code = (
        "import hashlib; from fedgen.data.smart_home import SmartHome; "
        f"print(hashlib.sha256(repr({SMALL!r}.load(0)).encode()).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == hashlib.sha256(repr(dataset).encode()).hexdigest()


def test_shuffled_labels_keep_prompts_answers_and_evaluation_but_not_the_pairs(dataset):
    control = replace(SMALL, shuffle_labels=True).load(0)
    assert [x.prompt for x in control.train] == [x.prompt for x in dataset.train]
    for owner in ("home-0", "home-1", "home-2"):
        answers = [Counter(x.completion for x in d.train if x.owner == owner) for d in (control, dataset)]
        assert answers[0] == answers[1]
    right = sum(a.completion == b.completion for a, b in zip(control.train, dataset.train, strict=True))
    assert right < 0.15 * len(dataset.train)
    assert control.evaluation == dataset.evaluation
    assert "negative control" in control.description


def test_homes_may_speak_different_languages():
    option = SmartHome(num_homes=3, num_train=20, num_eval=12, languages=("en", "de"))
    dataset = option.load(0)
    english = SmartHome(num_homes=3, num_train=20, num_eval=12).load(0)
    texts = [[x.text for x in dataset.train if x.owner == f"home-{i}"] for i in range(3)]
    assert texts[0] == [x.text for x in english.train if x.owner == "home-0"]
    german = set(INVENTORIES["de"].areas + INVENTORIES["de"].floors)
    assert sum(any(word in text for word in german) for text in texts[1]) > 3
    assert not any(word in text for word in german for text in texts[0] + texts[2])
    assert {x.owner for x in dataset.evaluation["new_home"]} == {"new-home-0", "new-home-1"}
    assert {x.label for x in dataset.train} <= set(EIGHT_INTENTS)


def test_without_held_out_templates_their_split_is_left_out():
    evaluation = SmartHome(num_homes=1, num_train=5, num_eval=3, held_out_templates=0.0).load(0).evaluation
    assert list(evaluation) == ["new_utterances", "new_home"]


def test_a_home_with_too_little_to_say_is_an_error():
    option = SmartHome(num_homes=1, num_train=3000, num_eval=1, intents=("HassVacuumStart",))
    with pytest.raises(DataError, match=r"home-0 has \d+ different utterances to train on, and 3000 were asked for"):
        option.load(0)


def test_unknown_intents_are_named_with_the_known_ones():
    with pytest.raises(DataError, match=r"intents has HassDance, but the grammar of 'en' knows .*HassTurnOn"):
        SmartHome(intents=("HassTurnOn", "HassDance")).load(0)


def test_too_few_devices_for_the_intents_are_an_error():
    with pytest.raises(DataError, match=r"num_devices is 2, but the intents need 6 devices"):
        SmartHome(num_devices=2).load(0)


@pytest.mark.parametrize("module", ["hassil", "home_assistant_intents"])
def test_a_missing_package_is_named_with_the_command_that_installs_both(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)  # what Python does for a module that must not be imported
    with pytest.raises(
        DataError, match=f"{module.replace('_', '-')} is missing: pip install home-assistant-intents hassil"
    ):
        SmartHome().load(0)


def test_checking_the_options_imports_neither_grammar_nor_recogniser():
    code = "import sys; from fedgen.data.smart_home import SmartHome; SmartHome(); print('hassil' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_homes": 0}, "num_homes is 0"),
        ({"num_train": -1}, "num_train is -1"),
        ({"num_eval": 0}, "num_eval is 0"),
        ({"num_public": -1}, "num_public is -1"),
        ({"intents": ()}, "name at least one"),
        ({"intents": ("HassTurnOn", "HassTurnOn")}, "each once"),
        ({"intent_concentration": 0.0}, "intent_concentration is 0.0"),
        ({"held_out_templates": 1.0}, "held_out_templates is 1.0"),
        ({"languages": ("en", "tlh")}, r"languages is \['en', 'tlh'\]; known are en, de, fr, es, nl, it"),
        ({"languages": ()}, "known are en"),
        ({"num_areas": 99}, "num_areas is 99; the inventory has 22"),
        ({"num_devices": 999}, "num_devices is 999; the inventory has"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SmartHome(**options)
