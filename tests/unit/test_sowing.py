"""Federations that begin with a seed, on the tiny model and a toy language that homes speak and a task describes."""

import dataclasses
import html
import random
from pathlib import Path

import pytest
import torch
import yaml

from fedgen import checkpoint, report, seeds
from fedgen.adapter.frozen_a import FrozenA
from fedgen.aggregation.masked_mean import MaskedMean
from fedgen.cli.main import main
from fedgen.cli.progress_state import Seen
from fedgen.data.synthetic import SIGNS, THINGS
from fedgen.extraction.rolling import Rolling
from fedgen.federation.local import Local
from fedgen.fleet.levels import Levels
from fedgen.journal import read
from fedgen.model.source import cache_folder
from fedgen.seeding import Seeding
from fedgen.synthesis import synthetic_set
from fedgen.synthesis.synthetic_set import SyntheticSet
from tests.unit.federation.test_local import carry_out, final
from tests.unit.sown import TUNING, Talk, seeded, task_of


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """One for all tests here: a set is never made twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return task_of(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def told(task, tmp_path_factory):
    """A run that began with a good seed, and all that was told of it."""
    seen = []
    run = carry_out(keeping_all(seeded(task)), tmp_path_factory.mktemp("runs"), seen.append)
    return run, seen


def keeping_all(experiment):
    """With one round, so that the checkpoint before it is still there."""
    return dataclasses.replace(experiment, num_rounds=1)


def line_of(run):
    return next(line for line in read(run.metrics_file) if line["kind"] == "seed")


def state_of(run, number):
    found = next(iter(run.checkpoints.glob(f"round-{number:04d}")))
    return checkpoint._unpack(found / "state.safetensors")


def initial(experiment):
    [learner] = experiment.learners(experiment.base(), 1)
    return experiment.initial_state(learner)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_good_seed_is_what_the_federation_begins_with(told, task):
    run, _ = told
    line, start = line_of(run), state_of(run, 0)
    assert line["accepted"]
    assert line["reasons"] == []
    assert 200 < line["synthetic"]["kept"] <= 240
    assert line["public"]["after"]["loss"] < line["public"]["before"]["loss"] - 1
    assert line["public"]["after"]["contrast"] > line["public"]["before"]["contrast"] + 0.05
    assert line["clients"]["num_clients"] == 4
    assert line["clients"]["after"] < line["clients"]["before"] - 1
    assert not same(start, initial(seeded(task)))
    # What was measured before round 1 is the seeded state.
    [first, *_] = [other for other in read(run.metrics_file) if other["kind"] == "round"]
    assert first["evaluation"]["new_utterances"]["loss"] < line["evaluation"]["before"]["new_utterances"]["loss"] - 1


def test_the_state_that_is_kept_is_the_one_with_the_lowest_held_out_loss(told):
    tuning = line_of(told[0])["tuning"]
    lowest = min(tuning["losses"], key=lambda row: row["held_out"])
    assert tuning["turn"] == lowest["turn"] > 0
    assert tuning["num_tokens"] > 0


def test_the_number_of_workers_changes_no_bit(told, task, tmp_path):
    experiment = dataclasses.replace(keeping_all(seeded(task)), federation=Local(num_workers=1))
    again = carry_out(experiment, tmp_path)
    assert final(again).read_bytes() == final(told[0]).read_bytes()


def test_another_seed_writes_other_examples(told, task, tmp_path):
    other = carry_out(dataclasses.replace(keeping_all(seeded(task)), seed=1), tmp_path)
    assert line_of(other)["synthetic"]["digest"] != line_of(told[0])["synthetic"]["digest"]


def test_shuffled_labels_are_refused_and_the_run_goes_on_without(task, tmp_path, monkeypatch):
    plain = SyntheticSet.examples

    def shuffled(self):
        examples = plain(self)
        answers = [example.completion for example in examples]
        random.Random(0).shuffle(answers)
        return tuple(dataclasses.replace(e, completion=a) for e, a in zip(examples, answers, strict=True))

    monkeypatch.setattr(SyntheticSet, "examples", shuffled)
    experiment = keeping_all(seeded(task, public_share=0.0))
    run = carry_out(experiment, tmp_path)
    line = line_of(run)
    # Such a seed lowers the loss: answers look right. That is not what it is refused for.
    assert line["public"]["after"]["loss"] < line["public"]["before"]["loss"]
    assert not line["accepted"]
    assert "its own prompt" in line["reasons"][0]
    assert "clients" not in line
    assert same(state_of(run, 0), initial(experiment))
    warnings = [other["text"] for other in read(run.metrics_file) if other["kind"] == "warning"]
    assert any("the federation starts without" in text for text in warnings)
    plainly = carry_out(dataclasses.replace(experiment, generator=None), tmp_path / "plain")
    assert final(run).read_bytes() == final(plainly).read_bytes()


def test_a_task_that_means_other_things_is_refused_by_the_clients(tmp_path):
    things, signs = {name: f"zzzz{name}zzzz" for name in THINGS}, {verb: f"zzzz{verb}zzzz" for verb in SIGNS}
    task = task_of(tmp_path, signs=signs, things=things)
    experiment = seeded(task, public_share=0.0, num_turns=4)
    run = carry_out(dataclasses.replace(experiment, num_rounds=1, data=Talk(num_public=0)), tmp_path)
    line = line_of(run)
    assert "public" not in line
    assert line["clients"]["num_clients"] == 4
    assert line["clients"]["after"] > line["clients"]["before"]
    assert not line["accepted"]
    assert "mean loss rose" in line["reasons"][0]
    assert same(state_of(run, 0), initial(experiment))


def test_with_nobody_to_ask_there_is_no_seed(task, tmp_path):
    experiment = dataclasses.replace(seeded(task, asks_clients=False, num_turns=1), data=Talk(num_public=0))
    line = line_of(carry_out(keeping_all(experiment), tmp_path))
    assert not line["accepted"]
    assert "nobody to ask" in line["reasons"][0]


def test_public_examples_alone_need_no_generator(task, tmp_path):
    line = line_of(carry_out(keeping_all(seeded(task, public_share=1.0)), tmp_path))
    assert line["synthetic"] is None
    # 24 of 48 are kept for the trial, and 3 of the others to stop by.
    assert line["num_examples"] == 21


@pytest.mark.parametrize("kind", ["drafting", "tuning", "asking", "dispatch"])
def test_a_run_that_is_killed_on_the_way_ends_with_the_same_bytes(task, tmp_path, kind):
    class Killed(Exception):
        pass

    def kill(record):
        if record["kind"] == kind:
            raise Killed

    experiment = seeded(task, healing_share=0.5, num_turns=2, check_every=1)
    whole = carry_out(experiment, tmp_path / "whole")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDGEN_CACHE", str(tmp_path / "cache"))
        with pytest.raises(Killed):
            carry_out(experiment, tmp_path / "killed", kill)
        [run] = (folder for folder in (tmp_path / "killed").iterdir())
        experiment.federation.run(experiment, type(whole)(run), seen.append)
    assert final(type(whole)(run)).read_bytes() == final(whole).read_bytes()
    # Once it is in a checkpoint, a seed is not made again.
    assert any(record["kind"] == "tuning" for record in seen) == (kind != "dispatch")
    assert [line["kind"] for line in read(type(whole)(run).metrics_file)].count("seed") == 1


def test_healing_moves_the_state_towards_a_turn_on_synthetic_examples(task, tmp_path):
    experiment = keeping_all(seeded(task, healing_share=0.25))
    healed = carry_out(experiment, tmp_path)
    plain = carry_out(dataclasses.replace(experiment, seeding=seeded(task).seeding), tmp_path)
    assert same(state_of(healed, 0), state_of(plain, 0))
    digest = line_of(plain)["synthetic"]["digest"]
    examples = synthetic_set.find(cache_folder() / "synthetic" / digest[:16]).examples()
    [learner] = experiment.learners(experiment.base(), 1)
    state = state_of(plain, 1)
    learner.load(state)
    TUNING.train(learner, learner.encode(examples), 0.0, seeds.derive(experiment.seed, "healing", 1))
    turned = learner.state()
    for name, tensor in state_of(healed, 1).items():
        assert torch.allclose(tensor, state[name] + 0.25 * (turned[name] - state[name]), atol=1e-6), name
        assert not torch.equal(tensor, state[name])


def test_parts_of_a_seeded_state_are_sent(task, tmp_path):
    experiment = dataclasses.replace(
        keeping_all(seeded(task)), extraction=Rolling(), fleet=Levels(), aggregation=MaskedMean()
    )
    run = carry_out(experiment, tmp_path)
    line = line_of(run)
    assert line["accepted"]
    assert line["clients"]["num_clients"] == 4
    widths = {other["width"] for other in read(run.metrics_file) if other["kind"] == "client"}
    assert min(widths) < 1
    whole = sum(tensor.nbytes for tensor in state_of(run, 0).values())
    assert line["clients"]["bytes_down"] < 8 * whole


def test_an_adapter_with_fixed_factors_is_seeded(task, tmp_path):
    experiment = dataclasses.replace(keeping_all(seeded(task)), adapter=FrozenA(rank=64, alpha=64.0))
    line = line_of(carry_out(experiment, tmp_path))
    assert line["tuning"]["losses"][-1]["held_out"] < line["tuning"]["losses"][0]["held_out"]


def test_a_label_that_ends_empty_stops_before_training(tmp_path, capsys):
    file = tmp_path / "toy.yaml"
    described = yaml.safe_load(Path(task_of(tmp_path)).read_text())
    described["labels"]["boost"]["forms"][0]["texts"] = ["please do " * 12 + "{thing} {number}"]
    file.write_text(yaml.safe_dump(described))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDGEN_RUNS", str(tmp_path / "runs"))
        words = ["recipe=tiny", "generator=grammar", f"seeding.task={file}", "seeding.num_examples=40"]
        assert main(["train", *words]) == 2
    said = capsys.readouterr().err
    assert "boost" in said
    assert "none kept" in said
    assert not list((tmp_path / "runs").glob("*-tiny"))


def test_the_report_shows_filters_examples_and_the_trial(told):
    run, _ = told
    page = report.write(run.path).read_text()
    summary = report.summarise(run.path)["seeding"]
    line = line_of(run)
    assert summary["accepted"]
    assert summary["num_kept"] == line["synthetic"]["kept"]
    assert [row["filter"] for row in summary["filters"]] == [row["filter"] for row in line["synthetic"]["filters"]]
    for word in ("<h2>Seed</h2>", "duplicates", line["synthetic"]["kept_examples"][0]["answer"], "nobody's data"):
        assert word in html.unescape(page)
    assert summary["quality"]["metric"] == "exact_match"


def test_the_terminal_is_told_of_every_step(told):
    _, seen = told
    display = Seen()
    lines = [display.note(record) for record in seen]
    said = [line for line in lines if line.startswith("seed: ")]
    assert any("on held-out examples" in line for line in said)
    assert any("asking 4 clients" in line for line in said)
    assert any(line.startswith("seed: accepted") for line in said)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_examples": 0},
        {"surplus": 0.5},
        {"public_share": 1.5},
        {"healing_share": -0.1},
        {"margin": -1.0},
        {"healing_share": 0.1, "public_share": 1.0},
    ],
)
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Seeding(TUNING, **fields)


def test_a_generator_needs_to_be_told_what_for(task):
    with pytest.raises(ValueError, match="seeding is null"):
        dataclasses.replace(seeded(task), seeding=None)
