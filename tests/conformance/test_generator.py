"""What every generator keeps, however it writes."""

from collections import Counter
from dataclasses import fields, replace
from functools import cache

import pytest

from fedgen.config.catalogue import shipped
from fedgen.errors import ConfigError
from fedgen.model.tiny import Tiny
from fedgen.stages import Generator
from fedgen.task import Draft, Task
from fedgen.task_file import read_task
from tests.conformance.options import build, disturb, options

TASKS = {file.stem: read_task(file) for file in sorted((shipped("configs") / "task").glob("*.yaml"))}
NUM_EXAMPLES = 24


def small(option: Generator) -> Generator:
    """The option with a model that knows nothing, if it has one: what it writes is noise, and written at once."""
    tiny = {"model": Tiny(hidden_size=32), "per_order": 4, "max_new_tokens": 3}
    return replace(option, **{field.name: tiny[field.name] for field in fields(option) if field.name in tiny})


def task_for(generator: Generator) -> Task:
    return next(task for task in TASKS.values() if task.kind == generator.kind)


@cache
def written(generator: Generator, seed: int) -> tuple[Draft, ...]:
    task = task_for(generator)
    return tuple(generator.generate(task, generator.plan(task, NUM_EXAMPLES, seed), seed))


@pytest.fixture(params=options("generator"))
def generator(request: pytest.FixtureRequest) -> Generator:
    return small(build("generator", request.param))


def test_it_is_a_generator(generator):
    assert isinstance(generator, Generator)
    assert generator.licence


@pytest.mark.parametrize("num_examples", [1, NUM_EXAMPLES, 203])
def test_a_plan_asks_for_as_many_as_are_wanted_and_as_many_of_each_label(generator, num_examples):
    task = task_for(generator)
    orders = generator.plan(task, num_examples, 0)
    assert [order.index for order in orders] == list(range(len(orders)))
    asked = Counter({name: 0 for name in task.labels})
    for order in orders:
        asked[order.label] += order.num
    assert sum(asked.values()) == num_examples
    assert asked.keys() == task.labels.keys()
    assert max(asked.values()) - min(asked.values()) <= 1


def test_a_plan_asks_for_every_form_and_for_many_values(generator):
    task = task_for(generator)
    orders = generator.plan(task, 600, 0)
    forms = {(order.label, order.form) for order in orders}
    assert forms == {(name, form) for name, label in task.labels.items() for form in range(len(label.forms))}
    values = Counter(value for order in orders for slots in order.slots for value in slots.values())
    known = [set(task.channels)] if task.kind == "sensor" else [set(slot.values) for slot in task.slots.values()]
    assert set().union(*known) <= values.keys()


def test_each_draft_is_what_was_ordered(generator):
    task = task_for(generator)
    orders = generator.plan(task, NUM_EXAMPLES, 0)
    drafts = written(generator, 0)
    assert len(drafts) == NUM_EXAMPLES
    places = [(order, slots) for order in orders for slots in order.slots]
    for draft, (order, slots) in zip(drafts, places, strict=True):
        assert (draft.label, draft.order, draft.slots) == (order.label, order.index, slots)
        assert draft.answer == task.answer(order.label, order.form, slots)


def test_same_seed_same_plan_and_drafts(generator):
    first, task = written(generator, 0), task_for(generator)
    disturb()
    orders = generator.plan(task, NUM_EXAMPLES, 0)
    assert tuple(generator.generate(task, orders, 0)) == first


def test_another_seed_gives_other_ones(generator):
    task = task_for(generator)
    assert generator.plan(task, NUM_EXAMPLES, 1) != generator.plan(task, NUM_EXAMPLES, 0)
    assert [draft.text for draft in written(generator, 1)] != [draft.text for draft in written(generator, 0)]


@pytest.mark.parametrize("done", [1, 3])
def test_a_plan_that_was_interrupted_is_continued_as_if_it_had_not_been(generator, done):
    task = task_for(generator)
    orders = generator.plan(task, NUM_EXAMPLES, 0)
    left = tuple(generator.generate(task, orders[done:], 0))
    assert left == written(generator, 0)[-len(left) :]
    assert len(left) == sum(order.num for order in orders[done:])


def test_drafts_come_as_they_are_asked_for(generator):
    """Nobody waits for the last one, and what is not asked for is not written."""
    task = task_for(generator)
    orders = generator.plan(task, 10**4, 0)
    drafts = generator.generate(task, iter(orders), 0)
    assert next(drafts).order == 0


def test_a_variation_keeps_the_answer_and_is_fixed_by_the_seed(generator):
    task = task_for(generator)
    drafts = [draft for draft in written(generator, 0) if task.wellformed(draft) is None]
    assert list(generator.vary(task, drafts, 0.0, 0)) == drafts
    varied = list(generator.vary(task, drafts, 1.0, 0))
    disturb()
    assert list(generator.vary(task, drafts, 1.0, 0)) == varied
    assert [(d.answer, d.label, d.slots, d.order) for d in varied] == [
        (d.answer, d.label, d.slots, d.order) for d in drafts
    ]


def test_a_task_of_another_kind_is_refused(generator):
    other = next(task for task in TASKS.values() if task.kind != generator.kind)
    with pytest.raises(ConfigError, match=f"{other.name} is of kind {other.kind}; choose generator="):
        generator.plan(other, 8, 0)


def test_nothing_cannot_be_planned(generator):
    with pytest.raises(ConfigError, match="num_examples is 0"):
        generator.plan(task_for(generator), 0, 0)


def test_its_fingerprint_says_what_it_depends_on(generator):
    assert generator.fingerprint() == generator.fingerprint()
    changed = replace(generator, per_order=generator.per_order + 1)
    assert changed.fingerprint() != generator.fingerprint()
