"""A task file is read, or every fault in it is named at once, each under its key."""

import copy
import subprocess
import sys

import pytest
import yaml

from fedgen.config.catalogue import shipped
from fedgen.errors import ConfigError
from fedgen.task_file import build_task, read_task
from fedgen.task_parts import Slot

DOOR = {
    "name": "door",
    "kind": "commands",
    "description": "Commands to a door.",
    "slots": {"who": {"means": "a person", "values": ["anna", "ben"]}, "minutes": {"low": 1, "high": 5}},
    "labels": {
        "open": {"means": "open the door", "forms": [{"answer": "Open(for={who})", "texts": ["let {who} in"]}]},
        "lock": {"means": "lock it", "forms": [{"answer": "Lock(in={minutes})", "texts": ["lock in {minutes}"]}]},
    },
}
SHED = {
    "name": "shed",
    "kind": "sensor",
    "description": "Readings of a shed.",
    "channels": {
        "air": {"device": "probe", "unit": "°C", "low": -40, "high": 80, "usual_low": -5, "usual_high": 30}
        | {"interval_s": 60, "noise": 0.5}
    },
    "labels": {"fine": {"means": "it works", "fault": "none", "forms": [{"answer": "fine"}]}},
}


def faults(task, **changes):
    """The lines of the refusal, after changes under dotted keys."""
    config = copy.deepcopy(task)
    for key, value in changes.items():
        *path, last = key.split("__")
        node = config
        for step in path:
            node = node[int(step)] if isinstance(node, list) else node[step]
        if isinstance(node, list):
            node[int(last)] = value
        elif value is ...:
            del node[last]
        else:
            node[last] = value
    with pytest.raises(ConfigError) as caught:
        build_task(config, "door.yaml")
    first, *lines = str(caught.value).splitlines()
    assert first == f"the task door.yaml has {'one fault' if len(lines) == 1 else f'{len(lines)} faults'}:"
    return [line.strip() for line in lines]


def test_a_good_one_is_read():
    task = build_task(DOOR, "door.yaml")
    assert task.slots["who"] == Slot(means="a person", values={"anna": "anna", "ben": "ben"})
    assert task.slots["minutes"].choices == ("1", "2", "3", "4", "5")
    assert task.labels["open"].forms[0].slots == ("who",)
    assert build_task(SHED, "shed.yaml").channels["air"].low == -40.0


FORM = "labels__open__forms__0"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"name": "the door"}, "name: 'the door'; expected a word of letters, digits and underscores"),
        ({"name": ...}, "name: it is missing"),
        ({"kind": "text"}, "kind: 'text'; expected commands or sensor"),
        ({"description": " "}, "description: it is empty; say in a sentence what the task is about"),
        ({"labels": {}}, "labels: it is empty; a task has at least one label"),
        ({"labels": []}, "labels: [] is no mapping; write a name and a colon before each of them"),
        (
            {"colour": "red"},
            "colour: there is no such key; there are name, kind, description, labels, slots, channels, "
            "tones, rendering, num_readings, missing, max_words",
        ),
        ({"max_words": 1.5}, "max_words: 1.5 is no whole number"),
        ({"max_words": 1}, "max_words: 1; it must be at least 2"),
        ({"tones": {"loud": ["text!"]}}, "tones.loud: 'text!' is no sentence with one {text}"),
        ({"tones": {"loud": []}}, "tones.loud: it is empty; give it ways to wrap a {text}"),
        ({"tones": {}}, "tones: it is empty; leave it out, and everything is said plainly"),
        ({"slots__minutes__low": 9}, "slots.minutes.low: 9 is above high, 5"),
        ({"slots__minutes__high": ...}, "slots.minutes: it has no values; give values, or low and high for a number"),
        ({"slots__minutes__step": 0}, "slots.minutes.step: 0; it must be positive"),
        (
            {"slots__minutes__step": 1e-9},
            "slots.minutes.step: 1e-09 makes more than 10000 numbers of the range; take a larger one",
        ),
        ({"slots__minutes__low": "one"}, "slots.minutes.low: 'one' is no number"),
        ({"slots__minutes__values": ["a"]}, "slots.minutes: it has values and a range; give one of them"),
        (
            {"slots__minutes__lo": 1},
            "slots.minutes.lo: there is no such key; did you mean 'low'?; there are means, "
            "values, low, high, step, unit",
        ),
        ({"slots__who__values": ["anna", True]}, "slots.who.values.1: yaml reads it as True; write the word in quotes"),
        ({"slots__who__values": ["anna", ""]}, "slots.who.values: a word is empty"),
        ({"slots__who": "anna"}, "slots.who: 'anna' is no mapping; it has means, values, low, high, step, unit"),
        ({"labels__open__means": ""}, "labels.open.means: it is empty; say in words what the label means"),
        ({"labels__open__means": ...}, "labels.open.means: it is missing"),
        ({"labels__open__forms": []}, "labels.open.forms: it is missing"),
        ({"labels__open__forms": "x"}, "labels.open.forms: 'x' is no list; write each form with a dash before it"),
        ({"labels__open__cues": [1]}, "labels.open.cues.0: 1 is no text; write the word in quotes"),
        ({"labels__open__fault": "none"}, "labels.open.fault: 'none'; only the labels of a sensor task have one"),
        ({f"{FORM}__answer": " "}, "labels.open.forms.0.answer: it is empty"),
        (
            {f"{FORM}__answer": "Open({who"},
            "labels.open.forms.0.answer: 'Open({who' cannot be read: expected '}' before end of string",
        ),
        ({f"{FORM}__texts": []}, "labels.open.forms.0.texts: it is empty; give at least one sentence"),
        ({f"{FORM}__texts": ["let in"]}, "labels.open.forms.0.texts.0: 'let in' lacks {who}, which the answer has"),
        (
            {f"{FORM}__texts": ["let {whom} in {who}"]},
            "labels.open.forms.0.texts.0: {whom} is no slot of the task; did you mean {who}?; it has who, minutes",
        ),
        (
            {f"{FORM}__texts": ["let {who} in for {minutes}"]},
            "labels.open.forms.0.texts.0: 'let {who} in for {minutes}' has {minutes}, which the answer lacks",
        ),
        (
            {f"{FORM}__texts": ["let {who in"]},
            "labels.open.forms.0.texts.0: 'let {who in' cannot be read: expected '}' before end of string",
        ),
        (
            {"labels__lock__forms__0": {"answer": "Open(for={who})", "texts": ["{who}"]}},
            "labels.lock: its answer 'Open(for={who})' is that of open as well",
        ),
    ],
)
def test_each_fault_is_named_with_its_key_what_was_got_and_what_is_expected(changes, line):
    assert faults(DOOR, **changes) == [line]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"channels": {}}, "channels: it is empty; a sensor task has at least one"),
        (
            {"channels__air__usual_low": -41},
            "channels.air.usual_low: -41 to 30 is not within the range of the sensor, -40 to 80",
        ),
        ({"channels__air__usual_low": 31}, "channels.air.usual_low: 31 is not below usual_high, 30"),
        (
            {"channels__air__usual_high": 99},
            "channels.air.usual_low: -5 to 99 is not within the range of the sensor, -40 to 80",
        ),
        ({"channels__air__interval_s": 0}, "channels.air.interval_s: 0; it must be positive"),
        ({"channels__air__noise": -1}, "channels.air.noise: -1; it must be at least 0"),
        ({"channels__air__decimals": 9}, "channels.air.decimals: 9; it must be from 0 to 6"),
        ({"channels__air__unit": ""}, "channels.air.unit: it is empty; say what the readings count"),
        (
            {"labels__fine__fault": "tired"},
            "labels.fine.fault: 'tired'; expected one of none, spike, stuck, drift, dropout, saturation",
        ),
        (
            {"labels__fine__forms__0__texts": ["a"]},
            "labels.fine.forms.0: the form of a sensor's label is an answer without slots, and has no texts",
        ),
        ({"slots": {"x": {"values": ["y"]}}}, "slots: a sensor task has channels and no slots; leave slots out"),
        ({"rendering": "{unit}"}, "rendering: '{unit}' has {readings} 0 times; expected once"),
        (
            {"rendering": "{readings} {mood}"},
            "rendering: {mood} is unknown; it can name channel, device, unit, interval, readings",
        ),
        ({"rendering": "{readings"}, "rendering: '{readings' cannot be read: expected '}' before end of string"),
        ({"num_readings": 1}, "num_readings: 1; it must be at least 2"),
    ],
)
def test_so_is_each_fault_of_a_sensor_task(changes, line):
    assert faults(SHED, **changes) == [line]


def test_what_is_wrong_twice_is_said_twice():
    assert faults(SHED, channels__air__low=90) == [
        "channels.air.low: 90 is not below high, 80",
        "channels.air.usual_low: -5 to 30 is not within the range of the sensor, 90 to 80",
    ]


def test_all_faults_come_at_once_and_a_slot_that_cannot_be_read_is_one_fault():
    got = faults(
        DOOR,
        kind="text",
        slots__who=3,
        slots__minutes__low=9,
        labels__open__means="",
        labels__lock__forms__0__answer="",
    )
    assert [line.partition(":")[0] for line in got] == [
        "slots.who",
        "kind",
        "slots.minutes.low",
        "labels.open.means",
        "labels.lock.forms.0.answer",
    ]


@pytest.mark.parametrize("config", [None, [], "door", 3])
def test_what_is_no_mapping_is_refused(config):
    with pytest.raises(ConfigError, match="expected keys such as name"):
        build_task(config, "door.yaml")


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", None])
def test_a_file_that_cannot_be_read_is_named(content, tmp_path):
    file = tmp_path / "task.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"cannot read the task {file}"):
        read_task(file)


def test_a_file_that_is_read_says_what_it_says(tmp_path):
    file = tmp_path / "door.yaml"
    file.write_text(yaml.safe_dump(DOOR))
    assert read_task(file) == build_task(DOOR, "door.yaml")


def test_a_task_is_read_without_torch():
    file = shipped("configs") / "task" / "smart_home.yaml"
    code = "import sys, pathlib; from fedgen.task_file import read_task; read_task(pathlib.Path(sys.argv[1]))"
    told = [sys.executable, "-c", f"{code}; print('torch' in sys.modules)", str(file)]
    assert subprocess.run(told, capture_output=True, text=True, check=True).stdout == "False\n"
