"""The plain loop that fedgen is timed against does the same training."""

import sys
from pathlib import Path

import torch

from fedgen import run as folders
from fedgen.cli.train import compose
from fedgen.config.check import build
from fedgen.federation.course import finished, shards_of

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


def test_both_end_with_the_same_weights(tmp_path):
    from plain_loop import plain_loop

    experiment = build(
        compose(
            [
                "model=tiny",
                "data=synthetic",
                "data.num_owners=4",
                "data.num_train=16",
                "cohort_size=3",
                "num_rounds=3",
                "client.num_steps=3",
                "aggregation=mean",
            ]
        )
    )
    run = folders.create(tmp_path, "r", {"experiment.yaml": "", "environment.json": "{}"})
    experiment.federation.run(experiment, run, lambda record: None)
    learner, newest = finished(experiment, run)
    start = experiment.initial_state(learner)
    shards = shards_of(experiment, experiment.data.load(0))
    encoded = {name: learner.encode(examples) for name, examples in shards.items()}
    cohorts = [experiment.cohort(sorted(shards), number) for number in (1, 2, 3)]
    plain = plain_loop(learner, encoded, start, experiment.client, experiment.seed, cohorts, 3)
    assert any(not torch.equal(plain[name], start[name]) for name in start)
    for name, tensor in newest.state.items():
        assert torch.allclose(tensor, plain[name], atol=1e-6, rtol=1e-4), name
