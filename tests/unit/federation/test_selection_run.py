"""Whole runs in which clients train on a share of their examples."""

import dataclasses

import pytest

from fedgen import run as folders
from fedgen.adapter.lora import Lora
from fedgen.aggregation.masked_mean import MaskedMean
from fedgen.client.first_order import FirstOrder
from fedgen.data.synthetic import Synthetic
from fedgen.evaluation.perplexity import Perplexity as PerplexityEvaluation
from fedgen.experiment import Experiment
from fedgen.export.merged import Merged
from fedgen.extraction.full import Full
from fedgen.federation.local import Local
from fedgen.fleet.uniform import Uniform
from fedgen.journal import read
from fedgen.model.tiny import Tiny
from fedgen.partition.by_owner import ByOwner
from fedgen.selection.all import All
from fedgen.selection.perplexity import Perplexity
from fedgen.wire.dense import Dense

CHOOSY = Experiment(
    name="choosy",
    num_rounds=3,
    num_evaluated=8,
    num_evaluated_per_round=8,
    cohort_size=2,
    fleet=Uniform(),
    data=Synthetic(num_owners=3, num_train=10, num_eval=8),
    partition=ByOwner(),
    model=Tiny(hidden_size=16, num_heads=2, num_kv_heads=1),
    adapter=Lora(rank=2),
    extraction=Full(),
    client=FirstOrder(learning_rate=5e-2, num_steps=4, batch_size=4),
    selection=Perplexity(fraction=0.3),
    wire=Dense(),
    aggregation=MaskedMean(),
    evaluation=PerplexityEvaluation(),
    export=Merged(),
    federation=Local(num_workers=1),
)


def carry_out(root, observe=lambda record: None, **fields):
    experiment = dataclasses.replace(CHOOSY, **fields)
    run = folders.create(root, experiment.name, {"experiment.yaml": "x: 1\n", "environment.json": "{}"})
    experiment.federation.run(experiment, run, observe)
    return run


def result(run):
    """The bytes of the last state, and what the journal says of the clients but for their seconds."""
    told = ("round", "client", "loss", "num_examples", "num_selected", "num_unscored", "num_left_out", "refused")
    lines = [[line[name] for name in told] for line in read(run.metrics_file) if line["kind"] == "client"]
    return (run.checkpoints / "round-0003" / "state.safetensors").read_bytes(), lines


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return carry_out(tmp_path_factory.mktemp("unbroken"))


def test_a_line_says_how_many_were_kept_and_how_long_choosing_took(unbroken):
    lines = [line for line in read(unbroken.metrics_file) if line["kind"] == "client"]
    assert len(lines) == 6
    # 3 of 10, or one of each class if there are more of these.
    assert all(3 <= line["num_selected"] < 10 for line in lines)
    for line in lines:
        assert line["num_examples"] == line["num_selected"]
        assert (line["num_unscored"], line["refused"]) == (0, None)
        assert 0 < line["seconds_select"] < line["seconds"]["compute"]


def test_it_makes_a_difference_and_all_is_as_before(tmp_path, unbroken):
    state, lines = result(carry_out(tmp_path, selection=All()))
    assert state != result(unbroken)[0]
    assert {line[4] for line in lines} == {10}


def test_the_number_of_workers_changes_no_bit(tmp_path, unbroken):
    assert result(carry_out(tmp_path, federation=Local(num_workers=2))) == result(unbroken)


@pytest.mark.parametrize(("at", "round"), [("client", 1), ("dispatch", 2), ("round", 2), ("dispatch", 3)])
def test_a_run_that_dies_anywhere_scores_again_and_ends_with_the_same_bytes(tmp_path, unbroken, at, round):
    class Death(BaseException):
        pass

    def dying(record):
        if (record["kind"], record["round"]) == (at, round):
            raise Death

    with pytest.raises(Death):
        carry_out(tmp_path, dying)
    (path,) = tmp_path.glob("*choosy")
    run = folders.open_run(path)
    CHOOSY.federation.run(CHOOSY, run, lambda record: None)
    assert result(run) == result(unbroken)
