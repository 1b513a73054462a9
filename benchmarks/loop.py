"""Seconds per round of fedgen's loop over the same training as one plain PyTorch function.

Both run in this process, in turn, on the same model. A round of fedgen's includes everything that a run does but
evaluation: choosing, packing, checking, folding, the journal and the checkpoint on the disk. With one worker the ratio
is the overhead of the loop alone; with one per core it is what a user gets.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plain_loop import plain_loop

if TYPE_CHECKING:
    from fedgen.experiment import Experiment
    from fedgen.federation.local import LocalTransport
    from fedgen.gate import Gate
    from fedgen.learner import Learner
    from fedgen.types import Encoded
    from fedgen.workers import Workers

BOUND = 1.05
CASES = (
    (
        "tiny, 100 clients, 10 per round",
        ["model=tiny", "data=synthetic", "data.num_owners=100", "data.num_train=32", "cohort_size=10"],
        2,
        6,
    ),
    ("SmolLM2-135M with LoRA, 4 homes", ["client.num_steps=4"], 1, 2),
)
"""Name, overrides, rounds that are timed together, and how often."""


def main(as_json: bool) -> int:
    """Prints the ratios; 1 if one is above the bound."""
    from fedgen.cli.figures import report

    figures = {}
    for name, overrides, num_rounds, repeats in CASES:
        for num_workers in sorted({1, len(os.sched_getaffinity(0))}):
            workers = f"{num_workers} worker{'s' * (num_workers > 1)}"
            value = ratio(overrides, num_workers, num_rounds, repeats)
            figures[f"{name}, {workers}"] = {"value": round(value, 3), "bound": BOUND}
    return report("Seconds per round over a plain PyTorch loop", figures, as_json)


def ratio(overrides: list[str], num_workers: int, num_rounds: int, repeats: int) -> float:
    """Seconds of fedgen's rounds over seconds of the plain loop's, each the least of several runs in turn.

    The least is what the machine can do when nothing else is in the way; a median would compare other people's work.
    """
    import torch

    from fedgen.cli.train import compose
    from fedgen.config.check import build
    from fedgen.federation.course import shards_of
    from fedgen.federation.local import LocalTransport
    from fedgen.gate import prepare
    from fedgen.workers import Workers

    torch.set_num_threads(1)
    # One more round than is timed: a round is over when the next one is dispatched, checkpoint and all.
    experiment = build(compose([*overrides, f"num_rounds={num_rounds + 1}"]))
    dataset = experiment.data.load(experiment.seed)
    shards = shards_of(experiment, dataset)
    base = experiment.base()
    learners = experiment.learners(base, num_workers)
    encoded = {name: [e for e in learners[0].encode(examples) if e] for name, examples in shards.items()}
    workers = Workers(learners)
    gate = prepare(experiment, base, workers, dataset, sorted(shards))
    transport = LocalTransport(gate.ground, workers, shards)
    plain, ours = [], []
    for _ in range(repeats + 1):  # the first pair warms up and is never the least
        plain.append(plain_seconds(experiment, learners[0], encoded, num_rounds))
        ours.append(fedgen_seconds(gate, workers, transport, num_rounds))
    workers.close()
    return min(ours) / min(plain)


def plain_seconds(
    experiment: "Experiment", learner: "Learner", encoded: dict[str, list["Encoded"]], num_rounds: int
) -> float:
    """Seconds of the plain loop."""
    state = experiment.initial_state(learner)
    cohorts = [experiment.cohort(sorted(encoded), number) for number in range(1, num_rounds + 2)]
    began = time.perf_counter()
    plain_loop(learner, encoded, state, experiment.client, experiment.seed, cohorts, num_rounds)
    return time.perf_counter() - began


def fedgen_seconds(gate: "Gate", workers: "Workers", transport: "LocalTransport", num_rounds: int) -> float:
    """Seconds of fedgen's rounds, from dispatch to dispatch."""
    from fedgen import run
    from fedgen.rounds import Server, serve

    dispatched: list[float] = []

    class Enough(BaseException):
        """The rounds that count are over."""

    def observe(record: dict[str, Any]) -> None:
        if record["kind"] == "dispatch":
            dispatched.append(time.perf_counter())
            if len(dispatched) > num_rounds:
                raise Enough

    with tempfile.TemporaryDirectory() as folder:
        place = run.create(Path(folder), "benchmark", {"experiment.yaml": "", "environment.json": "{}"})
        facts = {"base": "", "data": "", "description": ""}
        try:
            serve(Server(gate, place, transport, workers, {}, facts, observe))
        except Enough:
            return dispatched[num_rounds] - dispatched[0]
    raise AssertionError("the run ended before the last round that counts was over")
