"""What every source of data keeps."""

import json
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import pytest

from fedgen.stages import Data
from fedgen.types import Dataset, Example
from tests.conformance.options import build, disturb, options


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of two owners, for options that read what the user has."""
    folder = tmp_path_factory.mktemp("owners")
    for owner in ("ann", "bob"):
        rows = [{"prompt": f"{owner} asks {n}: ", "completion": f"answer {n}"} for n in range(20)]
        (folder / f"{owner}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def small(option: Data) -> Data:
    """The option with fewer examples, if it makes them; as it is if they are the user's."""
    fewer = {"num_train": 40, "num_eval": 40}
    return replace(option, **{field.name: fewer[field.name] for field in fields(option) if field.name in fewer})


@cache
def load(option: Data, seed: int) -> Dataset:
    return option.load(seed)


@pytest.fixture(params=options("data"))
def data(request: pytest.FixtureRequest, folder: Path) -> Data:
    return small(build("data", request.param, path=str(folder)))


def everything(dataset: Dataset) -> list[Example]:
    return [*dataset.train, *(example for split in dataset.evaluation.values() for example in split)]


def test_it_is_a_source_of_data(data):
    assert isinstance(data, Data)


def test_there_is_something_to_learn_and_something_to_be_measured_on(data):
    dataset = load(data, 0)
    assert dataset.train
    assert dataset.evaluation
    assert all(dataset.evaluation.values())
    assert dataset.description


def test_every_example_has_a_question_and_an_answer(data):
    dataset = load(data, 0)
    for example in (*everything(dataset), *dataset.public):
        assert example.text.strip()
        assert example.completion.strip()
        assert example.completion not in example.alternatives


def test_every_training_example_is_owned(data):
    assert all(example.owner for example in load(data, 0).train)


def test_public_examples_are_nobodys_and_measured_on_by_no_split(data):
    dataset = load(data, 0)
    assert not any(example.owner for example in dataset.public)
    public = {example.text for example in dataset.public}
    for name, split in dataset.evaluation.items():
        assert public.isdisjoint(example.text for example in split), name


def test_same_seed_same_examples(data):
    first = load(data, 0)
    disturb()
    assert data.load(0) == first


def test_another_seed_gives_other_examples(data):
    assert load(data, 1) != load(data, 0)


def test_nothing_is_measured_on_what_was_learnt(data):
    dataset = load(data, 0)
    learnt = {(example.owner, example.prompt) for example in dataset.train}
    for name, split in dataset.evaluation.items():
        assert not {(example.owner, example.prompt) for example in split} & learnt, name


def test_a_user_asks_as_the_examples_do(data):
    example = load(data, 0).train[0]
    asked = data.prompt(example.text)
    assert type(asked) is type(example.prompt)
    assert asked == example.prompt


def test_asking_needs_no_loading(data, folder, request):
    name = request.node.callspec.params["data"]
    assert data.prompt("hello") == build("data", name, path=str(folder)).prompt("hello")
