"""Likelihoods against transformers' own loss."""

import math

import pytest
import torch

from fedgen.model.tiny import Tiny
from fedgen.synthesis.likelihood import by_learner, opening

BEFORE = "the lamp is on\n"


@pytest.fixture(scope="module")
def learner():
    base = Tiny(hidden_size=32).load(0)
    return base.learner(base.replica(private=False), {})


def plain(learner, text):
    """Mean loss of the tokens of a text after the opening."""
    before = learner.tokenizer(BEFORE)["input_ids"]
    ids = torch.tensor([before + learner.tokenizer(text, add_special_tokens=False)["input_ids"]])
    labels = ids.clone()
    labels[:, : len(before)] = -100
    with torch.no_grad():
        return learner.module(input_ids=ids, labels=labels).loss.item()


def test_it_is_the_mean_loss_of_the_text_alone(learner):
    texts = ["turn on the lamp", "dim it", "please close all of the blinds in the bedroom now", "on"]
    found = by_learner(learner, BEFORE, batch_size=3)(texts)
    assert found == pytest.approx([plain(learner, text) for text in texts], rel=1e-4)


def test_what_has_no_token_is_infinite(learner):
    first, empty = by_learner(learner, BEFORE)(["on", ""])
    assert math.isfinite(first)
    assert empty == math.inf
    assert by_learner(learner, BEFORE)([]) == []


def test_the_opening_is_commands_of_the_task(task):
    lines = opening(task).splitlines()
    assert lines[:2] == ["turn on the table lamp", "turn off the table lamp"]
    assert len(lines) == 4
    assert opening(task).endswith("\n")
