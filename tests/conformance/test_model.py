"""What every model keeps: weights are shared or private, and scores agree with plain passes; so do those of parts."""

import time
from dataclasses import replace
from functools import cache

import pytest
import torch

from fedgen import seeds, tree
from fedgen.learner import Base, Learner
from fedgen.stages import Adapter, Model
from fedgen.types import Encoded, Example, Kept, Message, Part
from tests.conformance.grounds import CLIENTS, make_ground
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


# --- parts --------------------------------------------------------------------------------------------------------


def part_of(base: Base) -> Part:
    """Two layers of the upper half, or the last if there are but two, each of another width."""
    units = base.axes.units
    last = units["layer"] - 1
    layers = sorted({(last + 1) // 2, last})
    kept: Kept = {"layer": torch.tensor(layers)}
    for n, share in zip(layers, (0.5, 0.25), strict=False):
        kept[f"ffn.{n}"] = torch.arange(1, units[f"ffn.{n}"], 2)[: int(share * units[f"ffn.{n}"])]
        kept[f"kv.{n}"] = torch.arange(units[f"kv.{n}"] - 1)
    return Part(0.5, kept)


@pytest.fixture(params=options("adapter"))
def adapter(request: pytest.FixtureRequest) -> Adapter:
    return build("adapter", request.param)


def test_every_dimension_of_its_weights_has_an_axis_or_is_never_cut(model):
    axes, weights = load(model).axes, load(model).weights
    assert axes.dims.keys() == weights.keys()
    for name, tensor in weights.items():
        for dim, size in zip(axes.dims[name], tensor.shape, strict=True):
            assert dim is None or size == axes.units[dim.axis] * dim.span * len(dim.starts), name
    assert {axis.partition(".")[0] for axis in axes.units} == {"ffn", "kv", "layer", "residual", "vocab"}
    assert len(axes.closings) == 2 * axes.units["layer"]


def test_its_weights_are_shared_and_each_is_there_once(model):
    base = load(model)
    shared = {p.data_ptr() for p in base.replica(private=False).parameters()}
    assert {tensor.data_ptr() for tensor in base.weights.values()} == shared
    assert len(base.weights) == len(shared)


def test_a_part_that_is_loaded_alone_is_the_part_of_the_whole(model):
    base, kept = load(model), part_of(load(model)).kept
    alone, cut = model.load(0, kept), base.part(kept)
    assert alone.weights.keys() == cut.weights.keys()
    assert len(alone.weights) < len(base.weights)
    assert all(torch.equal(tensor, cut.weights[name]) for name, tensor in alone.weights.items())
    assert {name: list(t.shape) for name, t in alone.weights.items()} == {
        name: tree.extent(base.weights[name], index) for name, index in tree.plan_of(base.axes, kept).items()
    }
    assert alone.fingerprint == cut.fingerprint == base.fingerprint
    batch = [Encoded((1, 2, 3, 4, 5), 2)]
    losses = [one.learner(one.replica(private=False), {}).loss(batch) for one in (alone, cut)]
    assert torch.equal(*losses)


def test_an_outline_has_the_names_and_tokens_of_the_whole(model):
    base, outline = load(model), model.outline(0)
    assert outline.fingerprint == base.fingerprint
    assert outline.max_length == base.max_length
    assert (outline.axes.dims, outline.axes.units) == (base.axes.dims, base.axes.units)
    assert outline.protected["vocab"].tolist() == base.protected["vocab"].tolist()
    example = Example("a", "b")
    whole, drawn = (one.learner(one.replica(private=False), {}) for one in (base, outline))
    assert drawn.encode([example]) == whole.encode([example])


def test_a_part_of_everything_is_the_whole(model):
    base = load(model)
    units = {axis: size for axis, size in base.axes.units.items() if axis in ("layer", "residual", "ffn.0", "kv.1")}
    part = base.part({axis: torch.arange(size) for axis, size in units.items()})
    assert part.weights.keys() == base.weights.keys()
    assert all(torch.equal(tensor, base.weights[name]) for name, tensor in part.weights.items())


def test_a_part_answers_as_its_scores_say(model):
    part = load(model).part(part_of(load(model)).kept)
    learner = part.learner(part.replica(private=False), {})
    ids = torch.tensor([[5, 6, 7]])
    said = learner.module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
    )[0].tolist()
    assert [score.exact for score in learner.score([Encoded(tuple(said), 3)])] == [True]
    assert isinstance(learner.generate("lamp", 2), str)


def test_every_unit_of_a_part_matters_to_some_degree(model):
    base = load(model)
    part = base.part(part_of(base).kept)
    learner = part.learner(part.replica(private=False), {})
    scores = learner.importance(learner.encode(EXAMPLES))
    assert {axis: len(numbers) for axis, numbers in scores.items()} == {
        axis: size for axis, size in part.axes.units.items() if axis != "residual"
    }
    assert all(bool((numbers >= 0).all() and numbers.any()) for axis, numbers in scores.items() if axis != "layer")


def test_a_client_trains_its_part_and_sends_a_change_of_the_shapes_of_the_plan(model, adapter):
    """Whether it holds its part alone, or the whole and trains a window of it."""
    base = load(model)
    shared = {name: tensor.clone() for name, tensor in base.weights.items()}
    ground = make_ground(base, adapter)
    [whole] = ground.experiment.learners(base, 1)
    state = ground.experiment.initial_state(whole)
    whole.load(state)
    batch = whole.encode(EXAMPLES)
    losses = {"cut": None, "window": whole.loss(batch).item()}
    del whole
    part = part_of(base)
    for mode, loss in losses.items():
        own = replace(ground, experiment=replace(ground.experiment, extraction_mode=mode))
        learner = own.learner(part, 1, CLIENTS[0])
        assert isinstance(learner, Learner)
        sent = own.sent(part)
        assert (sent.keys() == state.keys()) == tree.is_whole(sent) == (mode == "window")
        learner.load(tree.cut(state, sent))
        if loss is not None:
            # A window leaves the function of the model as it is.
            assert learner.loss(batch).item() == loss
        before = learner.state()
        trained = own.experiment.client.train(learner, batch, 0.0, seeds.derive(0, "train"))
        assert trained.metrics["num_steps"] == 1
        change, plan = trained.change, own.returned(part, 1)
        assert all(torch.equal(learner.state()[name] - before[name], tensor) for name, tensor in change.items())
        assert {name: list(tensor.shape) for name, tensor in change.items()} == {
            name: tree.extent(state[name], index) for name, index in plan.items()
        }
        assert not tree.is_whole(plan)
        assert 0 < tree.largest(change) < float("inf")
    assert all(torch.equal(tensor, shared[name]) for name, tensor in base.weights.items())
