"""All clients in this process: as many side by side as there are cores, one thread each, over one shared base.

A client is its examples and nothing more, so a hundred cost hardly more memory than four.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fedgen import checkpoint, seeds
from fedgen.checkpoint import Checkpoint
from fedgen.device import Holding, answer, hold
from fedgen.disk import write_atomic
from fedgen.errors import DataError, RunError
from fedgen.experiment import Experiment
from fedgen.federation.own_process import answer_apart
from fedgen.gate import prepare
from fedgen.learner import Base, Learner
from fedgen.messages import Reply, Request
from fedgen.parts import Ground
from fedgen.planner import Planner, planner_of
from fedgen.rounds import Server, serve
from fedgen.run import Run, lock
from fedgen.types import Dataset, Example, Observer
from fedgen.workers import Workers


@dataclass(frozen=True)
class Local:
    """All clients in this process, side by side.

    Attributes:
        num_workers: clients that train at once, with one thread each; null takes one per core. Changes no bit of the
            result.
        own_process: every turn of a client is a process of its own, as on a device, so that its peak memory is its own;
            each of them imports and loads everything again.
    """

    num_workers: int | None = None
    own_process: bool = False

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"num_workers is {self.num_workers}; it must be at least 1, or null for one per core")

    def run(self, experiment: Experiment, run: Run, observe: Observer) -> None:
        """Carries an experiment through, from its last checkpoint if there is one.

        Raises:
            FedgenError: data, model or run folder are unusable; the message says how.
        """
        _one_thread_each()
        with lock(run):
            dataset = experiment.data.load(experiment.seed)
            shards = shards_of(experiment, dataset)
            base = experiment.base()
            facts = {"base": base.fingerprint, "data": fingerprint(dataset), "description": dataset.description}
            _note(run, facts)
            workers = Workers(experiment.learners(base, self._num_workers(experiment, shards)))
            try:
                gate = prepare(experiment, base, workers, dataset, sorted(shards))
                planner = workers.borrow(lambda learner: planner_of(gate.ground, learner, dataset.public))
                transport = LocalTransport(gate.ground, workers, shards, self.own_process)
                serve(Server(gate, run, transport, workers, dataset.evaluation, facts, observe, planner))
            finally:
                workers.close()

    def _num_workers(self, experiment: Experiment, shards: Mapping[str, Sequence[Example]]) -> int:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(self.num_workers or cores, max(len(shards), 1))


def planned(experiment: Experiment) -> Planner:
    """The planner of an experiment, as its run would have it, whatever devices its fleet has.

    Raises:
        FedgenError: data or model are unusable.
    """
    _one_thread_each()
    dataset = experiment.data.load(experiment.seed)
    base = experiment.base()
    workers = Workers(experiment.learners(base, 1))
    try:
        gate = prepare(experiment, base, workers, dataset, sorted(shards_of(experiment, dataset)), plans=True)
        found = workers.borrow(lambda learner: planner_of(gate.ground, learner, dataset.public))
    finally:
        workers.close()
    assert found is not None
    return found


@dataclass(frozen=True)
class LocalTransport:
    """Requests are answered by the learners of this process.

    Attributes:
        ground: what clients do, and with what.
        workers: who does it.
        shards: client name → its examples.
        own_process: every turn is a process of its own.
    """

    ground: Ground
    workers: Workers
    shards: Mapping[str, Sequence[Example]]
    own_process: bool = False
    _holdings: dict[str, Holding] = field(default_factory=dict)
    _outbox: list[Iterator[Request]] = field(default_factory=list)

    def nodes(self) -> list[str]:
        """All clients, sorted."""
        return sorted(self.shards)

    def send(self, requests: Iterator[Request]) -> None:
        """Keeps the requests until replies are asked for."""
        self._outbox.append(requests)

    def receive(self) -> Iterator[Reply]:
        """Lets clients work as learners become free, and yields their replies as they finish."""
        while self._outbox:
            yield from self.workers.map(self._answer, self._outbox.pop(0))

    def _answer(self, learner: Learner, request: Request) -> Reply:
        holding = self._holdings.get(request.client)
        if holding is None:
            holding = self._holdings[request.client] = hold(learner, self.shards[request.client])
        if self.own_process:
            return answer_apart(self.ground, request, holding)
        return answer(self.ground, request, learner, holding)


def shards_of(experiment: Experiment, dataset: Dataset) -> dict[str, Sequence[Example]]:
    """Client name → its examples.

    Raises:
        DataError: there are no examples.
    """
    if not dataset.train:
        raise DataError("the data holds no training examples; check data.* in the configuration")
    split = experiment.partition.split(dataset.train, seeds.derive(experiment.seed, "partition"))
    return {client: [dataset.train[position] for position in positions] for client, positions in split.items()}


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 over every example of every split, and over those that are anybody's."""
    digest = hashlib.sha256()
    for name, examples in (("train", dataset.train), *dataset.evaluation.items(), ("public", dataset.public)):
        digest.update(name.encode())
        for example in examples:
            digest.update(repr(example).encode())
    return digest.hexdigest()


def finished(experiment: Experiment, run: Run) -> tuple[Learner, Checkpoint]:
    """A learner that holds the newest state of a run, and the checkpoint that it came from.

    Raises:
        RunError: the run has no valid checkpoint.
    """
    _one_thread_each()
    identity = hashlib.sha256(run.experiment_file.read_bytes()).hexdigest()
    newest, _ = checkpoint.load_latest(run.checkpoints, identity=identity)
    base: Base = experiment.base()
    if newest.facts.get("base") != base.fingerprint:
        raise RunError("the base model is not the one that this run was trained on; put back the model it began with")
    (learner,) = experiment.learners(base, 1)
    learner.load(newest.state)
    return learner, newest


def _one_thread_each() -> None:
    import torch

    torch.set_num_threads(1)


def _note(run: Run, facts: Mapping[str, str]) -> None:
    """Adds what is known only after loading to environment.json."""
    environment = json.loads(run.environment_file.read_text())
    environment.update(base_sha256=facts["base"], data_sha256=facts["data"])
    write_atomic(run.environment_file, json.dumps(environment, indent=2) + "\n")
