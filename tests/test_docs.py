"""The page about tasks is true: its tasks are read, its session runs, and no key is missing."""

import dataclasses
import doctest
import re
from pathlib import Path

import pytest

from fedgen.generator.grammar import Grammar
from fedgen.generator.timeseries import Timeseries
from fedgen.task import Task
from fedgen.task_file import read_task
from fedgen.task_parts import Channel, Form, Label, Slot

TEXT = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(name: (\w+)\n.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a reader has saved the page's tasks."""
    for text, name in EXAMPLES:
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_both_kinds_have_an_example(folder):
    assert [read_task(folder / f"{name}.yaml").kind for _, name in EXAMPLES] == ["commands", "sensor"]


@pytest.mark.parametrize(("name", "option"), [("bakery", Grammar()), ("beehive", Timeseries())])
def test_a_generator_writes_wellformed_examples_of_every_label(name, option, folder):
    task = read_task(folder / f"{name}.yaml")
    drafts = list(option.generate(task, option.plan(task, 300, 0), 0))
    assert {draft.label for draft in drafts} == set(task.labels)
    assert [(d.text, reason) for d in drafts if (reason := task.wellformed(d))] == []


def test_the_session_gives_what_it_says(folder):
    session = doctest.DocTestParser().get_doctest(TEXT, {}, "tasks.md", "docs/tasks.md", 0)
    assert len(session.examples) > 8
    assert doctest.DocTestRunner().run(session).failed == 0


def test_every_key_is_in_the_table_and_no_other():
    rows = re.findall(r"^\| ?(\w*) ?\| (`.*?`) \|", TEXT, re.MULTILINE)
    listed, of = {}, ""
    for first, keys in rows:
        of = first or of
        listed.setdefault(of, set()).update(re.findall(r"`(\w+)`", keys))
    classes = {"task": Task, "label": Label, "form": Form, "slot": Slot, "channel": Channel}
    assert listed == {name: {field.name for field in dataclasses.fields(cls)} for name, cls in classes.items()}
