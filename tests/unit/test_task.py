"""Whether a text says what its answer says, judged by a task's description."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgen.config.catalogue import shipped
from fedgen.data.grammar import judge_of, load_grammar
from fedgen.data.home import Device, Home
from fedgen.data.inventories import INVENTORIES
from fedgen.data.smart_home import EIGHT_INTENTS
from fedgen.generator.grammar import Grammar
from fedgen.task import Draft, Order, Task, mentions
from fedgen.task_file import read_task
from fedgen.task_parts import Slot, spell, spoken_interval
from fedgen.types import Message

HOME = read_task(Path(shipped("configs")) / "task" / "smart_home.yaml")
SENSOR = read_task(Path(shipped("configs")) / "task" / "sensor.yaml")
READINGS = ["21.5"] * 24


def draft(text: str, answer: str, label: str, **slots: str) -> Draft:
    return Draft(text, answer, label, slots, 0)


def lit(text: str, **changes: object) -> str | None:
    """What is wrong with a text for the sofa lamp in the den."""
    wanted = draft(text, "TurnOn(area=den, name=sofa lamp)", "HassTurnOn", area="den", lamp="sofa lamp")
    return HOME.wellformed(replace(wanted, **changes))


def window(readings: list[str], name: str = "room temperature", answer: str = "normal") -> str | None:
    return SENSOR.wellformed(draft(SENSOR.render(name, " ".join(readings)), answer, answer, channel=name))


def test_a_text_that_says_what_the_answer_says_is_wellformed():
    assert lit("Turn on the sofa lamp in the den") is None
    assert lit("den: SOFA  lamp on!") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the text is empty"),
        ("  ", "the text is empty"),
        ("turn on the sofa lamp\nin the den", "the text has line breaks or control characters"),
        ("turn on the sofa lamp in the den\x1b[2J", "the text has line breaks or control characters"),
        ("turn on the sofa lamp", "the text does not mention area"),
        ("turn on the lamp in the den", "the text does not mention lamp"),
        ("turn on the sofa lamp in the garden", "the text does not mention area"),
        ("the sofa lamp in the den", "the text has no word that says what is wanted"),
        ("turn on the sofa lamp in the den and not off", "the text has a word that means another label"),
        ("turn on the sofa lamp in the den at 7", "the text has a number that the answer lacks"),
        ("turn on the sofa lamp in the den and the kitchen", "the text has another value of area"),
        ("turn on the sofa lamp in the red den", "the text has another value of color"),
        ("turn on the sofa lamp in the den " + "please " * 17, "the text has more than 24 words"),
    ],
)
def test_a_text_that_does_not_is_refused_with_the_reason(text, reason):
    assert lit(text) == reason


def test_what_no_order_asked_for_is_refused():
    text = "turn on the sofa lamp in the den"
    assert lit(text, label="HassTurnUp") == "there is no such label"
    assert lit(text, answer="TurnOff(area=den, name=sofa lamp)") == (
        "the answer does not follow from the label and the slots"
    )
    assert lit(text, slots={"area": "moon", "lamp": "sofa lamp"}) == "area has a value outside its list or range"
    assert lit(text, slots={"area": "den", "wish": "sofa lamp"}) == "wish has a value outside its list or range"


def test_a_value_inside_of_another_is_not_a_second_value():
    """There is a bedroom in the bedroom lamp, and nobody speaks of it."""
    said = draft("turn on the bedroom lamp", "TurnOn(name=bedroom lamp)", "HassTurnOn", lamp="bedroom lamp")
    assert HOME.wellformed(said) is None
    assert HOME.wellformed(replace(said, text="turn on the bedroom lamp in the bedroom")) == (
        "the text has another value of area"
    )


def test_the_word_or_what_it_stands_for_is_a_mention():
    answer = "LightSet(name=sofa lamp, temperature=2700)"
    for text in ("sofa lamp to warm white", "sofa lamp to 2700"):
        assert HOME.wellformed(draft(text, answer, "HassLightSet", lamp="sofa lamp", white="warm white")) is None


@pytest.mark.parametrize(
    ("percentage", "reason"),
    [
        ("40", None),
        ("43", "percentage has a value outside its list or range"),
        ("400", "percentage has a value outside its list or range"),
    ],
)
def test_numbers_are_of_the_slots_range_and_step(percentage, reason):
    said = draft(
        f"set the box fan to {percentage} percent",
        f"FanSetSpeed(name=box fan, percentage={percentage})",
        "HassFanSetSpeed",
        fan="box fan",
        percentage=percentage,
    )
    assert HOME.wellformed(said) == reason


def test_a_number_is_not_mentioned_by_a_longer_one():
    said = draft("", "FanSetSpeed(name=box fan, percentage=40)", "HassFanSetSpeed", fan="box fan", percentage="40")
    assert HOME.wellformed(replace(said, text="box fan 40%")) is None
    for text in ("box fan 140%", "box fan 40.5%", "box fan 4 0%"):
        assert HOME.wellformed(replace(said, text=text)) == "the text does not mention percentage"


@given(text=st.text(max_size=60), number=st.integers(0, 6))
def test_no_text_whatsoever_breaks_the_check(text, number):
    order = Grammar().plan(HOME, 7, 0)[number]
    assert HOME.wellformed(HOME.draft(order, 0, text)) is None or isinstance(lit(text), str)


@pytest.mark.parametrize(
    ("readings", "reason"),
    [
        (READINGS, None),
        (["-", *READINGS[1:]], None),
        (["-40.0", "80.0", *READINGS[2:]], None),
        (["80.1", *READINGS[1:]], "a reading is outside the range of its channel"),
        (["-273.1", *READINGS[1:]], "a reading is outside the range of its channel"),
        (READINGS[1:], "the window has not 24 readings"),
        (["warm", *READINGS[1:]], "a reading is no number"),
        (["nan", *READINGS[1:]], "a reading is no number"),
        (["1e9", *READINGS[1:]], "a reading is no number"),
    ],
)
def test_a_window_has_readings_of_its_channel(readings, reason):
    assert window(readings) == reason


def test_a_window_is_of_a_channel_in_its_unit():
    text = SENSOR.render("humidity", " ".join(READINGS))
    other = draft(text, "normal", "normal", channel="room temperature")
    assert SENSOR.wellformed(other) == "the text is no window in the task's rendering"
    assert (
        SENSOR.wellformed(replace(other, slots={"channel": "mood"})) == "channel has a value outside its list or range"
    )
    assert SENSOR.wellformed(replace(other, slots={})) == "the window is of no channel"
    fahrenheit = text.replace("humidity in %", "room temperature in °F")
    assert SENSOR.wellformed(replace(other, text=fahrenheit)) == "the text is no window in the task's rendering"


def test_an_example_has_the_shape_of_the_homes_own():
    order = Order(3, "HassTurnOn", 0, ({"lamp": "sofa lamp"},), {"tone": "plain", "length": "short"}, 1)
    example = HOME.example(HOME.draft(order, 0, "sofa lamp on"))
    assert example.prompt == (Message("user", "sofa lamp on"),)
    assert (example.completion, example.label) == ("TurnOn(name=sofa lamp)", "HassTurnOn")
    assert (example.owner, example.alternatives) == ("", ())


def test_the_tasks_intents_are_those_of_the_homes():
    assert set(HOME.labels) == set(EIGHT_INTENTS)


def test_the_task_knows_no_device_of_the_homes():
    devices = {name for inventory in INVENTORIES.values() for names in inventory.devices.values() for name in names}
    own = {value for name, slot in HOME.slots.items() if name not in ("area", "floor") for value in slot.values}
    assert own.isdisjoint(devices)


def test_home_assistants_own_recogniser_takes_the_sentences_as_they_are_meant():
    """Not all of them: people say more than its grammar has. But what it understands, it understands like that."""
    domains = {
        "lamp": "light",
        "plug": "switch",
        "fan": "fan",
        "cover": "cover",
        "climate": "climate",
        "player": "media_player",
        "vacuum": "vacuum",
    }
    devices = tuple(Device(name, domain) for slot, domain in domains.items() for name in HOME.slots[slot].values)
    home = Home("anybody's", "en", tuple(HOME.slots["area"].values), tuple(HOME.slots["floor"].values), devices)
    judge = judge_of(load_grammar("en"), home, EIGHT_INTENTS)
    plain = replace(HOME, tones={"plain": ("{text}",)})
    option = Grammar()
    found = [(d, judge.parses(d.text)) for d in option.generate(plain, option.plan(plain, 160, 0), 0)]
    understood = [(d, parses) for d, parses in found if parses]
    assert len(understood) > 80
    assert [(d.text, d.answer, sorted(parses)) for d, parses in understood if d.answer not in parses] == []
    assert {d.label for d, _ in understood} == set(EIGHT_INTENTS)


def test_the_digest_changes_with_everything_that_is_said():
    assert HOME.digest == read_task(Path(shipped("configs")) / "task" / "smart_home.yaml").digest
    assert replace(HOME, max_words=25).digest != HOME.digest
    louder = {**HOME.slots, "volume": replace(HOME.slots["volume"], high=90.0)}
    assert replace(HOME, slots=louder).digest != HOME.digest


def test_its_languages_are_those_of_its_forms():
    label = HOME.labels["HassVacuumStart"]
    german = replace(label.forms[0], answer="VacuumStart(wer={vacuum})", texts=("starte {vacuum}",), language="de")
    both = replace(HOME, labels={"HassVacuumStart": replace(label, forms=(label.forms[0], german))})
    assert both.languages == ("en", "de")


def test_a_task_that_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match=r"labels: it is empty"):
        Task("a", "commands", "b", {})


@given(low=st.integers(-50, 50), count=st.integers(0, 40), step=st.sampled_from([0.1, 0.25, 0.5, 1.0, 3.0]))
def test_a_range_has_all_its_numbers_and_no_other(low, count, step):
    choices = Slot(low=float(low), high=low + count * step, step=step).choices
    assert [float(choice) for choice in choices] == pytest.approx([low + i * step for i in range(count + 1)])
    assert all(choice == spell(float(choice)) for choice in choices)


def test_small_words():
    assert mentions("Lights ON, please", ("on",))
    assert not mentions("a lesson", ("on",))
    assert [spoken_interval(seconds) for seconds in (3600.0, 5400.0, 61.0, 0.5)] == ["1 h", "90 min", "61 s", "0.5 s"]
