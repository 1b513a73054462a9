"""The transfer gate against losses that are measured beside it, on a random model whose narrow parts are worse."""

import dataclasses
import math
import re

import pytest
import torch

from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.client.first_order import FirstOrder
from fedgen.data.synthetic import Synthetic
from fedgen.errors import DataError, RunError
from fedgen.extraction.depth import Depth
from fedgen.extraction.full import Full as FullExtraction
from fedgen.extraction.importance import Importance
from fedgen.extraction.rolling import Rolling
from fedgen.extraction.static import Static
from fedgen.fleet.levels import Levels
from fedgen.fleet.uniform import Uniform
from fedgen.gate import GROWTH, prepare
from fedgen.journal import read
from fedgen.model.tiny import Tiny
from fedgen.types import Part
from fedgen.workers import Workers
from tests.conformance.grounds import CLIENTS, make_ground
from tests.unit.federation.test_local import QUICK, carry_out

SEED = 1
"""With it every part of less than half the width begins more than 0.2 nats above the whole."""

DATA = Synthetic(num_owners=3, num_train=4, num_eval=4, num_public=12)
WANTED = {"attic": 0.25, "barn": 0.5, "cellar": 1.0}


class Noting(Workers):
    """Workers that note what they are given."""

    def __init__(self, learners):
        super().__init__(learners)
        self.noted = []

    def map(self, job, items):
        items = list(items)
        self.noted.append(items)
        return super().map(job, items)


def gate_for(base, **fields):
    """A gate, its workers, the state that it judges by, and who wants what."""
    stages = {"extraction": Static(), "gate_margin": 0.2, "seed": SEED, "evaluation_batch_size": 5, "data": DATA}
    experiment = make_ground(base, **{"adapter": Lora(rank=2), **stages, **fields}).experiment
    workers = Noting(experiment.learners(base, 2))
    gate = prepare(experiment, base, workers, experiment.data.load(SEED), CLIENTS)
    state = workers.borrow(experiment.initial_state)
    wanted = {client: gate.ground.part(client, 1, width) for client, width in WANTED.items()}
    return gate, workers, state, wanted


@pytest.fixture(scope="module")
def base():
    return Tiny(hidden_size=16, num_heads=2, num_kv_heads=2, intermediate_size=8).load(SEED)


def measured(base, part):
    """Mean loss per answer token of a part on the public examples, without an adapter and example by example."""
    learner = base.learner(base.part(part.kept).replica(private=False), {})
    scores = [learner.score([encoded])[0] for encoded in learner.encode(DATA.load(SEED).public)]
    return sum(score.nll for score in scores) / sum(score.num_tokens for score in scores)


@pytest.mark.parametrize(
    "fields",
    [{"gate_margin": None}, {"extraction_mode": "window"}, {"extraction": FullExtraction()}],
    ids=["no margin", "windows", "no parts"],
)
def test_without_anything_to_judge_all_pass_and_nothing_is_measured(base, fields):
    gate, workers, state, wanted = gate_for(base, **fields)
    assert gate.admit(wanted, state, 1) == (wanted, {})
    assert workers.noted == []
    # So there need not be any examples to measure on either.
    gate_for(base, **fields, data=dataclasses.replace(DATA, num_public=0))


def test_losses_are_those_of_the_parts(base):
    gate, _, state, wanted = gate_for(base, gate_margin=100.0)
    admitted, told = gate.admit(wanted, state, 1)
    assert admitted == wanted
    assert told["base_loss"] == pytest.approx(measured(base, Part()), rel=1e-5)
    assert told["limit"] == told["base_loss"] + 100.0
    assert told["plans"] == [
        {"width": width, "loss": pytest.approx(measured(base, wanted[client]), rel=1e-5), "clients": 1}
        | {"decision": "kept", "to": None}
        for width, client in [(1.0, "cellar"), (0.5, "barn"), (0.25, "attic")]
    ]


def test_a_hopeless_part_is_enlarged_until_it_passes(base):
    gate, _, state, wanted = gate_for(base)
    admitted, told = gate.admit(wanted, state, 1)
    limit = measured(base, Part()) + 0.2
    expected = {}
    for client, width in WANTED.items():
        while measured(base, gate.ground.part(client, 1, width)) > limit:
            width = min(1.0, width * GROWTH)
        expected[client] = width
    # Not the next step, and not the whole.
    assert expected["attic"] == 0.25 * GROWTH**4
    assert {client: part.width for client, part in admitted.items()} == expected
    for client, part in admitted.items():
        assert {a: i.tolist() for a, i in part.kept.items()} == {
            a: i.tolist() for a, i in gate.ground.part(client, 1, expected[client]).kept.items()
        }
    assert told["plans"] == [
        {"width": 1.0, "loss": told["base_loss"], "clients": 1, "decision": "kept", "to": None},
        {"width": 0.5, "loss": pytest.approx(measured(base, wanted["barn"]), rel=1e-5), "clients": 1}
        | {"decision": "enlarged", "to": expected["barn"]},
        {"width": 0.25, "loss": pytest.approx(measured(base, wanted["attic"]), rel=1e-5), "clients": 1}
        | {"decision": "enlarged", "to": expected["attic"]},
    ]
    assert told["plans"][2]["loss"] > told["limit"] > told["base_loss"]


def test_or_it_is_not_sent(base):
    gate, _, state, wanted = gate_for(base, gate_enlarges=False)
    admitted, told = gate.admit(wanted, state, 1)
    assert admitted == {"cellar": wanted["cellar"]}
    assert [(line["width"], line["decision"], line["to"]) for line in told["plans"]] == [
        (1.0, "kept", None),
        (0.5, "refused", None),
        (0.25, "refused", None),
    ]


def test_clients_of_one_width_are_told_together_by_what_became_of_them(base):
    gate, _, state, _ = gate_for(base, gate_enlarges=False)
    # Three parts under one width, as importance or chance could have picked them.
    kept = [gate.ground.part(client, 1, width).kept for client, width in zip(CLIENTS, (0.75, 0.25, 0.6), strict=True)]
    wanted = {client: Part(0.25, units) for client, units in zip(CLIENTS, kept, strict=True)}
    losses = {client: measured(base, part) for client, part in wanted.items()}
    least, middle, most = sorted(losses.values())
    margin = (least + middle) / 2 - measured(base, Part())
    assert margin > 0
    ground = dataclasses.replace(
        gate.ground, experiment=dataclasses.replace(gate.ground.experiment, gate_margin=margin)
    )
    admitted, told = dataclasses.replace(gate, ground=ground).admit(wanted, state, 1)
    assert admitted.keys() == {client for client, loss in losses.items() if loss == least}
    assert told["plans"] == [
        {"width": 0.25, "loss": pytest.approx(loss, rel=1e-5), "clients": number, "decision": decision, "to": None}
        for decision, number, loss in [("kept", 1, least), ("refused", 2, (middle + most) / 2)]
    ]


def test_each_distinct_part_is_measured_once(base):
    gate, workers, state, _ = gate_for(base)
    widths = {"attic": 0.25, "barn": 0.25, "cellar": 0.5 / GROWTH}
    gate.admit({client: gate.ground.part(client, 1, width) for client, width in widths.items()}, state, 1)
    keys = [key for items in workers.noted for key, _ in items]
    assert len(keys) == len(set(keys))
    # The whole and 2 and 4 units; then 3 and 5 units. The narrow ones come to 4 and 5 as well, which are known by then.
    assert [len(items) for items in workers.noted] == [3, 2, 0, 0, 0]


def test_the_whole_is_measured_once_however_many_have_it(base):
    gate, workers, state, _ = gate_for(base)
    admitted, told = gate.admit(dict.fromkeys(CLIENTS, Part()), state, 1)
    assert admitted.keys() == set(CLIENTS)
    assert [len(items) for items in workers.noted] == [1, 0]
    assert told["plans"] == [{"width": 1.0, "loss": told["base_loss"], "clients": 3, "decision": "kept", "to": None}]


@pytest.mark.parametrize("extraction", [Rolling(stride=None), Importance(), Depth(num_first=1, num_last=0)])
def test_parts_of_any_kind_grow_to_the_whole_at_worst(base, extraction):
    gate, _, state, _ = gate_for(base, extraction=extraction, gate_margin=0.0)
    wanted = {client: gate.ground.part(client, 2, 0.25) for client in CLIENTS}
    admitted, told = gate.admit(wanted, state, 2)
    assert admitted.keys() == set(CLIENTS)
    for part in admitted.values():
        assert measured(base, part) <= told["limit"] + 1e-5


def test_a_model_that_says_nothing_any_more_ends_no_run(base):
    gate, _, state, wanted = gate_for(base)
    broken = {name: torch.full_like(tensor, math.nan) for name, tensor in state.items()}
    admitted, told = gate.admit(wanted, broken, 1)
    assert math.isnan(told["base_loss"])
    assert {client: part.kept for client, part in admitted.items()} == {client: {} for client in CLIENTS}


def test_a_state_is_judged_as_it_is_now(base):
    gate, _, state, wanted = gate_for(base, gate_margin=100.0)
    generator = torch.Generator().manual_seed(0)
    changed = {name: tensor + torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}
    before, after = (gate.admit(wanted, now, 1)[1] for now in (state, changed))
    assert after["base_loss"] != pytest.approx(before["base_loss"], abs=0.01)
    assert [line["loss"] for line in after["plans"]] != [line["loss"] for line in before["plans"]]


def residual_warning(base, num_steps, **fields):
    """What is said of cutting the residual stream of a model that has learned the public examples in so many steps."""
    stages = {"adapter": Full(), "extraction": Static(axes=("residual",)), "gate_margin": None}
    stages |= {"fleet": Levels(widths=(1.0, 0.5, 0.25)), "client": FirstOrder(learning_rate=0.02, num_steps=num_steps)}
    gate, workers, state, _ = gate_for(base, **{**stages, **fields})

    def learn(learner):
        learner.load(state)
        encoded = learner.encode(DATA.load(SEED).public)
        gate.ground.experiment.client.train(learner, encoded, 0.0, torch.Generator().manual_seed(0))
        return learner.state()

    return gate.warn_of_residual(workers.borrow(learn))


def test_a_model_that_knows_something_is_not_cut_in_the_residual_stream_without_a_warning(base):
    (text,) = residual_warning(base, 60)
    assert text.startswith("cutting the residual stream harms this model: a part of width 0.5 begins with a loss of ")
    part, whole = (float(number) for number in re.findall(r"(\d+\.\d+)(?: nats|;)", text))
    assert part > whole + 1
    assert whole < 0.5


@pytest.mark.parametrize(
    "fields",
    [
        {"num_steps": 1},
        {"extraction": Static()},
        {"fleet": Levels(widths=(1.0,))},
        {"data": dataclasses.replace(DATA, num_public=0)},
    ],
    ids=["knows nothing", "other axes", "nobody is narrow", "cannot be measured"],
)
def test_else_there_is_none(base, fields):
    assert residual_warning(base, **{"num_steps": 60, **fields}) == []


def test_scores_come_from_public_examples(base):
    gate, _, _, _ = gate_for(base, extraction=Importance(), gate_margin=None)
    learner = base.learner(base.replica(private=False), {})
    encoded = learner.encode(DATA.load(SEED).public)
    expected = [learner.importance(encoded[start : start + 5])["ffn.0"] for start in (0, 5, 10)]
    assert gate.ground.scores is not None
    assert torch.allclose(gate.ground.scores["ffn.0"], torch.stack(expected).mean(0), rtol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"extraction": Importance(), "gate_margin": None}])
def test_without_public_examples_there_is_a_way_out(base, fields):
    with pytest.raises(DataError, match=r"has none; give some with data\.public or data\.num_public"):
        gate_for(base, **fields, data=dataclasses.replace(DATA, num_public=0))


FIELDS = {
    "seed": SEED,
    "num_rounds": 9,
    "data": DATA,
    "model": Tiny(hidden_size=16, num_heads=2, num_kv_heads=2, intermediate_size=8),
    "extraction": Static(),
    "fleet": Uniform(width=0.25),
    "gate_margin": 0.1,
}


def test_a_run_whose_parts_are_all_refused_stops_after_three_rounds_and_says_why(tmp_path):
    with pytest.raises(RunError, match=r"3 rounds in a row \(the transfer gate sent no part .*\)\. Raise gate_margin"):
        carry_out(dataclasses.replace(QUICK, **FIELDS, gate_enlarges=False), tmp_path)


def test_a_run_tells_what_the_gate_has_decided(tmp_path):
    experiment = dataclasses.replace(QUICK, **{**FIELDS, "num_rounds": 1})
    lines = read(carry_out(experiment, tmp_path).metrics_file)
    (verdict,) = (line["gate"] for line in lines if line["kind"] == "round" and line["round"] == 1)
    assert verdict.keys() == {"limit", "base_loss", "plans"}
    ((decision, number, to),) = ((line["decision"], line["clients"], line["to"]) for line in verdict["plans"])
    assert (decision, number) == ("enlarged", 3)
    assert {line["width"] for line in lines if line["kind"] == "client"} == {to}


# --- parts without some of the tokens -------------------------------------------------------------------------------


def tokens_of(base, texts):
    """Tokens of some texts with the special ones."""
    found = [base.tokenizer(text)["input_ids"] for text in texts]
    return torch.tensor(sorted({*base.protected["vocab"].tolist(), *(token for ids in found for token in ids)}))


def with_tokens(gate, kept):
    """Parts of the clients that have these tokens, and nothing less of anything else."""
    return {client: Part(0.5, {"vocab": kept}) for client in CLIENTS}


def test_examples_that_a_part_cannot_say_are_left_out_of_both_sides_of_the_comparison(base):
    gate, _, state, _ = gate_for(base, extraction=Static(axes=("vocab",)), gate_margin=100.0)
    public = DATA.load(SEED).public
    said = [example for example in public if "4" not in example.text]
    assert 0 < len(said) < len(public)
    kept = tokens_of(base, [e.text + e.completion for e in said])
    assert 4 < len(kept) < 60
    _, told = gate.admit(with_tokens(gate, kept), state, 1)
    part = base.part({"vocab": kept})
    learner = part.learner(part.replica(private=False), {})
    whole = base.learner(base.replica(private=False), {})
    both = [[one.score([e])[0] for e in whole.encode(public) if learner.holds(e)] for one in (learner, whole)]
    assert 0 < len(both[0]) < len(public)
    num_tokens = sum(score.num_tokens for score in both[0])
    own, other = (sum(score.nll for score in scores) / num_tokens for scores in both)
    # Fewer tokens to choose from: it is below the whole, which is measured on the same examples.
    assert own < other
    (line,) = told["plans"]
    assert line["loss"] == pytest.approx(measured(base, Part()) + own - other, rel=1e-5)


def test_a_part_that_can_say_nothing_does_not_pass_and_the_reason_is_told(base):
    gate, _, state, _ = gate_for(base, extraction=Static(axes=("vocab",)), gate_margin=100.0, gate_enlarges=False)
    silent = with_tokens(gate, tokens_of(base, []))
    admitted, told = gate.admit({**silent, "cellar": Part()}, state, 1)
    assert admitted.keys() == {"cellar"}
    refused = next(line for line in told["plans"] if line["decision"] == "refused")
    assert refused == {
        "width": 0.5,
        "loss": math.inf,
        "clients": 2,
        "decision": "refused",
        "to": None,
        "reason": "no public example can be said with the tokens that it holds",
    }


def test_a_part_that_can_say_nothing_is_made_larger_until_it_can(base):
    gate, _, state, _ = gate_for(base, extraction=Static(axes=("vocab",)), gate_margin=100.0)
    wanted = {client: gate.ground.part(client, 1, 0.05) for client in CLIENTS}
    admitted, told = gate.admit(wanted, state, 1)
    assert {line["decision"] for line in told["plans"]} == {"enlarged"}
    part = admitted["attic"]
    learner = gate.ground.learner(part, 1, "attic")
    encoded = base.learner(base.replica(private=False), {}).encode(DATA.load(SEED).public)
    assert any(learner.holds(e) for e in encoded)
    narrower = gate.ground.learner(gate.ground.part("attic", 1, part.width / GROWTH), 1, "attic")
    assert not any(narrower.holds(e) for e in encoded)


def test_tokens_are_chosen_by_how_often_they_occur_in_public(base):
    gate, _, _, _ = gate_for(base, extraction=Importance(axes=("vocab",)), gate_margin=None)
    counts = torch.zeros(260)
    for encoded in base.learner(base.replica(private=False), {}).encode(DATA.load(SEED).public):
        for token in encoded.ids:
            counts[token] += 1
    kept = gate.ground.part("attic", 1, 24 / 260).kept["vocab"].tolist()
    special = base.protected["vocab"].tolist()
    chosen = [token for token in kept if token not in special]
    assert len(kept) == 24
    left = counts[[token for token in range(260) if token not in kept]]
    assert min(counts[chosen]) >= left.max() > 0
