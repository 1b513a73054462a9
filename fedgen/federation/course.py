"""The course of a run, on the side of the server: the same for every driver, whatever transport reaches the clients."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence

from fedgen import checkpoint, seeds
from fedgen.checkpoint import Checkpoint
from fedgen.disk import write_atomic
from fedgen.errors import DataError, RunError
from fedgen.experiment import Experiment
from fedgen.gate import prepare
from fedgen.learner import Base, Learner
from fedgen.parts import Ground
from fedgen.planner import Planner, planner_of
from fedgen.rounds import Server, serve
from fedgen.run import Run, lock
from fedgen.transport import Transport
from fedgen.types import Dataset, Example, Observer
from fedgen.workers import Workers

Reach = Callable[[Ground, Workers, Dataset], Transport]
"""Makes the transport of a run from what every side knows, the server's own learners, and the server's data."""


def carry_through(
    experiment: Experiment,
    run: Run,
    observe: Observer,
    reach: Reach,
    *,
    clients: Sequence[str] = (),
    num_workers: int | None = None,
    wait_s: float = 0.0,
) -> None:
    """Carries an experiment through, from its last checkpoint if there is one.

    Args:
        experiment: what to do.
        run: the folder that keeps everything.
        observe: is told of each thing as it happens.
        reach: makes the transport.
        clients: names of all clients; none: those to whom the partition gives examples of the server's data.
        num_workers: learners of this process, one thread each; None for one per core.
        wait_s: seconds to wait for another process that works on the run.

    Raises:
        FedgenError: data, model or run folder are unusable; the message says how.
    """
    one_thread_each()
    with lock(run, wait_s):
        dataset = experiment.data.load(experiment.seed)
        names = sorted(clients or shards_of(experiment, dataset))
        base = experiment.base()
        facts = {"base": base.fingerprint, "data": fingerprint(dataset), "description": dataset.description}
        _note(run, facts)
        workers = Workers(experiment.learners(base, min(num_workers or _num_cores(), max(len(names), 1))))
        try:
            gate = prepare(experiment, base, workers, dataset, names)
            planner = workers.borrow(lambda learner: planner_of(gate.ground, learner, dataset.public))
            transport = reach(gate.ground, workers, dataset)
            serve(Server(gate, run, transport, workers, dataset.evaluation, facts, observe, planner, dataset.public))
        finally:
            workers.close()


def planned(experiment: Experiment) -> Planner:
    """The planner of an experiment, as its run would have it, whatever devices its fleet has.

    Raises:
        FedgenError: data or model are unusable.
    """
    one_thread_each()
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


def finished(experiment: Experiment, run: Run) -> tuple[Learner, Checkpoint]:
    """A learner that holds the newest state of a run, and the checkpoint that it came from.

    Raises:
        RunError: the run has no valid checkpoint.
    """
    one_thread_each()
    identity = hashlib.sha256(run.experiment_file.read_bytes()).hexdigest()
    newest, _ = checkpoint.load_latest(run.checkpoints, identity=identity)
    base: Base = experiment.base()
    if newest.facts.get("base") != base.fingerprint:
        raise RunError("the base model is not the one that this run was trained on; put back the model it began with")
    (learner,) = experiment.learners(base, 1)
    learner.load(newest.state)
    return learner, newest


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


def one_thread_each() -> None:
    """Operations of this process run on one thread, since as many run at once as there are cores."""
    import torch

    torch.set_num_threads(1)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _note(run: Run, facts: Mapping[str, str]) -> None:
    """Adds what is known only after loading to environment.json."""
    environment = json.loads(run.environment_file.read_text())
    environment.update(base_sha256=facts["base"], data_sha256=facts["data"])
    write_atomic(run.environment_file, json.dumps(environment, indent=2) + "\n")
