"""Drafts of the tasks that come with fedgen: of the grammar for commands, and windows with faults drawn here."""

from random import Random

import pytest

from fedgen.config.catalogue import shipped
from fedgen.generator.grammar import Grammar
from fedgen.task import Draft
from fedgen.task_file import read_task

CHANNEL = "room temperature"


@pytest.fixture(scope="session")
def task():
    return read_task(shipped("configs") / "task" / "smart_home.yaml")


@pytest.fixture(scope="session")
def sensor():
    return read_task(shipped("configs") / "task" / "sensor.yaml")


@pytest.fixture(scope="session")
def drafts(task):
    """600 commands, none of which is twice in it."""
    written = Grammar().generate(task, Grammar().plan(task, 800, 0), 0)
    return list({draft.text: draft for draft in written if task.wellformed(draft) is None}.values())[:600]


@pytest.fixture(scope="session")
def windows(sensor):
    """40 windows of each label, from formulas of this file."""
    rng = Random(0)
    labels = ("normal", "spike", "stuck", "drift", "dropout", "saturation")
    return [window(sensor, label, rng) for _ in range(40) for label in labels]


def window(sensor, label, rng):
    """A slow walk about 21 degrees with the fault that a label names."""
    level, length = rng.uniform(18, 24), sensor.num_readings
    values = []
    for _ in range(length):
        level += rng.choice([-0.3, -0.2, -0.1, 0.1, 0.2, 0.3])
        values.append(level)
    begin = rng.randrange(4, length // 2)
    if label == "spike":
        values[begin] += rng.choice([-1, 1]) * rng.uniform(8, 15)
    if label == "stuck":
        values[begin:] = [values[begin]] * (length - begin)
    if label == "drift":
        values = [value + 0.6 * max(0, i - begin) for i, value in enumerate(values)]
    if label == "saturation":
        values[begin : begin + 10] = [80.0] * 10
    texts = [f"{value:.1f}" for value in values]
    if label == "dropout":
        texts[begin : begin + 6] = [sensor.missing] * 6
    return Draft(sensor.render(CHANNEL, " ".join(texts)), label, label, {"channel": CHANNEL}, 0)
