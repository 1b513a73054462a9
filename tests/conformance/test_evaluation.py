"""What every evaluation keeps, whatever it measures."""

import math
from dataclasses import replace

import pytest
import torch

from fedgen import seeds
from fedgen.client.first_order import FirstOrder
from fedgen.stages import Evaluation
from tests.conformance.options import build, options


@pytest.fixture(params=options("evaluation"))
def evaluation(request: pytest.FixtureRequest) -> Evaluation:
    return build("evaluation", request.param)


def followed(evaluation, learner, examples):
    return evaluation.summarise(evaluation.measure(learner, examples))[evaluation.metric]


def test_it_is_an_evaluation(evaluation):
    assert isinstance(evaluation, Evaluation)


def test_every_example_gives_one_row_of_numbers(evaluation, make_learner, examples):
    rows = evaluation.measure(make_learner(), examples)
    assert len(rows) == len(examples)
    assert all(isinstance(value, float) and math.isfinite(value) for row in rows for value in row.values())


def test_the_summary_holds_the_number_that_is_followed(evaluation, make_learner, examples):
    summary = evaluation.summarise(evaluation.measure(make_learner(), examples))
    assert evaluation.metric in summary
    assert all(isinstance(value, float) and math.isfinite(value) for value in summary.values())


def test_an_example_counts_the_same_in_any_company(evaluation, make_learner, examples):
    learner = make_learner()
    together = evaluation.measure(learner, examples)
    alone = [row for example in examples for row in evaluation.measure(learner, [example])]
    for a, b in zip(together, alone, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_an_example_without_room_for_an_answer_can_be_measured_too(evaluation, make_learner, examples):
    long = replace(examples[0], prompt="x" * 1000)
    rows = evaluation.measure(make_learner(), [long, *examples])
    assert len(rows) == len(examples) + 1
    assert rows[1:] == [pytest.approx(row, rel=1e-4) for row in evaluation.measure(make_learner(), examples)]
    assert len(evaluation.measure(make_learner(), [long])) == 1


def test_learning_moves_the_number_in_the_direction_that_is_better(evaluation, make_learner, examples, encoded):
    learner = make_learner()
    before = followed(evaluation, learner, examples)
    FirstOrder(num_steps=60, learning_rate=3e-2, batch_size=16).train(learner, encoded, 0.0, seeds.derive(0, "train"))
    after = followed(evaluation, learner, examples)
    assert (after > before) if evaluation.higher_is_better else (after < before)


def test_measuring_changes_nothing(evaluation, make_learner, examples):
    learner = make_learner()
    before = learner.state()
    evaluation.measure(learner, examples)
    after = learner.state()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.grad is None for parameter in learner.module.parameters())
