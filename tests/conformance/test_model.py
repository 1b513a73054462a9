"""What every model keeps: weights are shared or private; scores agree with plain forward passes and with generation."""

import time
from functools import cache

import pytest
import torch

from fedgen.learner import Base
from fedgen.stages import Model
from fedgen.types import Encoded, Example, Message
from tests.conformance.options import build, disturb, options

EXAMPLES = [
    Example("What is the capital of France? ", "Paris"),
    Example((Message("user", "Turn on the lamp."),), "TurnOn(name=lamp)"),
    Example((Message("system", "Be brief."), Message("user", "2 + 2?")), "4"),
]


@cache
def load(model: Model) -> Base:
    return model.load(0)


@pytest.fixture(params=options("model"))
def model(request: pytest.FixtureRequest) -> Model:
    return build("model", request.param)


@pytest.fixture
def learner(model):
    base = load(model)
    return base.learner(base.replica(private=False), {})


def plain_logits(learner, encoded):
    with torch.no_grad():
        return learner.module(input_ids=torch.tensor([encoded.ids]), use_cache=False).logits[0].float()


def test_it_is_a_model_and_building_it_costs_nothing(model, request):
    began = time.perf_counter()
    assert build("model", request.node.callspec.params["model"]) == model
    assert time.perf_counter() - began < 0.2
    assert isinstance(model, Model)


def test_the_weights_have_a_name(model):
    fingerprint = load(model).fingerprint
    assert len(fingerprint) == 64
    assert int(fingerprint, 16) >= 0


def test_same_seed_same_weights(model):
    base = load(model)
    disturb()
    again = model.load(0)
    assert again.fingerprint == base.fingerprint
    weights = dict(base.replica(private=False).named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in again.replica(private=False).named_parameters())


def test_workers_share_frozen_weights(model):
    base = load(model)
    first, second = base.replica(private=False), base.replica(private=False)
    assert first is not second
    assert {p.data_ptr() for p in first.parameters()} == {p.data_ptr() for p in second.parameters()}
    assert not any(p.requires_grad for p in first.parameters())


def test_a_private_copy_is_one_and_in_full_precision(model):
    base = load(model)
    shared = {p.data_ptr() for p in base.replica(private=False).parameters()}
    private = base.replica(private=True)
    assert not shared & {p.data_ptr() for p in private.parameters()}
    assert {p.dtype for p in private.parameters()} == {torch.float32}


def test_prompt_and_answer_become_tokens(learner):
    for example, encoded in zip(EXAMPLES, learner.encode(EXAMPLES), strict=True):
        assert 0 < encoded.num_prompt < len(encoded.ids)
        assert encoded.ids[-1] == learner.tokenizer.eos_token_id
        assert learner.tokenizer.decode(encoded.ids[encoded.num_prompt : -1]) == example.completion


def test_where_no_answer_is_left_there_is_nothing_to_learn(learner):
    assert learner.encode([Example("long " * 4000, "yes")]) == [None]


def test_scores_are_those_of_a_plain_forward_pass(learner):
    batch = learner.encode(EXAMPLES)
    for encoded, score in zip(batch, learner.score(batch), strict=True):
        logits = plain_logits(learner, encoded)[encoded.num_prompt - 1 : -1]
        answer = torch.tensor(encoded.ids[encoded.num_prompt :])
        nll = torch.nn.functional.cross_entropy(logits, answer, reduction="sum")
        assert score.num_tokens == len(answer)
        assert score.nll == pytest.approx(float(nll), rel=0.01)
        assert score.exact == bool((logits.argmax(1) == answer).all())


def test_the_loss_is_the_mean_over_answer_tokens(learner):
    batch = learner.encode(EXAMPLES)
    scores = learner.score(batch)
    mean = sum(score.nll for score in scores) / sum(score.num_tokens for score in scores)
    assert learner.loss(batch).item() == pytest.approx(mean, rel=1e-3)


def test_exact_is_what_greedy_decoding_says(learner):
    prompt = learner.encode(EXAMPLES[:1])[0]
    ids = torch.tensor([prompt.ids[: prompt.num_prompt]])
    said = learner.module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
    )[0].tolist()
    right = Encoded(tuple(said), prompt.num_prompt)
    wrong = Encoded((*said[:-1], (said[-1] + 1) % len(learner.tokenizer)), prompt.num_prompt)
    assert [score.exact for score in learner.score([right, wrong])] == [True, False]


def test_it_answers_the_same_twice(learner):
    first, second = (learner.generate(EXAMPLES[0].prompt, max_new_tokens=6) for _ in range(2))
    assert isinstance(first, str)
    assert first == second
