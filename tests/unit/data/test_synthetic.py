from collections import Counter

import pytest

from fedgen.data.synthetic import Synthetic

LETTERS = {"lamp": "L", "fan": "F", "heater": "H", "blind": "B", "radio": "R", "pump": "P", "valve": "V", "oven": "O"}
SIGNS = {"on": "+", "off": "-", "dim": "<", "boost": ">"}


def answer(prompt):
    """The language once more, from its words in any order."""
    words = prompt.removesuffix(": ").split()
    letter = next(LETTERS[word] for word in words if word in LETTERS)
    sign = next(SIGNS[word] for word in words if word in SIGNS)
    return letter + next(word for word in words if word.isdigit()) + sign


def everything(dataset):
    return [*dataset.train, *(example for split in dataset.evaluation.values() for example in split)]


def test_answers_follow_from_the_words():
    dataset = Synthetic().load(0)
    assert len(everything(dataset)) == 4 * 64 + 2 * 64
    assert all(example.completion == answer(example.prompt) for example in everything(dataset))
    assert all(SIGNS[example.label] == example.completion[-1] for example in everything(dataset))


def test_evaluation_sentences_are_trained_on_by_nobody():
    dataset = Synthetic(num_owners=6, num_train=300, num_eval=190).load(1)
    trained = {example.prompt for example in dataset.train}
    assert list(dataset.evaluation) == ["new_utterances", "new_templates"]
    for split in dataset.evaluation.values():
        assert len(split) == len({example.prompt for example in split}) == 190
        assert trained.isdisjoint(example.prompt for example in split)
    assert all(example.prompt[0].isdigit() for example in dataset.evaluation["new_templates"])
    assert not any(prompt[0].isdigit() for prompt in trained)


def test_owners_differ_in_their_verbs_and_repeat_nothing():
    dataset = Synthetic(num_owners=8, concentration=0.1).load(0)
    tops = []
    for owner in {example.owner for example in dataset.train}:
        own = [example for example in dataset.train if example.owner == owner]
        assert len(own) == len({example.prompt for example in own}) == 64
        tops.append(Counter(example.label for example in own).most_common(1)[0])
    assert len({label for label, _ in tops}) > 1
    assert sum(count for _, count in tops) / (8 * 64) > 0.7


def test_public_sentences_are_nobodys_all_different_and_never_measured_on():
    dataset = Synthetic(num_eval=192).load(0)
    assert len({example.prompt for example in dataset.public}) == len(dataset.public) == 48
    assert all(example.owner == "" and example.completion == answer(example.prompt) for example in dataset.public)
    measured = {example.prompt for split in dataset.evaluation.values() for example in split}
    assert measured.isdisjoint(example.prompt for example in dataset.public)


def test_public_sentences_change_no_other_example():
    without = Synthetic(num_public=0).load(0)
    assert without.public == ()
    assert (without.train, without.evaluation) == (Synthetic().load(0).train, Synthetic().load(0).evaluation)


def test_an_owner_with_more_examples_than_its_verbs_have_uses_the_others():
    own = Synthetic(num_owners=1, num_train=768, concentration=0.01).load(0).train
    assert len({example.prompt for example in own}) == 768
    assert {example.label for example in own} == set(SIGNS)


def test_the_seed_decides():
    assert Synthetic().load(3) == Synthetic().load(3)
    assert Synthetic().load(3).train != Synthetic().load(4).train


def test_an_owner_does_not_depend_on_the_others():
    assert Synthetic(num_owners=2).load(0).train == Synthetic(num_owners=5).load(0).train[: 2 * 64]


def test_a_prompt_ends_like_those_of_the_examples():
    assert Synthetic().prompt("set lamp 3 on") == Synthetic().prompt("set lamp 3 on: ") == "set lamp 3 on: "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_owners": 0}, "num_owners is 0"),
        ({"num_train": 769}, "num_train is 769; the language has 768"),
        ({"num_eval": 193}, "num_eval is 193; 192 sentences"),
        ({"num_public": 769}, "num_public is 769; it must lie between 0 and 768"),
        ({"concentration": -1.0}, "concentration is -1.0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Synthetic(**options)
