"""Scores against plain forward passes, choices by hand, and a floor for every class."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedgen.model.tiny import Tiny
from fedgen.selection.perplexity import Perplexity
from fedgen.types import Encoded, Example, Score

NAN = math.nan


@pytest.fixture(scope="module")
def base():
    return Tiny(hidden_size=32).load(0)


@pytest.fixture(scope="module")
def learner(base):
    return base.learner(base.replica(private=False), {})


def plain_loss(module, ids, num_before):
    """Mean loss of the tokens after the first few: transformers' own, labels and all."""
    tensor = torch.tensor([ids])
    labels = tensor.clone()
    labels[0, :num_before] = -100
    with torch.no_grad():
        return float(module(input_ids=tensor, labels=labels, use_cache=False).loss)


EXAMPLES = [
    Example("turn on the lamp: ", "light.turn_on lamp"),
    Example("2 + 2 = ", "4"),
    Example("a", "completely unrelated words, " * 3),
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_scores_are_those_of_plain_forward_passes(learner, example):
    [encoded] = learner.encode([example])
    eos = learner.tokenizer.eos_token_id
    assert learner.tokenizer.bos_token_id is None
    with_prompt = plain_loss(learner.module, encoded.ids, encoded.num_prompt)
    without = plain_loss(learner.module, (eos, *encoded.ids[encoded.num_prompt :]), 1)
    assert abs(with_prompt - without) > 1e-3
    # Ratio of perplexities (Superfiltering), and difference of losses (FedDQC).
    assert Perplexity().measure(learner, encoded) == pytest.approx(math.exp(with_prompt) / math.exp(without), rel=1e-4)
    assert Perplexity(score="ira").measure(learner, encoded) == pytest.approx(without - with_prompt, abs=1e-4)


def test_where_there_is_a_token_that_begins_a_text_it_stands_before_the_answer():
    base = Tiny(hidden_size=32).load(0)
    learner = base.learner(base.replica(private=False), {})
    [encoded] = learner.encode(EXAMPLES[:1])
    with_eos = Perplexity().measure(learner, encoded)
    learner.tokenizer.bos_token = "<|system|>"
    bos = learner.tokenizer.bos_token_id
    without = plain_loss(learner.module, (bos, *encoded.ids[encoded.num_prompt :]), 1)
    with_prompt = plain_loss(learner.module, encoded.ids, encoded.num_prompt)
    found = Perplexity().measure(learner, encoded)
    assert found == pytest.approx(math.exp(with_prompt - without), rel=1e-4)
    assert found != pytest.approx(with_eos, rel=1e-3)


class Stub:
    """A learner that has seen it all: given sums of losses, for the pass with the prompt and for that without."""

    class Tokenizer:
        bos_token_id, eos_token_id = None, 7

    tokenizer, module = Tokenizer(), nn.Module()

    def __init__(self, with_prompt, without):
        self.answers, self.asked = (with_prompt, without), []

    def score(self, batch):
        self.asked.append(list(batch))
        return [Score(nll, len(e.ids) - e.num_prompt, exact=False) for nll, e in zip(self.answers, batch, strict=True)]

    def load(self, *arguments):
        raise AssertionError("scoring needs the passes and nothing else")

    parameters = state = encode = holds = loss = generate = importance = load


def test_scores_by_hand():
    example = Encoded((1, 2, 3, 4), 2)
    stub = Stub(2.0, 6.0)
    # Two tokens of an answer: means 1 and 3 nats.
    assert Perplexity().measure(stub, example) == pytest.approx(math.exp(-2.0))
    assert stub.asked == [[example, Encoded((7, 3, 4), 1)]]
    assert Perplexity(score="ira").measure(stub, example) == 2.0


def test_a_score_that_fits_no_float_is_still_a_number_and_one_of_nothing_is_none():
    example = Encoded((1, 2, 3, 4), 2)
    assert math.isfinite(Perplexity().measure(Stub(1e6, 0.0), example))
    assert math.isnan(Perplexity().measure(Stub(NAN, 1.0), example))
    assert math.isnan(Perplexity(score="ira").measure(Stub(1.0, NAN), example))


@pytest.mark.parametrize(
    ("fields", "scores", "labels", "kept"),
    [
        # The highest below 1; what is at 1 or above does not count, though there would be room.
        ({"fraction": 0.5}, [0.9, 0.2, 1.0, 0.5], "....", [0, 3]),
        ({"fraction": 1.0}, [0.9, 0.2, 1.0, 1.5], "....", [0, 1]),
        # Rounded up, and at least one; 0.07 × 100 is 7 and not 8, though floats make 7.000000000000001 of it.
        ({"fraction": 0.3}, [0.9, 0.2, 0.8, 0.5], "....", [0, 2]),
        ({"fraction": 0.01}, [0.9, 0.2, 0.8, 0.5], "....", [0]),
        ({"fraction": 0.07}, [0.5] * 100, "." * 100, list(range(7))),
        # The prompt helps with none: the one that it harms least.
        ({"fraction": 1.0}, [1.5, 1.1, 1.1], "...", [1]),
        # A class first, even where the prompt does not help; then the best of all.
        ({"fraction": 0.5}, [0.9, 0.8, 1.2, 1.1], "aabb", [0, 3]),
        ({"fraction": 0.5, "min_per_class": 2}, [0.9, 0.8, 1.2, 0.1], "aabb", [0, 1, 2, 3]),
        ({"fraction": 0.5, "min_per_class": 0}, [0.9, 0.8, 1.2, 0.1], "aabb", [0, 1]),
        # The floor counts towards the share: 2 of 4, one of each class.
        ({"fraction": 0.5}, [0.9, 0.8, 0.7, 0.1], "aaab", [0, 3]),
        ({"fraction": 0.75}, [0.9, 0.8, 0.7, 0.1], "aaab", [0, 1, 3]),
        # No label is no class.
        ({"fraction": 0.25}, [0.9, 0.8, 0.7, 0.1], "a...", [0]),
        ({"fraction": 0.25}, [0.9, 0.8, 0.7, 0.1], "...a", [3]),
        # What is no number is left out, also of a class.
        ({"fraction": 0.5}, [NAN, 0.2, math.inf, 0.5], "ab.b", [1, 3]),
        # IRA: the highest, negative ones too.
        ({"score": "ira", "fraction": 0.5}, [0.1, 2.0, -1.0, 1.5], "....", [1, 3]),
        ({"score": "ira", "fraction": 1.0}, [0.1, 2.0, -1.0, 1.5], "....", [0, 1, 2, 3]),
        ({"score": "ira", "fraction": 0.25}, [0.1, 2.0, -1.0, 1.5], "a.b.", [0, 2]),
        # Equal scores: the first.
        ({"score": "ira", "fraction": 0.5}, [1.0, 2.0, 1.0, 1.0], "....", [0, 1]),
    ],
)
def test_choices_by_hand(fields, scores, labels, kept):
    assert Perplexity(**fields).keep(scores, [label.strip(".") for label in labels]) == kept


def test_the_two_scores_keep_opposite_ends():
    gains = [0.1, 0.5, 1.0, 2.0]
    labels = [""] * 4
    assert Perplexity(fraction=0.5).keep([math.exp(-gain) for gain in gains], labels) == [0, 1]
    assert Perplexity(score="ira", fraction=0.5).keep(gains, labels) == [2, 3]


NUMBERS = st.one_of(st.floats(0, 2), st.sampled_from([NAN, math.inf, 1.0]))


@given(
    st.lists(st.tuples(NUMBERS, st.sampled_from(["", "a", "b", "c"])), max_size=24),
    st.sampled_from(["ifd", "ira"]),
    st.floats(0.01, 1.0),
    st.integers(0, 5),
)
def test_every_class_keeps_its_floor_and_the_share_is_kept(pairs, score, fraction, floor):
    scores, labels = [s for s, _ in pairs], [label for _, label in pairs]
    kept = Perplexity(score=score, fraction=fraction, min_per_class=floor).keep(scores, labels)
    usable = [p for p, s in enumerate(scores) if math.isfinite(s)]
    assert set(kept) <= set(usable)
    assert bool(kept) == bool(usable)
    floors = 0
    for label in {"a", "b", "c"}:
        held = [p for p in usable if labels[p] == label]
        floors += min(floor, len(held))
        assert len([p for p in kept if labels[p] == label]) >= min(floor, len(held))
    share = -(-round(fraction * len(scores) * 1e9) // 10**9)
    assert len(kept) <= max(1, floors, share)
    eligible = [p for p in usable if score == "ira" or scores[p] < 1]
    assert len(kept) >= min(len(eligible), share)


@given(st.lists(st.floats(0, 2), min_size=1, max_size=16), st.sampled_from(["ifd", "ira"]), st.randoms())
def test_which_examples_are_kept_does_not_depend_on_their_order_but_for_equal_ones(scores, score, random):
    scores = list(dict.fromkeys(scores))
    order = list(range(len(scores)))
    random.shuffle(order)
    option = Perplexity(score=score, fraction=0.5)
    kept = {scores[p] for p in option.keep(scores, [""] * len(scores))}
    shuffled = [scores[p] for p in order]
    assert {shuffled[p] for p in option.keep(shuffled, [""] * len(scores))} == kept


@pytest.mark.parametrize("fields", [{"fraction": 0.0}, {"fraction": 1.1}, {"fraction": NAN}, {"min_per_class": -1}])
def test_values_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Perplexity(**fields)
