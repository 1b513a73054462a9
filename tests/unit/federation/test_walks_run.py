"""Whole runs of zeroth-order clients: eight bytes a step give the very state that all entries give."""

import dataclasses

import pytest
import torch

from fedgen import run as folders
from fedgen.adapter.frozen_a import FrozenA
from fedgen.adapter.full import Full as FullAdapter
from fedgen.adapter.lora import Lora
from fedgen.aggregation.masked_mean import MaskedMean
from fedgen.client.first_order import FirstOrder
from fedgen.client.zeroth_order import ZerothOrder
from fedgen.data.synthetic import Synthetic
from fedgen.errors import RunError
from fedgen.evaluation.exact_match import ExactMatch
from fedgen.experiment import Experiment
from fedgen.export.merged import Merged
from fedgen.extraction.depth import Depth
from fedgen.extraction.full import Full as FullExtraction
from fedgen.extraction.ordered import Ordered
from fedgen.extraction.rolling import Rolling
from fedgen.federation.course import finished
from fedgen.federation.local import Local
from fedgen.fleet.levels import Levels
from fedgen.fleet.uniform import Uniform
from fedgen.journal import read
from fedgen.model.tiny import Tiny
from fedgen.partition.by_owner import ByOwner
from fedgen.selection.all import All
from fedgen.wire.dense import Dense
from fedgen.wire.seeds import Seeds

NUM_STEPS = 3
SMALL = Synthetic(num_owners=3, num_train=8, num_eval=8)


@dataclasses.dataclass(frozen=True)
class Unmeasured:
    """Examples without any to be measured on, which is most of the time of so small a run."""

    def load(self, seed):
        return dataclasses.replace(SMALL.load(seed), evaluation={})

    def prompt(self, text):
        return SMALL.prompt(text)


WALKS = Experiment(
    name="walks",
    num_rounds=2,
    fleet=Uniform(),
    data=Unmeasured(),
    partition=ByOwner(),
    model=Tiny(hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=2),
    adapter=Lora(rank=2),
    extraction=FullExtraction(),
    client=ZerothOrder(num_steps=NUM_STEPS, num_perturbations=2),
    selection=All(),
    wire=Seeds(),
    aggregation=MaskedMean(momentum=0.5),
    evaluation=ExactMatch(),
    export=Merged(),
    federation=Local(num_workers=2),
)


def carry_out(experiment, root):
    run = folders.create(root, experiment.name, {"experiment.yaml": "x: 1\n", "environment.json": "{}"})
    experiment.federation.run(experiment, run, lambda record: None)
    state = sorted(run.checkpoints.glob("round-*"))[-1] / "state.safetensors"
    return run, state.read_bytes(), [line for line in read(run.metrics_file) if line["kind"] == "client"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter": Lora(rank=2, alternate=True)},
        {"adapter": FrozenA(rank=2)},
        {"adapter": FullAdapter(), "client": ZerothOrder(num_steps=NUM_STEPS, learning_rate=1e-4, num_perturbations=2)},
        {"extraction": Rolling(), "fleet": Levels(widths=(1.0, 0.5))},
        {"extraction": Rolling(axes=("ffn", "rank")), "fleet": Levels(widths=(0.5,))},
        {"extraction": Rolling(), "fleet": Levels(widths=(1.0, 0.5)), "extraction_mode": "window"},
        {"extraction": Ordered(), "fleet": Levels(widths=(1.0, 0.4)), "extraction_mode": "window"},
        {"extraction": Depth(num_first=1, num_last=0), "fleet": Levels(widths=(0.5,))},
    ],
    ids=["whole", "alternate", "frozen_a", "full", "cut", "rank", "window", "ordered-window", "depth"],
)
def test_seeds_and_dense_end_in_the_same_bytes(tmp_path, changes):
    experiment = dataclasses.replace(WALKS, **changes)
    _, short, walked = carry_out(dataclasses.replace(experiment, name="seeds"), tmp_path)
    _, long, dense = carry_out(dataclasses.replace(experiment, name="dense", wire=Dense()), tmp_path)
    assert short == long
    assert [line["refused"] for line in walked] == [None] * 6
    assert [line["loss"] for line in walked] == [line["loss"] for line in dense]
    assert {line["bytes_up"] for line in walked} == {8 * 2 * NUM_STEPS}
    assert min(line["bytes_up"] for line in dense) > 10 * 8 * 2 * NUM_STEPS
    assert [line["bytes_down"] for line in walked] == [line["bytes_down"] for line in dense]
    assert all(line["seconds"]["wire"] > 0 for line in walked)


def test_the_run_moves_the_state(tmp_path):
    run, _, lines = carry_out(WALKS, tmp_path)
    learner, newest = finished(WALKS, run)
    start = WALKS.initial_state(learner)
    assert all(not torch.equal(newest.state[name], tensor) for name, tensor in start.items())
    # A copy of the factors and the change: twice four bytes for every entry.
    assert {line["train_bytes"] for line in lines} == {8 * sum(tensor.numel() for tensor in start.values())}


def test_changes_of_gradients_go_dense(tmp_path):
    experiment = dataclasses.replace(WALKS, client=FirstOrder(num_steps=2))
    _, one, lines = carry_out(dataclasses.replace(experiment, name="seeds"), tmp_path)
    _, other, dense = carry_out(dataclasses.replace(experiment, name="dense", wire=Dense()), tmp_path)
    assert one == other
    assert [line["bytes_up"] for line in lines] == [line["bytes_up"] for line in dense]


@dataclasses.dataclass(frozen=True)
class Careless:
    """A wire whose device half allows more steps than its server half."""

    def encode(self, state, plan=None, walk=None):
        return Seeds(max_steps=99).encode(state, plan, walk)

    def decode(self, payload, shapes=None):
        return Seeds(max_steps=8).decode(payload, shapes)


def test_a_walk_that_is_too_long_is_refused_and_counted(tmp_path):
    experiment = dataclasses.replace(WALKS, client=ZerothOrder(num_steps=9), wire=Careless(), num_rounds=9)
    with pytest.raises(RunError, match=r"3 rounds in a row \(malformed\)"):
        carry_out(experiment, tmp_path)


def test_widths_that_change_from_loss_to_loss_are_refused_when_the_experiment_is_built():
    with pytest.raises(ValueError, match=r"client=zeroth_order compares losses.*extraction=ordered.*window"):
        dataclasses.replace(WALKS, extraction=Ordered())
    dataclasses.replace(WALKS, extraction=Ordered(), client=FirstOrder())
