import sys
from collections import Counter
from itertools import pairwise
from pydoc_data.topics import topics

import pytest

from fedgen.data.text import Text, _paragraphs
from fedgen.errors import DataError


@pytest.fixture(scope="module")
def dataset():
    return Text().load(0)


def whole(example):
    return example.prompt + example.completion


def splits(dataset):
    return {"train": dataset.train, **dataset.evaluation, "public": dataset.public}


def test_sizes_owners_and_description(dataset):
    assert list(dataset.evaluation) == ["new_windows", "new_topics"]
    assert [len(split) for split in dataset.evaluation.values()] == [200, 200]
    assert len(dataset.public) == 48
    assert len(dataset.train) > 1500
    assert len({example.owner for example in dataset.train}) == 20
    assert all(len(example.prompt) == 16 for split in splits(dataset).values() for example in split)
    assert all(len(whole(example)) == 128 for split in splits(dataset).values() for example in split)
    assert f"{len(dataset.train)} windows of 128 characters for training, from 20 owners" in dataset.description
    assert "PSF License" in dataset.description


def test_a_window_is_a_piece_of_its_topic(dataset):
    for split in splits(dataset).values():
        for example in split:
            # Paragraphs that another topic has as well are gone, so a window is looked up paragraph by paragraph.
            for part in whole(example).split("\n\n"):
                assert part in topics[example.label]


def test_no_window_overlaps_another(dataset):
    places = {}
    texts = _paragraphs(topics)
    for name, split in splits(dataset).items():
        for example in split:
            text = texts[example.label]
            starts = [start for start in range(0, len(text), 128) if text[start : start + 128] == whole(example)]
            assert len(starts) == 1, (name, example)
            places[example.label, starts[0]] = name
    assert len(places) == sum(map(len, splits(dataset).values()))
    assert Counter(places.values()) == {name: len(split) for name, split in splits(dataset).items()}


def test_no_two_windows_begin_alike(dataset):
    prompts = [example.prompt for split in splits(dataset).values() for example in split]
    assert len(prompts) == len(set(prompts))
    assert all(prompt.strip() for prompt in prompts)


def test_hardly_a_sentence_that_is_measured_on_was_trained_on(dataset):
    length = 40

    def runs(examples):
        texts = (" ".join(whole(example).split()) for example in examples)
        return [text[start : start + length] for text in texts for start in range(len(text) - length + 1)]

    trained = set(runs(dataset.train))
    for split in dataset.evaluation.values():
        seen = [run in trained for run in runs(split)]
        assert sum(seen) < 0.05 * len(seen)


def test_new_topics_and_public_topics_are_nobody_elses(dataset):
    named = {name: {example.label for example in split} for name, split in splits(dataset).items()}
    assert named["new_windows"] <= named["train"]
    for left, right in pairwise(("train", "new_topics", "public", "train")):
        assert named[left].isdisjoint(named[right])
    assert len(named["new_topics"]) > 3
    assert {example.owner for example in dataset.public} == {""}


def test_owners_have_whole_topics_and_are_named_after_the_longest(dataset):
    owners = {}
    for example in (*dataset.train, *dataset.evaluation["new_windows"]):
        owners.setdefault(example.owner, Counter())[example.label] += 1
    for owner, own in owners.items():
        assert own[owner] == max(own.values())
    assert sum(len(own) for own in owners.values()) == len({topic for own in owners.values() for topic in own})
    # The longest topics stand alone; without them shares are within a topic's length of each other.
    shares = [sum(own.values()) for own in owners.values() if len(own) > 1]
    assert max(shares) < 1.5 * min(shares)


def test_topics_are_told_apart_by_paragraph_shortest_first():
    table = "+---+\n| x |\n+---+"
    found = _paragraphs({"long": f"only here\n\nfirst\nsecond\n\n{table}", "short": "first  second\n", "a": "\n\n"})
    assert found == {"a": "", "short": "first  second", "long": "only here"}


def test_the_seed_decides(dataset):
    assert Text().load(0) == dataset
    other = Text().load(1)
    assert {x.label for x in other.evaluation["new_topics"]} != {x.label for x in dataset.evaluation["new_topics"]}
    assert other.public != dataset.public


def test_windows_and_prompts_of_another_size():
    dataset = Text(num_owners=5, window=200, prompt_length=40, num_eval=30, num_public=0).load(0)
    assert {len(example.prompt) for example in dataset.train} == {40}
    assert {len(example.completion) for example in dataset.train} == {160}
    assert len({example.owner for example in dataset.train}) == 5
    assert dataset.public == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_eval": 5000}, r"left for new_topics, and 5000 were asked for"),
        ({"num_public": 5000}, r"left for public, and 5000 were asked for"),
        ({"num_owners": 500}, r"help topics are left for 500 owners"),
        ({"num_owners": 1, "num_eval": 2000}, r"give \d{4} windows .* leaves some of 1 owners without any"),
        ({"window": 1_000_000}, r"have 0 windows of 1000000 characters left"),
    ],
)
def test_too_little_text_is_an_error(options, message):
    with pytest.raises(DataError, match=message):
        Text(**options).load(0)


def test_a_python_without_help_topics_is_an_error(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "pydoc_data.topics", None
    )  # what Python does for a module that must not be imported
    with pytest.raises(DataError, match=r"pydoc_data\.topics.*comes without them"):
        Text().load(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_owners": 0}, "num_owners is 0"),
        ({"num_eval": 0}, "num_eval is 0"),
        ({"num_public": -1}, "num_public is -1"),
        ({"prompt_length": 0}, "prompt_length is 0"),
        ({"window": 16}, r"window is 16; it must be above prompt_length \(16\)"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Text(**options)
