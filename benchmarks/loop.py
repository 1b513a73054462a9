"""Seconds per round of fedgen's loop over the same training as one plain PyTorch function.

Both run in this process, in turn, on the same model; a round of fedgen's includes everything that a run does but evaluation:
choosing, packing, checking, folding, the journal and the checkpoint on the disk. Workers is how many clients train at once:
with one the ratio is the overhead of the loop alone, with one per core it is what a user gets.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

from figures import show
from plain_loop import plain_loop

BOUND = 1.05
"""Upper bound on every ratio."""


def main(as_json: bool) -> int:
    """Prints the ratios; 1 if one is above the bound."""
    cores = len(os.sched_getaffinity(0))
    figures = {}
    for label, overrides, num_rounds, repeats in CASES:
        for num_workers in sorted({1, cores}):
            figures[f"{label}, {num_workers} worker{'s' * (num_workers > 1)}"] = {
                "value": round(ratio(overrides, num_workers, num_rounds, repeats), 3),
                "bound": BOUND,
            }
    return show("Seconds per round over a plain PyTorch loop", figures, as_json)


CASES = [
    (
        "tiny, 100 clients, 10 per round",
        ["model=tiny", "data=synthetic", "data.num_owners=100", "data.num_train=32", "cohort_size=10"],
        5,
        5,
    ),
    ("SmolLM2-135M with LoRA, 4 homes", ["client.num_steps=4"], 1, 3),
]


def ratio(overrides: list[str], num_workers: int, num_rounds: int, repeats: int) -> float:
    """Median over repeats of seconds of fedgen's rounds over seconds of the plain loop's."""
    import torch

    from fedgen.federation.local import LocalTransport, shards_of
    from fedgen.workers import Workers

    torch.set_num_threads(1)
    # One more round than is timed: a round is over when the next one is dispatched, checkpoint and all.
    experiment = composed([*overrides, f"num_rounds={num_rounds + 1}"])
    dataset = experiment.data.load(experiment.seed)
    shards = shards_of(experiment, dataset)
    learners = experiment.learners(experiment.base(), num_workers)
    encoded = {name: [e for e in learners[0].encode(examples) if e] for name, examples in shards.items()}
    workers = Workers(learners)
    transport = LocalTransport(experiment, workers, shards, lambda _: None)
    found = []
    for repeat in range(repeats + 1):
        plain = plain_seconds(experiment, learners[0], encoded, num_rounds)
        ours = fedgen_seconds(experiment, workers, transport, num_rounds)
        if repeat:  # the first pair warms up
            found.append(ours / plain)
    workers.close()
    return statistics.median(found)


def composed(overrides: list[str]):
    """The experiment that ``fedgen train`` would run."""
    import hydra
    from omegaconf import OmegaConf

    from fedgen.cli.catalogue import shipped
    from fedgen.cli.check import build

    with hydra.initialize_config_dir(str(shipped("configs")), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("experiment", overrides), resolve=True)
    return build(config)


def plain_seconds(experiment, learner, encoded, num_rounds) -> float:
    """Seconds of the plain loop."""
    state = experiment.initial_state(learner)
    cohorts = [experiment.cohort(sorted(encoded), number) for number in range(1, num_rounds + 1)]
    began = time.perf_counter()
    plain_loop(learner, encoded, state, experiment.client, experiment.seed, cohorts)
    return time.perf_counter() - began


def fedgen_seconds(experiment, workers, transport, num_rounds) -> float:
    """Seconds of fedgen's rounds, from dispatch to dispatch."""
    from fedgen import run
    from fedgen.rounds import Server, serve

    dispatched = []

    def observe(record):
        if record["kind"] == "dispatch":
            dispatched.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        place = run.create(Path(folder), "benchmark", {"experiment.yaml": "", "environment.json": "{}"})
        facts = {"base": "", "data": "", "description": ""}
        serve(Server(experiment, place, transport, workers, {}, facts, observe))
    return dispatched[num_rounds] - dispatched[0]
