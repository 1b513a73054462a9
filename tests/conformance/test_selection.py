"""What every selection keeps, whatever it chooses by."""

import math

import pytest
import torch

from fedgen.stages import Selection
from fedgen.types import Encoded
from tests.conformance.options import build, disturb, options


@pytest.fixture(params=options("selection"))
def selection(request: pytest.FixtureRequest) -> Selection:
    return build("selection", request.param)


@pytest.fixture
def loaded(base):
    """A learner over the model as it was loaded."""
    return base.learner(base.replica(private=False), {})


def chosen(selection, learner, examples, labels=None):
    scores = [selection.measure(learner, e) if selection.needs_scores else 0.0 for e in examples]
    return selection.keep(scores, labels or [""] * len(examples))


def test_it_is_a_selection(selection):
    assert isinstance(selection, Selection)


def test_positions_are_ascending_and_none_comes_twice(selection, loaded, encoded):
    kept = chosen(selection, loaded, encoded)
    assert kept
    assert kept == sorted(set(kept))
    assert set(kept) <= set(range(len(encoded)))


def test_the_score_of_an_example_depends_on_it_and_the_model_alone(selection, base, loaded, encoded):
    together = [selection.measure(loaded, example) for example in encoded]
    disturb()
    other = base.learner(base.replica(private=False), {})
    # To the bit, in any order and by any worker: a score is kept, and a run that is continued finds it again.
    assert [selection.measure(other, example) for example in reversed(encoded)] == together[::-1]


def test_equal_scores_are_taken_in_the_order_of_the_examples(selection):
    kept = selection.keep([0.0] * 20, [""] * 20)
    assert kept == list(range(len(kept)))


def test_the_choice_is_the_same_every_time(selection, loaded, encoded):
    first = chosen(selection, loaded, encoded)
    disturb()
    assert chosen(selection, loaded, encoded) == first


def test_no_example_is_no_choice(selection):
    assert selection.keep([], []) == []


def test_one_example_is_kept(selection, loaded, encoded):
    assert chosen(selection, loaded, encoded[:1]) == [0]


def test_an_answer_of_one_token_has_a_score(selection, loaded, encoded):
    short = [Encoded(e.ids[: e.num_prompt + 1], e.num_prompt) for e in encoded]
    assert all(math.isfinite(selection.measure(loaded, example)) for example in short)
    assert chosen(selection, loaded, short)


def test_what_has_no_score_is_never_kept(selection):
    if selection.needs_scores:
        scores = [math.nan, 0.5, math.inf, 0.25, -math.inf]
        assert set(selection.keep(scores, ["a", "b", "c", "", "e"])) <= {1, 3}
        assert selection.keep([math.nan, math.inf], ["a", ""]) == []
    else:
        assert selection.keep([0.0] * 3, ["a", "b", ""]) == [0, 1, 2]


def test_scoring_changes_nothing(selection, base, make_learner, encoded):
    shared = {name: p.clone() for name, p in base.module.named_parameters()}
    learner = make_learner()
    before = learner.state()
    for example in encoded[:4]:
        selection.measure(learner, example)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.state().items())
    assert all(parameter.grad is None for parameter in learner.module.parameters())
    assert all(torch.equal(p, shared[name]) for name, p in base.module.named_parameters())
