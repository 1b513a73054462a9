"""An experiment as a device gets it, and what the same device would answer in one process."""

import contextlib
import dataclasses
import json
import socket
import threading
from pathlib import Path

from fedgen.cli.train import compose
from fedgen.config.check import build
from fedgen.device import answer, hold
from fedgen.federation import run_config
from fedgen.federation.course import shards_of
from fedgen.messages import Request
from fedgen.parts import ground_of

SMALL = (
    "recipe=tiny",
    "model.hidden_size=16",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "adapter.rank=4",
    "client.num_steps=2",
    "data.num_train=8",
    "data.num_eval=4",
    "data.num_public=4",
)
TIMES = ("seconds_compute", "seconds_select", "seconds_wire", "peak_memory_bytes")
"""Numbers about the work that are never the same twice."""


def experiment_text(*overrides):
    return run_config.write(compose([*SMALL, *overrides]), Path("runs"))[run_config.EXPERIMENT]


class Here:
    """Requests of an experiment, and their answers from this process."""

    def __init__(self, text, *, plans=False):
        self.experiment = build(json.loads(text))
        self.base = self.experiment.base()
        [self.learner] = self.experiment.learners(self.base, 1)
        self.shards = shards_of(self.experiment, self.experiment.data.load(self.experiment.seed))
        self.clients = sorted(self.shards)
        self.ground = ground_of(self.experiment, self.base, self.learner, self.clients, None, plans=plans)
        self.state = self.experiment.initial_state(self.learner)

    def request(self, client, round=1, width=1.0, **fields):
        part = self.ground.part(client, round, width)
        payload = self.experiment.wire.encode(self.state, self.ground.sent(part))
        return Request(round, client, 0.25, part, payload, self.base.fingerprint, **fields)

    def answer(self, request):
        return answer(self.ground, request, self.learner, hold(self.learner, self.shards[request.client]))


def same(reply):
    """All of a reply that must be equal to the bit, as plain values."""
    assert reply.error == "", reply.error
    kept = {axis: index.tolist() for axis, index in reply.kept.items()}
    metrics = {name: value for name, value in reply.metrics.items() if name not in TIMES}
    return (
        dataclasses.asdict(dataclasses.replace(reply, payload=None, metrics=metrics, kept={})),
        kept,
        reply.payload.manifest,
        reply.payload.data.numpy().tobytes(),
    )


@contextlib.contextmanager
def impostor(path, said):
    """Whoever calls at a socket is told these bytes, and listened to until it hangs up."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def serve():
            connection, _ = listening.accept()
            with connection:
                connection.sendall(said)
                while connection.recv(2**20):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()
