"""Every update that a device can forge is refused with its word, and leaves no trace in the result."""

import dataclasses
import hashlib
import sys
from pathlib import Path

from fedgen import run as folders
from fedgen.device import answer, hold
from fedgen.federation import packing
from fedgen.federation.course import carry_through, shards_of
from fedgen.federation.grid_transport import GridTransport
from fedgen.messages import Reply
from tests.unit.federation.local_grid import LocalGrid
from tests.unit.federation.test_grid_transport import CLIENTS, QUICKLY, node
from tests.unit.federation.test_local import QUICK

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
from drills import WORDS
from rogue import FORGERIES, forge

ROGUE = "owner-3"
EXPERIMENT = dataclasses.replace(
    QUICK, num_rounds=len(FORGERIES), evaluate_every=len(FORGERIES), num_evaluated=1, num_evaluated_per_round=1
)


def carry_out(folder, spoil):
    """What is told of a run in which the last client's replies are spoilt, and the bytes that it leaves behind."""
    told, shards = [], shards_of(EXPERIMENT, EXPERIMENT.data.load(0))

    def reach(ground, workers, dataset):
        def train(letter):
            request, names = packing.open_request(letter)
            own = dataclasses.replace(ground, clients=names)
            reply = workers.borrow(lambda learner: answer(own, request, learner, hold(learner, shards[request.client])))
            return packing.pack_reply(spoil(reply) if request.client == ROGUE else reply)

        nodes = {number: node(ground, client, train) for number, client in enumerate(CLIENTS, 2)}
        return GridTransport(LocalGrid(nodes), ground, QUICKLY, told.append)

    run = folders.create(folder, "run", {"experiment.yaml": "x: 1\n", "environment.json": "{}"})
    carry_through(EXPERIMENT, run, told.append, reach, num_workers=1)
    newest = max(run.checkpoints.glob("round-*"))
    files = [newest / "state.safetensors", newest / "server.safetensors", run.adapter / "adapter_model.safetensors"]
    return told, [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_forged_updates_are_refused_each_with_its_word_and_change_no_bit(tmp_path):
    honest = []

    def spoil(reply):
        honest.append(reply)
        return forge(reply, honest[-2] if len(honest) > 1 else None, FORGERIES[reply.round - 1])

    told, found = carry_out(tmp_path / "forged", spoil)
    refused = {line["round"]: line["refused"] for line in told if line["kind"] == "client" and line["client"] == ROGUE}
    assert {FORGERIES[number - 1]: word for number, word in refused.items()} == {
        order: word for order, (_, word) in WORDS.items()
    }
    others = [line["refused"] for line in told if line["kind"] == "client" and line["client"] != ROGUE]
    assert others == [None] * 3 * len(FORGERIES)
    _, without = carry_out(tmp_path / "failing", lambda reply: Reply(reply.round, reply.client, error="failed"))
    assert found == without
