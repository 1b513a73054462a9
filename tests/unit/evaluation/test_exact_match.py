"""Exact match and perplexity against generation and plain forward passes."""

import math

import pytest
import torch

from fedgen.adapter.lora import Lora
from fedgen.evaluation.exact_match import ExactMatch
from fedgen.evaluation.perplexity import Perplexity
from fedgen.model.tiny import Tiny
from fedgen.types import Example


@pytest.fixture(scope="module")
def learner():
    base = Tiny(max_length=64).load(3)
    module = Lora(rank=1).attach(base.replica(private=False))
    return base.learner(module, Lora(rank=1).parameters(module))


def test_summary_by_hand():
    rows = [
        {"exact": 1.0, "valid": 1.0, "nll": 2.0, "num_tokens": 4.0},
        {"exact": 0.0, "valid": 1.0, "nll": 6.0, "num_tokens": 4.0},
        {"exact": 0.0, "valid": 0.0, "nll": 0.0, "num_tokens": 0.0},
    ]
    assert ExactMatch().summarise(rows) == {
        "exact_match": pytest.approx(1 / 3),
        "valid": pytest.approx(2 / 3),
        "loss": pytest.approx(1.0),
    }
    assert Perplexity().summarise(rows) == {"perplexity": pytest.approx(math.e), "loss": pytest.approx(1.0)}


def test_nll_equals_a_plain_forward_pass(learner):
    example = Example("turn on", "ON")
    (row,) = ExactMatch().measure(learner, [example])
    ids = torch.tensor([list(learner.encode([example])[0].ids)])
    labels = ids.clone()
    labels[0, :7] = -100
    expected = learner.module(input_ids=ids, labels=labels).loss.item() * 3
    assert row["nll"] == pytest.approx(expected, rel=1e-4)
    assert row["num_tokens"] == 3  # O, N and the end
    assert Perplexity().measure(learner, [example]) == [{"nll": row["nll"], "num_tokens": 3.0}]


def test_an_alternative_answer_makes_an_example_valid_but_not_exact(monkeypatch, learner):
    from fedgen.model.text import TextLearner
    from fedgen.types import Score

    right = "ON!"

    def score(self, batch):
        return [Score(1.0, 1, self.tokenizer.decode(e.ids[e.num_prompt : -1]) == right) for e in batch]

    monkeypatch.setattr(TextLearner, "score", score)
    rows = ExactMatch().measure(
        learner, [Example("a", right), Example("a", "OFF", alternatives=("x", right)), Example("a", "OFF")]
    )
    assert [(r["exact"], r["valid"]) for r in rows] == [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)]


def test_an_example_without_room_for_its_answer_counts_as_wrong(learner):
    rows = ExactMatch().measure(learner, [Example("a" * 64, "ON"), Example("a", "ON")])
    assert rows[0] == {"exact": 0.0, "valid": 0.0, "nll": 0.0, "num_tokens": 0.0}
    assert rows[1]["num_tokens"] == 3
    assert Perplexity().measure(learner, [Example("a" * 64, "ON")]) == [{"nll": 0.0, "num_tokens": 0.0}]


def test_nothing_to_measure_gives_no_number():
    summary = ExactMatch().summarise([{"exact": 0.0, "valid": 0.0, "nll": 0.0, "num_tokens": 0.0}])
    assert math.isnan(summary["loss"])
