"""A round over Flower's grid, with devices that fail in every way that they can."""

import dataclasses
import json
import time

import pytest
import torch

import fedgen
from fedgen.device import answer, hold
from fedgen.errors import RunError
from fedgen.federation import packing
from fedgen.federation.course import carry_through, shards_of
from fedgen.federation.grid_transport import GridTransport
from fedgen.federation.letter import Letter
from fedgen.federation.terms import Terms
from fedgen.gate import prepare
from fedgen.messages import Reply, Request
from fedgen.wire.dense import Dense
from fedgen.workers import Workers
from tests.unit.federation.local_grid import LocalGrid, Node, answering
from tests.unit.federation.test_local import QUICK, carry_out, final

CLIENTS = ["owner-0", "owner-1", "owner-2", "owner-3"]
QUICKLY = Terms(deadline_s=5.0, gather_s=0.0, patience_s=0.5, poll_s=0.005)
PAYLOAD = Dense().encode({"w": torch.ones(3)})


@pytest.fixture(scope="module")
def world():
    """Ground, learner and shards of the experiment."""
    dataset, base = QUICK.data.load(0), QUICK.base()
    shards = shards_of(QUICK, dataset)
    workers = Workers(QUICK.learners(base, 1))
    yield prepare(QUICK, base, workers, dataset, sorted(shards)).ground, workers, shards
    workers.close()


def letter_of(base, client, **changes):
    report = {"client": client, "fedgen": fedgen.__version__, "base": base, "memory_bytes": 5, **changes}
    return packing.pack_report(report)


def good(letter):
    request, _ = packing.open_request(letter)
    return packing.pack_reply(Reply(request.round, request.client, PAYLOAD, 1))


def failing(word):
    def train(letter):
        request, _ = packing.open_request(letter)
        return packing.pack_reply(Reply(request.round, request.client, error=word))

    return train


def node(ground, client, train=good, report=(), **fields):
    report = dict(report)
    return Node(
        answering(lambda: letter_of(report.pop("base", ground.base.fingerprint), client, **report), train), **fields
    )


@pytest.fixture
def four(world):
    """Numbers of nodes, which say nothing of clients, and nodes of all clients."""
    ground, _, _ = world
    return {90 - number: node(ground, client) for number, client in enumerate(CLIENTS)}


class Round:
    """A transport, and rounds over it."""

    def __init__(self, ground, nodes, terms=QUICKLY):
        self.told, self.number = [], 0
        self.grid = LocalGrid(nodes)
        self.transport = GridTransport(self.grid, ground, terms, self.told.append)
        self.base = ground.base.fingerprint

    def play(self, clients=None):
        """Replies of a round, each as its error or "", by client; every request has exactly one."""
        self.number += 1
        clients = self.transport.nodes() if clients is None else clients
        requests = (Request(self.number, c, 0.0, part(), PAYLOAD, self.base) for c in clients)
        self.transport.send(requests)
        replies = list(self.transport.receive())
        assert sorted(reply.client for reply in replies) == sorted(clients)
        assert all(reply.round == self.number for reply in replies)
        return {reply.client: reply.error for reply in replies}

    def told_of(self, kind):
        return [record for record in self.told if record["kind"] == kind]


def part():
    from fedgen.types import Part

    return Part()


def test_a_run_over_the_grid_has_the_bytes_of_a_run_in_this_process(world, tmp_path):
    expected = final(carry_out(QUICK, tmp_path / "local")).read_bytes()
    ground, workers, shards = world

    def train(letter):
        request, names = packing.open_request(letter)
        # A device knows its place, and nobody's name but its own.
        own = dataclasses.replace(ground, clients=names)
        return packing.pack_reply(
            workers.borrow(lambda learner: answer(own, request, learner, hold(learner, shards[request.client])))
        )

    nodes = {number: node(ground, client, train) for number, client in zip((7, 3, 12, 5), CLIENTS, strict=True)}
    from fedgen import run as folders

    told = []
    run = folders.create(tmp_path / "grid", "grid", {"experiment.yaml": "x: 1\n", "environment.json": "{}"})
    carry_through(QUICK, run, told.append, lambda own, *_: GridTransport(LocalGrid(nodes), own, QUICKLY, told.append))
    assert final(run).read_bytes() == expected
    assert {record["client"] for record in told if record["kind"] == "device"} == set(CLIENTS)


def test_requests_are_pushed_one_by_one_as_they_are_drawn(world, four):
    game = Round(world[0], four)
    drawn, pushed = [], []
    game.transport.nodes()
    before = len(game.grid.pushes)

    def requests():
        for client in CLIENTS:
            pushed.append(len(game.grid.pushes) - before)
            drawn.append(client)
            yield Request(1, client, 0.0, part(), PAYLOAD, game.base)

    game.transport.send(requests())
    assert drawn == []
    assert len(list(game.transport.receive())) == 4
    assert pushed == [0, 1, 2, 3]


def test_a_round_ends_at_its_deadline_and_what_comes_later_is_dropped_and_frees_the_node(world, four):
    game = Round(world[0], four, dataclasses.replace(QUICKLY, deadline_s=0.2))
    assert game.transport.nodes() == CLIENTS
    four[89].delay_s = 0.8
    began = time.monotonic()
    assert game.play(CLIENTS) == {"owner-0": "", "owner-1": "late", "owner-2": "", "owner-3": ""}
    assert 0.2 <= time.monotonic() - began < 0.7
    assert game.transport.nodes() == ["owner-0", "owner-2", "owner-3"]
    four[89].delay_s = 0.0
    time.sleep(max(0.0, began + 0.9 - time.monotonic()))
    assert game.transport.nodes() == CLIENTS
    (stale,) = game.told_of("stale")
    assert (stale["client"], stale["asked"]) == ("owner-1", 1)
    assert set(game.play().values()) == {""}


def test_a_round_ends_a_little_after_its_quorum(world, four):
    game = Round(world[0], four, dataclasses.replace(QUICKLY, deadline_s=30.0, quorum=0.75, grace_s=0.3))
    game.transport.nodes()
    four[90].delay_s, four[87].delay_s = 60.0, 0.15
    began = time.monotonic()
    assert game.play(CLIENTS) == {"owner-0": "late", "owner-1": "", "owner-2": "", "owner-3": ""}
    assert 0.4 <= time.monotonic() - began < 5


def test_errors_make_no_quorum(world, four):
    game = Round(world[0], four, dataclasses.replace(QUICKLY, deadline_s=0.4, quorum=0.5, grace_s=0.0))
    four[90] = node(world[0], "owner-0", failing("died"))
    four[89] = node(world[0], "owner-1", failing("died"))
    game.transport.nodes()
    four[88].delay_s = 0.2
    assert game.play(CLIENTS) == {"owner-0": "died", "owner-1": "died", "owner-2": "", "owner-3": ""}


def test_what_flower_says_in_place_of_a_node_is_put_down_to_that_node(world, four):
    game = Round(world[0], four)
    game.transport.nodes()
    four[88].dead = True
    assert game.play(CLIENTS)["owner-2"] == "offline"
    # It is said to be there still, and does not answer a hello either.
    assert game.transport.nodes() == ["owner-0", "owner-1", "owner-3"]


def test_a_node_that_comes_back_is_greeted_again(world, four):
    game = Round(world[0], four)
    game.play()
    four[88].online = False
    assert game.transport.nodes() == ["owner-0", "owner-1", "owner-3"]
    four[88].online = True
    four[88].app = node(world[0], "owner-2", report={"memory_bytes": 77}).app
    game.transport.nodes()
    assert game.transport.nodes() == CLIENTS
    assert four[88].taken == ["query.hello", "train", "query.hello"]
    assert game.transport.reports()["owner-2"]["memory_bytes"] == 77


@pytest.mark.parametrize(
    ("client", "report", "fields", "reason"),
    [
        ("stranger", {}, {}, "unknown_client"),
        ("owner-3", {"base": "another"}, {}, "other_base"),
        ("owner-3", {"fedgen": "0.0.9"}, {}, "other_version"),
        ("owner-3", {}, {"name": "owner-2"}, "other_name"),
        ("owner-1", {}, {}, "name_taken"),
    ],
)
def test_who_does_not_belong_is_refused_and_told_once(world, four, client, report, fields, reason):
    four[87] = node(world[0], client, report=report, **fields)
    game = Round(world[0], four)
    for _ in range(3):
        assert game.transport.nodes() == CLIENTS[:3]
    assert [(record["client"], record["reason"]) for record in game.told_of("refused")] == [(client, reason)]
    assert four[87].taken == ["query.hello"]


@pytest.mark.parametrize("header", ["", "{}", "[" * 100_000, '{"format": 1, "kind": "reply", "error": 3}'])
def test_replies_that_make_no_sense_are_malformed(world, four, header):
    four[87] = node(world[0], "owner-3", lambda letter: Letter(header, b"\0" * 5))
    assert Round(world[0], four).play() == {"owner-0": "", "owner-1": "", "owner-2": "", "owner-3": "malformed"}


@pytest.mark.parametrize("changes", [{"round": 9}, {"client": "owner-0"}])
def test_an_answer_to_something_else_is_malformed(world, four, changes):
    def train(letter):
        done = good(letter)
        return Letter(json.dumps(json.loads(done.header) | changes), done.body)

    four[87] = node(world[0], "owner-3", train)
    assert Round(world[0], four).play()["owner-3"] == "malformed"


def test_an_exception_in_an_app_is_a_failure_in_a_word(world, four):
    def train(letter):
        raise ZeroDivisionError("with somebody's data in it")

    four[87] = node(world[0], "owner-3", train)
    game = Round(world[0], four)
    assert game.play()["owner-3"] == "failed"
    assert "somebody" not in json.dumps(game.told)


def test_who_fails_time_and_again_rests_for_longer_and_longer(world, four):
    four[87] = node(world[0], "owner-3", failing("failed"))
    game = Round(world[0], four)
    asked = ["owner-3" in game.play() for _ in range(10)]
    # Two failures, a rest of one round, a third, two rounds, a fourth, four rounds.
    assert asked == [True, True, False, True, False, False, True, False, False, False]


def test_who_rests_is_asked_all_the_same_if_there_would_be_too_few(world, four):
    game = Round(world[0], {87: node(world[0], "owner-3", failing("failed"))})
    assert [game.play() for _ in range(4)] == [{"owner-3": "failed"}] * 4


def test_a_device_that_succeeds_is_forgiven(world, four):
    words = iter(["failed", "", "failed", "", "failed", ""])

    def train(letter):
        word = next(words)
        return failing(word)(letter) if word else good(letter)

    four[87] = node(world[0], "owner-3", train)
    game = Round(world[0], four)
    assert all("owner-3" in game.play() for _ in range(6))


def test_a_run_waits_for_devices_and_says_so_and_gives_up_in_the_end(world, four):
    game = Round(world[0], {90: four[90]}, dataclasses.replace(QUICKLY, min_clients=2, patience_s=0.2))
    with pytest.raises(RunError, match=r"1 of 4 clients can be asked.*at least 2"):
        game.transport.nodes()
    (warning,) = game.told_of("warning")
    assert "waiting for more" in warning["text"]


def test_nodes_that_were_all_refused_are_not_waited_for(world):
    nodes = {number: node(world[0], client, report={"base": "another"}) for number, client in enumerate(CLIENTS, 2)}
    game = Round(world[0], nodes, dataclasses.replace(QUICKLY, gather_s=60.0, patience_s=0.1))
    with pytest.raises(
        RunError, match=r"0 of 4 clients.*refused were nodes for other_base \(the device has another model"
    ):
        game.transport.nodes()


def test_before_its_first_round_a_run_waits_for_all_devices(world, four):
    four[88].delay_s = 0.2
    game = Round(world[0], four, dataclasses.replace(QUICKLY, gather_s=20.0))
    assert game.transport.nodes() == CLIENTS
    four[88].online = False
    began = time.monotonic()
    assert len(game.transport.nodes()) == 3
    assert time.monotonic() - began < 2


def test_devices_of_which_none_can_work_are_asked_again_until_one_can(world, four, monkeypatch):
    monkeypatch.setattr("fedgen.federation.grid_transport.LOOK_AGAIN_S", 0.05)
    heat = iter([90.0, 91.0, 60.0])
    ground = world[0]

    def hello():
        return letter_of(ground.base.fingerprint, "owner-0", temperature_c=next(heat))

    game = Round(ground, {90: Node(answering(hello, good))}, dataclasses.replace(QUICKLY, patience_s=20.0))
    seen = []
    while True:
        assert game.transport.nodes() == ["owner-0"]
        seen.append(game.transport.reports()["owner-0"]["temperature_c"])
        if seen[-1] < 85:
            break
        assert game.transport.look_again("all are too hot")
    assert seen == [90.0, 91.0, 60.0]
    assert [record["text"] for record in game.told_of("warning")] == [
        "all are too hot; waiting until they say otherwise"
    ]
    assert game.play() == {"owner-0": ""}


def test_devices_of_which_none_can_work_are_not_waited_for_beyond_patience(world, four, monkeypatch):
    monkeypatch.setattr("fedgen.federation.grid_transport.LOOK_AGAIN_S", 0.05)
    game = Round(world[0], four, dataclasses.replace(QUICKLY, patience_s=0.2))
    game.transport.nodes()
    began = time.monotonic()
    while game.transport.look_again("no"):
        assert game.transport.nodes()
    assert 0.2 <= time.monotonic() - began < 5
    game.play()
    assert game.transport.look_again("no"), "a new wait has its own patience"


def test_a_client_that_has_gone_since_it_was_chosen_is_offline(world, four):
    game = Round(world[0], four)
    game.transport.nodes()
    game.transport._roster.left(88)
    assert game.play(CLIENTS) == {"owner-0": "", "owner-1": "", "owner-2": "offline", "owner-3": ""}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"deadline_s": 0.0}, "deadline_s"),
        ({"patience_s": -1.0}, "patience_s"),
        ({"poll_s": 0.0}, "poll_s"),
        ({"grace_s": -0.1}, "grace_s"),
        ({"gather_s": -0.1}, "gather_s"),
        ({"quorum": 0.0}, "quorum"),
        ({"quorum": 1.1}, "quorum"),
        ({"min_clients": 0}, "min_clients"),
    ],
)
def test_terms_out_of_range_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        Terms(**values)
