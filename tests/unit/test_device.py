"""What a device makes of its examples: encoded once, scored once, and only the chosen ones are trained on."""

import dataclasses
import itertools
import math

import pytest

from fedgen import seeds
from fedgen.adapter.full import Full as FullAdapter
from fedgen.adapter.lora import Lora
from fedgen.client.first_order import FirstOrder
from fedgen.device import Holding, answer, hold, select
from fedgen.devices import Rung
from fedgen.errors import ClientError
from fedgen.extraction.full import Full
from fedgen.extraction.static import Static
from fedgen.messages import Request
from fedgen.model.shared import TextBase
from fedgen.model.text import TextLearner
from fedgen.model.tiny import Tiny
from fedgen.selection.all import All
from fedgen.selection.perplexity import Perplexity
from fedgen.types import Encoded, Example, Part
from tests.conformance.grounds import make_ground

EXAMPLES = [Example(f"say {word}: ", word.upper(), label=word[0]) for word in ("lamp", "light", "fan", "fire", "oven")]


@pytest.fixture(scope="module")
def base():
    return Tiny(hidden_size=16, num_heads=2, num_kv_heads=1, max_length=40).load(0)


@dataclasses.dataclass(frozen=True)
class CountingLearner(TextLearner):
    """Writes down what it is asked to score."""

    asked: list = dataclasses.field(default_factory=list)

    def score(self, batch):
        self.asked.append(batch[0])
        return super().score(batch)


@dataclasses.dataclass(frozen=True)
class CountingBase(TextBase):
    """A base whose learners count."""

    asked: list = dataclasses.field(default_factory=list)

    def learner(self, module, parameters, window=None):
        return CountingLearner(**vars(super().learner(module, parameters, window)), asked=self.asked)


@pytest.fixture
def counting(base):
    return CountingBase(**{field.name: getattr(base, field.name) for field in dataclasses.fields(base)})


def ground_for(base, selection, adapter=None, **fields):
    return make_ground(base, adapter or Lora(rank=2), **{"extraction": Full(), "selection": selection, **fields})


def table(ground):
    """A learner of the run, and a request for the whole model in the state with which it begins."""
    [learner] = ground.experiment.learners(ground.base, 1)
    state = ground.experiment.initial_state(learner)
    return learner, Request(1, "barn", 0.0, Part(), ground.experiment.wire.encode(state), ground.base.fingerprint)


def test_examples_are_held_with_their_labels_and_those_without_room_for_an_answer_are_left_out(base):
    learner, _ = table(ground_for(base, All()))
    long = Example("x" * 60, "y", label="never")
    holding = hold(learner, [EXAMPLES[0], long, EXAMPLES[2]])
    assert holding.examples == learner.encode([EXAMPLES[0], EXAMPLES[2]])
    assert holding.labels == ["l", "f"]
    assert holding.num_left_out == 1
    assert hold(learner, []) == Holding([], [])


def test_all_hands_every_example_to_the_client_and_asks_no_model(counting):
    ground = ground_for(counting, All())
    learner, _ = table(ground)
    holding = hold(learner, EXAMPLES)
    assert select(ground, holding, Rung()) == (holding.examples, 0)
    assert counting.asked == []
    assert holding.scores == {}


def test_an_example_is_scored_once_however_often_it_occurs_and_is_asked_for(counting):
    ground, asked = ground_for(counting, Perplexity(fraction=0.5)), counting.asked
    learner, _ = table(ground)
    holding = hold(learner, [*EXAMPLES, EXAMPLES[1]])
    first = select(ground, holding, Rung())
    assert asked == holding.examples[:5]
    assert select(ground, holding, Rung()) == first
    assert len(asked) == 5
    # One that comes later is scored alone, and the scores of the others stay.
    before = dict(holding.scores)
    more = dataclasses.replace(hold(learner, [*EXAMPLES, Example("say pump: ", "PUMP")]), scores=holding.scores)
    select(ground, more, Rung())
    assert asked[5:] == more.examples[5:]
    assert {e: holding.scores[e] for e in before} == before


def test_what_one_client_knows_no_other_does(counting):
    ground = ground_for(counting, Perplexity())
    learner, _ = table(ground)
    for _ in range(2):
        select(ground, hold(learner, EXAMPLES), Rung())
    assert len(counting.asked) == 2 * len(EXAMPLES)


@pytest.mark.parametrize("adapter", [Lora(rank=2), FullAdapter()], ids=["lora", "full"])
def test_scores_are_of_the_model_as_it_was_loaded_whatever_was_trained_since(base, adapter):
    ground = ground_for(base, Perplexity(fraction=0.5), adapter)
    learner, request = table(ground)
    plain = base.learner(base.replica(private=False), {})
    holding = hold(learner, EXAMPLES)
    expected = [Perplexity().measure(plain, e) for e in holding.examples]
    client = FirstOrder(learning_rate=0.05, num_steps=20)
    client.train(learner, holding.examples, 0.0, seeds.derive(0, "train"))
    moved = [Perplexity().measure(learner, e) for e in holding.examples]
    assert moved != pytest.approx(expected, rel=1e-2)
    later = dataclasses.replace(request, payload=ground.experiment.wire.encode(learner.state()))
    assert answer(ground, later, learner, holding).error == ""
    assert [holding.scores[None, e] for e in holding.examples] == expected


def test_a_device_that_trains_a_part_scores_with_the_whole(base):
    selection = Perplexity(fraction=0.5)
    ground = ground_for(base, selection, extraction=Static(axes=("ffn",)))
    [learner] = ground.experiment.learners(base, 1)
    part = ground.part("barn", 1, 0.5)
    assert part.kept
    state = ground.experiment.initial_state(learner)
    payload = ground.experiment.wire.encode(state, ground.sent(part))
    holding = hold(learner, EXAMPLES)
    reply = answer(ground, Request(1, "barn", 0.0, part, payload, base.fingerprint), learner, holding)
    assert reply.error == ""
    plain = base.learner(base.replica(private=False), {})
    assert [holding.scores[None, e] for e in holding.examples] == [
        selection.measure(plain, e) for e in holding.examples
    ]


def test_the_chosen_ones_alone_are_trained_on_and_are_the_weight(base):
    ground = ground_for(base, Perplexity(fraction=0.5, min_per_class=0, score="ira"))
    learner, request = table(ground)
    holding = hold(learner, EXAMPLES)
    reply = answer(ground, request, learner, holding)
    assert reply.num_examples == reply.metrics["num_selected"] == 3
    assert 0 < reply.metrics["seconds_select"] < reply.metrics["seconds_compute"]
    # The same as a client that has only these to begin with.
    chosen, _ = select(ground, holding, Rung())
    assert len(chosen) == 3
    few = answer(ground_for(base, All()), request, learner, Holding(chosen, [""] * 3))
    assert few.metrics["loss"] == reply.metrics["loss"]
    assert few.payload.data.tolist() == reply.payload.data.tolist()
    every = answer(ground_for(base, All()), request, learner, holding)
    assert every.num_examples == every.metrics["num_selected"] == 5
    assert every.payload.data.tolist() != reply.payload.data.tolist()


@dataclasses.dataclass(frozen=True)
class Doubtful:
    """A selection by number of tokens, to which short examples say nothing."""

    needs_scores: bool = True
    shortest: int = 0

    def measure(self, learner, example):
        return float(len(example.ids)) if len(example.ids) >= self.shortest else math.nan

    def keep(self, scores, labels):
        return [position for position, score in enumerate(scores) if math.isfinite(score)]


def test_examples_without_a_score_are_left_out_and_counted(base):
    ground = ground_for(base, Doubtful(shortest=16))
    learner, request = table(ground)
    holding = hold(learner, EXAMPLES)
    short = [e for e in holding.examples if len(e.ids) < 16]
    assert 0 < len(short) < 5
    reply = answer(ground, request, learner, holding)
    assert reply.num_examples == 5 - len(short)
    assert reply.metrics["num_unscored"] == len(short)


def test_if_no_score_is_a_number_the_device_says_so(base):
    ground = ground_for(base, Doubtful(shortest=1000))
    learner, request = table(ground)
    reply = answer(ground, request, learner, hold(learner, EXAMPLES))
    assert (reply.error, reply.payload) == ("no_finite_scores", None)
    with pytest.raises(ClientError, match="no_finite_scores"):
        select(ground, hold(learner, EXAMPLES), Rung())


@pytest.mark.parametrize("selection", [All(), Perplexity()], ids=["all", "perplexity"])
@pytest.mark.parametrize(("examples", "error"), [([], "no_examples"), ([Example("x" * 60, "y")], "no_answer_tokens")])
def test_a_device_without_examples_says_so(base, selection, examples, error):
    ground = ground_for(base, selection)
    learner, request = table(ground)
    assert answer(ground, request, learner, hold(learner, examples)).error == error


def test_equal_token_ids_are_one_sample_only_if_prompt_and_answer_part_alike():
    """What the scores are kept by: with another end of the prompt it is another question."""
    assert len({Encoded((1, 2, 3), 1), Encoded((1, 2, 3), 1), Encoded((1, 2, 3), 2)}) == 2


def test_a_client_that_is_asked_to_measure_trains_nothing_and_says_how_well_it_does(base):
    ground = ground_for(base, All())
    learner, request = table(ground)
    holding = hold(learner, EXAMPLES)
    before = ground.experiment.wire.decode(request.payload)
    reply = answer(ground, dataclasses.replace(request, num_measured=3), learner, holding)
    assert (reply.payload, reply.error, reply.num_examples) == (None, "", 3)
    assert all(before[name].equal(tensor) for name, tensor in learner.state().items())
    # One of the ten choices of three examples, each scored by itself.
    scores = [score for encoded in holding.examples for score in learner.score([encoded])]
    means = [
        sum(score.nll for score in chosen) / sum(score.num_tokens for score in chosen)
        for chosen in itertools.combinations(scores, 3)
    ]
    assert any(reply.metrics["loss"] == pytest.approx(mean, rel=1e-4) for mean in means)
    assert reply == dataclasses.replace(
        answer(ground, dataclasses.replace(request, num_measured=3), learner, holding), metrics=reply.metrics
    )


def test_a_client_without_examples_cannot_measure(base):
    ground = ground_for(base, All())
    learner, request = table(ground)
    reply = answer(ground, dataclasses.replace(request, num_measured=3), learner, hold(learner, []))
    assert reply.error == "no_examples"
