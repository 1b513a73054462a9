"""Replies to parts, good and bad, against the state that comes of them."""

import dataclasses
import itertools
import math

import pytest
import torch

from fedgen import tree
from fedgen.adapter.frozen_a import FrozenA
from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.aggregation.mean import Mean
from fedgen.checkpoint import Checkpoint
from fedgen.coverage import Coverage
from fedgen.directions import replay
from fedgen.extraction.depth import Depth
from fedgen.extraction.rolling import Rolling
from fedgen.late import Late
from fedgen.learner import Base
from fedgen.messages import Reply
from fedgen.model.tiny import Tiny
from fedgen.replies import MAX_EXAMPLES, Replies, Sent
from fedgen.types import Walk
from fedgen.wire.dense import Dense
from fedgen.wire.seeds import Seeds
from tests.conformance.grounds import CLIENTS, make_ground

WIDTHS = dict(zip(CLIENTS, (0.25, 0.5, 1.0), strict=True))
ROUND = 2


@pytest.fixture(scope="module")
def base() -> Base:
    return Tiny(hidden_size=16, num_heads=2, num_kv_heads=2, intermediate_size=8).load(0)


class Table:
    """A round of three clients of three widths: what the server knows, and the replies that are due."""

    def __init__(self, base, folder, **fields):
        self.folder = folder
        self.ground = make_ground(base, fields.pop("adapter", Lora(rank=2)), **{"extraction": Rolling(), **fields})
        (learner,) = self.ground.experiment.learners(base, 1)
        self.state = self.ground.experiment.initial_state(learner)
        self.parts = {client: self.ground.part(client, ROUND, width) for client, width in WIDTHS.items()}
        self.good = {client: self.reply(client) for client in CLIENTS}

    def reply(self, client, round=ROUND, **fields):
        """A client's drawn change to its part of a round."""
        part = self.ground.part(client, round, WIDTHS[client])
        generator = torch.Generator().manual_seed(CLIENTS.index(client))
        tensors = {
            name: torch.randn(tree.extent(self.state[name], kept), generator=generator) * 0.1
            for name, kept in self.ground.returned(part, round).items()
        }
        values = {
            "payload": Dense().encode(tensors),
            "num_examples": 3 + CLIENTS.index(client),
            "metrics": {"loss": 2.0},
        }
        return Reply(round, client, **{**values, **fields})

    def play(self, replies):
        """The next state, what was told of the round, and what was held in it."""
        coverage = Coverage(self.ground)
        late = Late(Checkpoint(ROUND - 1, {}, {}, {}), self.folder)
        taken = Replies(self.ground, self.state, ROUND, self.parts, coverage, self.folder, late)
        told = []
        for number, client in enumerate(CLIENTS):
            taken.sent[client] = Sent(0.0, 1000 + number, 10 * number, 0.5)
        taken.take_due(told.append)
        for reply in replies:
            taken.take(reply, told.append)
        taken.close()
        after, _ = self.ground.experiment.aggregation.apply(self.state, {}, taken.total)
        assert [line["client"] for line in told] == list(
            dict.fromkeys(r.client for r in replies if r.client in CLIENTS)
        )
        return after, taken, coverage.end_round()


@pytest.fixture(scope="module")
def table(base, tmp_path_factory):
    return Table(base, tmp_path_factory.mktemp("turns"))


def tensors_of(reply):
    return {name: tensor.clone() for name, tensor in Dense().decode(reply.payload).items()}


def with_tensors(reply, tensors):
    return dataclasses.replace(reply, payload=Dense().encode(tensors))


def changed(reply, change, which=0):
    tensors = tensors_of(reply)
    name = list(tensors)[which]
    return with_tensors(reply, {**tensors, name: change(tensors[name])})


def metric(reply, name, value):
    return dataclasses.replace(reply, metrics={**reply.metrics, name: value})


def spoilt(table):
    """Reason → bad replies of the client of half the width."""
    good = table.good["barn"]
    wider = table.reply("cellar").payload
    one = torch.tensor(1.0)
    return {
        "shape": [
            dataclasses.replace(good, payload=wider),
            dataclasses.replace(good, payload=table.reply("attic").payload),
            changed(good, lambda t: t[:1]),
            changed(good, lambda t: t.T.contiguous()),
            changed(good, lambda t: t[None]),
        ],
        "names": [
            with_tensors(good, {**tensors_of(good), "extra": torch.zeros(1)}),
            with_tensors(good, dict(list(tensors_of(good).items())[1:])),
            with_tensors(good, {}),
        ],
        "dtype": [changed(good, lambda t: t.bfloat16()), changed(good, lambda t: t.long())],
        "non_finite": [
            *(changed(good, lambda t, by=by: t * by) for by in (one / 0, -one / 0, one * math.nan)),
            changed(good, lambda t: torch.full_like(t, math.nan), which=-1),
            *(metric(good, "loss", value) for value in (math.nan, math.inf, 1e300)),
            *(metric(good, name, math.nan) for name in ("num_left_out", "peak_memory_bytes", "seconds_compute")),
        ],
        "stale": [table.reply("barn", round) for round in (ROUND - 1, ROUND + 1)],
        "num_examples": [dataclasses.replace(good, num_examples=n) for n in (0, -1, MAX_EXAMPLES + 1)],
        "malformed": [
            dataclasses.replace(good, payload=dataclasses.replace(good.payload, data=good.payload.data[:-64])),
            dataclasses.replace(good, payload=dataclasses.replace(good.payload, manifest=())),
            dataclasses.replace(good, payload=dataclasses.replace(good.payload, manifest=good.payload.manifest * 2)),
        ],
        "no_examples": [Reply(ROUND, "barn", error="no_examples")],
        "failed": [Reply(ROUND, "barn")],
    }


REASONS = ["shape", "names", "dtype", "non_finite", "stale", "num_examples", "malformed", "no_examples", "failed"]


@pytest.mark.parametrize("reason", REASONS)
def test_a_bad_reply_is_refused_with_its_reason_and_leaves_no_trace(table, reason):
    without, _, held = table.play([table.good[client] for client in ("attic", "cellar")])
    for bad in spoilt(table)[reason]:
        after, taken, now = table.play([table.good["attic"], bad, table.good["cellar"]])
        assert [line["refused"] for line in taken.lines] == [None, reason, None]
        assert all(torch.equal(after[name], without[name]) for name in without)
        assert now == held
        # The line is the server's: whatever the reply says, it is of this round and can be written down.
        line = taken.lines[1]
        assert (line["round"], line["width"]) == (ROUND, 0.5)
        assert all(math.isfinite(v) for v in line.values() if isinstance(v, int | float))


def test_every_reason_is_looked_at(table):
    assert list(spoilt(table)) == REASONS


def test_a_line_tells_what_was_sent_and_what_came(table):
    _, taken, _ = table.play(list(table.good.values()))
    assert [
        (line["client"], line["width"], line["bytes_down"], line["base_bytes"], line["num_examples"], line["bytes_up"])
        for line in taken.lines
    ] == [
        (client, WIDTHS[client], 1000 + n, 10 * n, 3 + n, table.good[client].payload.num_bytes)
        for n, client in enumerate(CLIENTS)
    ]
    assert taken.sent == {}
    assert taken.warnings == []


def test_good_replies_give_the_mean_over_those_who_held_an_entry(table):
    after, _, _ = table.play(list(table.good.values()))
    for name, before in table.state.items():
        sums, mass = torch.zeros(before.shape, dtype=torch.float64), torch.zeros(before.shape, dtype=torch.float64)
        for client, reply in table.good.items():
            plan = {name: table.ground.returned(table.parts[client], ROUND)[name]}
            change = {name: Dense().decode(reply.payload)[name].double()}
            tree.paste(plan, change, {name: sums}, reply.num_examples)
            tree.paste(plan, {name: torch.ones_like(change[name])}, {name: mass}, reply.num_examples)
        assert bool((mass > 0).all())  # one client holds everything
        assert torch.allclose(after[name].double(), before.double() + sums / mass, atol=1e-6)


@pytest.mark.parametrize("order", list(itertools.permutations(CLIENTS)))
def test_any_order_gives_the_same_bytes(table, order):
    expected, first, held = table.play(list(table.good.values()))
    after, taken, now = table.play([table.good[client] for client in order])
    assert all(torch.equal(after[name], expected[name]) for name in expected)
    assert [line["client"] for line in taken.lines] == [line["client"] for line in first.lines] == list(CLIENTS)
    assert now == held


def test_one_that_never_comes_keeps_nobody_waiting(table):
    without, _, held = table.play([table.good[client] for client in ("barn", "cellar")])
    after, taken, now = table.play([table.good[client] for client in ("cellar", "barn")])
    assert all(torch.equal(after[name], without[name]) for name in without)
    assert [line["client"] for line in taken.lines] == ["barn", "cellar"]
    assert now == held
    assert taken.sent.keys() == {"attic"}


def test_a_second_reply_and_one_from_nobody_are_left_aside(table):
    once, _, _ = table.play(list(table.good.values()))
    again = dataclasses.replace(table.good["barn"], payload=table.good["cellar"].payload)
    stranger = dataclasses.replace(table.good["barn"], client="nobody")
    twice, taken, _ = table.play(
        [table.good["barn"], table.good["barn"], again, stranger, table.good["attic"], table.good["cellar"]]
    )
    assert all(torch.equal(twice[name], once[name]) for name in once)
    assert [line["refused"] for line in taken.lines] == [None, None, None]
    assert [warning["text"] for warning in taken.warnings] == [
        "a reply came that nobody waits for, and was left aside"
    ] * 3


def test_a_refused_reply_cannot_be_mended_afterwards(table):
    without, _, _ = table.play([table.good[client] for client in ("attic", "cellar")])
    bad = dataclasses.replace(table.good["barn"], num_examples=0)
    after, taken, _ = table.play([bad, table.good["barn"], table.good["attic"], table.good["cellar"]])
    assert all(torch.equal(after[name], without[name]) for name in without)
    assert [line["refused"] for line in taken.lines] == [None, "num_examples", None]


@pytest.mark.parametrize("order", [("attic", "barn", "cellar"), ("cellar", "barn", "attic")])
def test_what_only_the_aggregation_refuses_marks_its_line_as_well(base, tmp_path, order):
    table = Table(base, tmp_path, aggregation=Mean())
    without, _, held = table.play([table.good[client] for client in ("attic", "cellar")])
    large = {"barn": changed(table.good["barn"], lambda t: t + 1e30)}
    after, taken, now = table.play([{**table.good, **large}[client] for client in order])
    assert [line["refused"] for line in taken.lines] == [None, "too_large", None]
    assert [warning["text"] for warning in taken.warnings] == ["the update of barn was refused: too_large"]
    assert all(torch.equal(after[name], without[name]) for name in without)
    assert now == held


def test_layers_that_a_client_does_not_have_are_no_part_of_its_reply(base, tmp_path):
    table = Table(base, tmp_path, adapter=Full(), extraction=Depth(order="prefix"))
    narrow = dataclasses.replace(table.good["barn"], payload=table.good["cellar"].payload)
    _, taken, _ = table.play([table.good["attic"], narrow, table.good["cellar"]])
    assert [line["refused"] for line in taken.lines] == [None, "names", None]


def test_a_factor_that_never_changes_is_not_taken(base, tmp_path):
    table = Table(base, tmp_path, adapter=FrozenA(rank=2))
    fixed = table.ground.fixed
    name = next(iter(fixed))
    both = with_tensors(table.good["cellar"], {**tensors_of(table.good["cellar"]), name: fixed[name]})
    _, taken, _ = table.play([table.good["attic"], table.good["barn"], both])
    assert [line["refused"] for line in taken.lines] == [None, None, "names"]


def test_a_factor_out_of_turn_is_not_taken(base, tmp_path):
    table = Table(base, tmp_path, adapter=Lora(rank=2, alternate=True))
    # Round 2 is A's; this is what the client would have sent in round 1.
    b = dataclasses.replace(table.reply("cellar", 1), round=ROUND)
    _, taken, _ = table.play([table.good["attic"], table.good["barn"], b])
    assert [line["refused"] for line in taken.lines] == [None, None, "names"]


@pytest.mark.parametrize("order", [("attic", "barn", "cellar"), ("cellar", "barn", "attic")])
def test_walks_are_taken_through_the_part_that_the_client_held(base, tmp_path, order):
    """Whether a walk is folded at once or waits for its turn, it gives what its change gives."""
    table = Table(base, tmp_path, wire=Seeds())
    walks, changes = {}, {}
    for number, client in enumerate(CLIENTS):
        walk = Walk(torch.tensor([number, 7]), torch.tensor([0.5, -0.25]))
        plan = table.ground.returned(table.parts[client], ROUND)
        shapes = {name: tuple(tree.extent(table.state[name], kept)) for name, kept in plan.items()}
        changes[client] = with_tensors(table.good[client], replay(walk, shapes))
        walks[client] = dataclasses.replace(table.good[client], payload=Seeds().encode({}, walk=walk))
    expected, _, held = table.play([changes[client] for client in CLIENTS])
    after, taken, now = table.play([walks[client] for client in order])
    assert all(torch.equal(after[name], expected[name]) for name in expected)
    assert [(line["refused"], line["bytes_up"]) for line in taken.lines] == [(None, 16)] * 3
    assert now == held


def test_a_walk_that_leads_nowhere_finite_is_refused(base, tmp_path):
    table = Table(base, tmp_path, wire=Seeds())
    far = Walk(torch.tensor([1, 1]), torch.tensor([3e38, 3e38]))
    bad = {"barn": dataclasses.replace(table.good["barn"], payload=Seeds().encode({}, walk=far))}
    without, _, held = table.play([table.good[client] for client in ("attic", "cellar")])
    after, taken, now = table.play([{**table.good, **bad}[client] for client in CLIENTS])
    assert [line["refused"] for line in taken.lines] == [None, "non_finite", None]
    assert all(torch.equal(after[name], without[name]) for name in without)
    assert now == held


# --- replies that come in in a later round --------------------------------------------------------------------------


def one_late(table, delay, answers, after):
    """Round 2, in which the client of half the width is asked for a late reply, and the round in which that comes in.

    Args:
        table: of the clients.
        delay: of the client of half the width, in rounds.
        answers: replies of round 2.
        after: replies of the round in which it comes in, of the other two clients.

    Returns:
        What was taken in either round, and what was held in the second.
    """
    coverage, late = Coverage(table.ground), Late(Checkpoint(ROUND - 1, {}, {}, {}), table.folder)
    first = Replies(table.ground, table.state, ROUND, table.parts, coverage, table.folder, late)
    for client in CLIENTS:
        first.sent[client] = Sent(0.0, 1000, 10, 0.5, delay if client == "barn" else 0)
    told = []
    for reply in answers:
        first.take(reply, told.append)
    first.close()
    assert [line["client"] for line in first.lines] == sorted(line["client"] for line in told) == ["attic", "cellar"]
    coverage.end_round()
    entries, attached = late.close()
    late = Late(Checkpoint(ROUND + delay - 1, {}, {}, {"late": entries}, attached), table.folder)
    round = ROUND + delay
    parts = {client: table.ground.part(client, round, WIDTHS[client]) for client in ("attic", "cellar")}
    second = Replies(table.ground, table.state, round, parts, coverage, table.folder, late)
    for client in parts:
        second.sent[client] = Sent(0.0, 1000, 10, 0.5)
    second.take_due(told.append)
    assert told[-1]["client"] == "barn"
    for reply in after:
        second.take(reply, told.append)
    second.close()
    assert coverage.missed == {"barn": delay}
    return first, second, coverage.end_round()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_late_reply_is_folded_in_its_turn_with_the_plan_of_its_round_and_a_discount(table, reverse):
    order = -1 if reverse else 1
    after = [table.reply(client, ROUND + 3) for client in ("attic", "cellar")][::order]
    _, second, _ = one_late(table, 3, list(table.good.values())[::order], after)
    assert [(line["client"], line["round"], line["asked"], line["refused"]) for line in second.lines] == [
        ("attic", 5, 5, None),
        ("barn", 5, 2, None),
        ("cellar", 5, 5, None),
    ]
    assert (second.lines[1]["bytes_down"], second.lines[1]["base_bytes"], second.lines[1]["width"]) == (1000, 10, 0.5)
    folded = [(table.good["barn"], table.parts["barn"], 4 * 0.5)]  # (1 + 3)**-0.5
    folded += [(r, table.ground.part(r.client, 5, WIDTHS[r.client]), r.num_examples) for r in after]
    state, _ = table.ground.experiment.aggregation.apply(table.state, {}, second.total)
    for name, before in table.state.items():
        sums, mass = torch.zeros(before.shape, dtype=torch.float64), torch.zeros(before.shape, dtype=torch.float64)
        for reply, part, weight in folded:
            plan = {name: table.ground.returned(part, reply.round)[name]}
            change = {name: Dense().decode(reply.payload)[name].double()}
            tree.paste(plan, change, {name: sums}, weight)
            tree.paste(plan, {name: torch.ones_like(change[name])}, {name: mass}, weight)
        assert torch.allclose(state[name].double(), before.double() + sums / mass, atol=1e-6)


@pytest.mark.parametrize("reason", REASONS)
def test_a_bad_late_reply_is_refused_when_it_comes_in_and_leaves_no_trace(table, reason):
    after = [table.reply(client, ROUND + 1) for client in ("attic", "cellar")]
    others = [table.good["attic"], table.good["cellar"]]
    nothing = Reply(ROUND, "barn", error="no_examples")
    _, expected, held = one_late(table, 1, [*others, nothing], after)
    aggregation = table.ground.experiment.aggregation
    without, _ = aggregation.apply(table.state, {}, expected.total)
    for bad in spoilt(table)[reason]:
        _, second, now = one_late(table, 1, [bad, table.good["barn"], *others], after)
        assert [line["refused"] for line in second.lines] == [None, reason, None]
        state, _ = aggregation.apply(table.state, {}, second.total)
        assert all(torch.equal(state[name], without[name]) for name in without)
        assert now == held


def test_a_late_reply_is_taken_once_and_none_to_another_round(table):
    after = [table.reply(client, ROUND + 2) for client in ("attic", "cellar")]
    _, once, _ = one_late(table, 2, list(table.good.values()), after)
    again = [table.good["barn"], table.reply("barn", ROUND + 2)]
    first, twice, _ = one_late(table, 2, [table.good["barn"], *table.good.values()], [*again, *after, *again])
    assert len(first.warnings) == 1
    assert len(twice.warnings) == 4
    states = [table.ground.experiment.aggregation.apply(table.state, {}, taken.total)[0] for taken in (once, twice)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
