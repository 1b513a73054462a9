"""Side by side gives what one at a time would, without a cache and without neighbours."""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgen.generator.sampling import Sampling, _clean, draw, sample, special_tokens
from fedgen.model.tiny import SPECIAL, Tiny

BASE = Tiny(hidden_size=32).load(0)
LEARNER = BASE.learner(BASE.replica(private=False), {})
ALL = Sampling(temperature=1.0, top_k=10**6, top_p=1.0, max_new_tokens=12)


def ids(text: str) -> list[int]:
    return list(LEARNER.tokenizer(text)["input_ids"])


def alone(prompt: list[int], random: Random, settings: Sampling) -> str:
    """The slow way: every token from a whole pass over one row."""
    special, said = set(LEARNER.tokenizer.convert_tokens_to_ids(list(SPECIAL))), []
    for _ in range(settings.max_new_tokens):
        logits = LEARNER.module(torch.tensor([prompt + said])).logits[:, -1]
        token = int(draw(logits, [random.random()], settings))
        text = LEARNER.tokenizer.decode(said)
        if token in special or ("\n" in LEARNER.tokenizer.decode([token]) and text.strip()):
            break
        said.append(token)
    return LEARNER.tokenizer.decode(said).strip()


@pytest.mark.parametrize(
    "prompts",
    [
        ["lamp on: ", "lamp off in the hall: ", "lamp: "],
        ["one", "two and more"],
        ["same", "same"],
        ["alone"],
    ],
    ids=["shared beginning", "nothing shared", "all the same", "one"],
)
@pytest.mark.parametrize("settings", [ALL, Sampling(0.7, 20, 0.9, 12)], ids=["all tokens", "likely ones"])
def test_each_answer_is_what_it_would_be_alone(prompts, settings):
    rows = [ids(prompt) for prompt in prompts]
    together = sample(LEARNER, rows, [Random(number) for number in range(len(rows))], settings)
    assert together == [alone(row, Random(number), settings) for number, row in enumerate(rows)]


def test_an_answer_has_no_line_break_and_no_token_of_the_template():
    answers = sample(LEARNER, [ids("lamp")] * 64, [Random(n) for n in range(64)], Sampling(3.0, 10**6, 1.0, 40))
    assert len(set(answers)) > 32
    for answer in answers:
        assert "\n" not in answer
        assert not any(token in answer for token in SPECIAL)


def test_an_answer_has_no_more_tokens_than_are_allowed():
    answers = sample(LEARNER, [ids("lamp")] * 8, [Random(n) for n in range(8)], Sampling(1.0, 50, 1.0, 3))
    assert max(len(answer) for answer in answers) <= 3  # a token is a byte, and a byte a character at most


def test_tokens_of_the_template_that_are_spelt_out_are_taken_out():
    """Nothing stops a model from writing them letter by letter."""
    special = special_tokens(LEARNER.tokenizer)
    assert set(special.values()) == set(SPECIAL)
    assert _clean("<|user|>lamp<|end|> on<|assistant|>", special.values()) == "lamp  on"


def test_tokens_are_drawn_as_often_as_they_are_likely():
    """The distribution function inverted at a fine grid gives each token its share."""
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(0)) * 2
    grid = [(n + 0.5) / 20000 for n in range(20000)]
    drawn = draw(logits.expand(len(grid), -1), grid, Sampling(1.7, 30, 1.0, 1))
    shares = torch.bincount(drawn, minlength=30) / len(grid)
    assert torch.allclose(shares, (logits[0] / 1.7).softmax(-1), atol=2e-4)


@settings(max_examples=40)
@given(top_k=st.integers(1, 30), top_p=st.floats(0.05, 1.0), seed=st.integers(0, 99))
def test_the_tokens_that_can_be_drawn_are_those_of_transformers(top_k, top_p, seed):
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1, 25, generator=torch.Generator().manual_seed(seed)) * 2
    likeliest = TopKLogitsWarper(top_k)(None, logits)
    allowed = TopPLogitsWarper(top_p)(None, likeliest) if top_p < 1 else likeliest
    shares = allowed.softmax(-1)[0]
    grid = [(n + 0.5) / 4000 for n in range(4000)]
    drawn = draw(logits.expand(len(grid), -1), grid, Sampling(1.0, top_k, top_p, 1))
    got = torch.bincount(drawn, minlength=25) / len(grid)
    assert torch.allclose(got, shares, atol=1e-3)


@pytest.mark.parametrize("number", [0.0, 1.0 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_a_token_that_may_be_drawn(number):
    logits = torch.tensor([[0.0, 5.0, 1.0, -30.0]])
    assert int(draw(logits, [number], Sampling(1.0, 2, 0.99, 1))) in (1, 2)
