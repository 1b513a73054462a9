"""An experiment on its way through Flower's run config."""

import json
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from omegaconf import OmegaConf

from fedgen.cli.train import compose
from fedgen.config import check
from fedgen.data.jsonl import Jsonl
from fedgen.errors import ConfigError
from fedgen.federation import run_config


@pytest.fixture(scope="module")
def config():
    return compose(["recipe=tiny", "client.learning_rate=1e-5", "name=yes"])


def test_an_experiment_comes_out_as_it_went_in(config, tmp_path):
    written = run_config.write(config, tmp_path, ["b", "a"])
    read = run_config.read(written)
    assert read.experiment == check.build(config)
    assert read.folder == tmp_path
    assert read.clients == ("a", "b")
    assert run_config.read(run_config.write(config, tmp_path)).clients == ()


def test_a_run_config_is_what_flower_takes(config, tmp_path):
    written = run_config.write(config, tmp_path)
    assert set(written) == set(run_config.KEYS)
    assert all(type(value) is str for value in written.values())
    context = Context(1, 2, {}, RecordDict(), written)
    assert run_config.read(context.run_config).folder == tmp_path


def test_a_folder_is_told_from_the_root(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read = run_config.read(run_config.write(config, Path("runs")))
    assert (read.folder, read.place) == (tmp_path / "runs", tmp_path)


def test_the_file_of_a_run_says_the_same_without_omegaconf(config, tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(OmegaConf.to_yaml(config))
    assert check.build(run_config.resolved(file)) == check.build(config)


@pytest.mark.parametrize(("content", "message"), [("a: [", "cannot read"), ("- 1", "holds no mapping")])
def test_a_file_that_is_no_experiment_is_named(tmp_path, content, message):
    file = tmp_path / "experiment.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        run_config.resolved(file)
    with pytest.raises(ConfigError, match=r"cannot read .*gone\.yaml"):
        run_config.resolved(tmp_path / "gone.yaml")


def test_a_device_lays_its_own_data_over_those_of_the_experiment(config, tmp_path):
    there = {**config, "data": {"_target_": "fedgen.data.jsonl.Jsonl", "path": "nowhere", "eval_fraction": 0.5}}
    written = run_config.write(there, tmp_path)
    assert run_config.experiment_of(written, "path='/srv/my data'").data == Jsonl("/srv/my data", 0.5)
    assert run_config.experiment_of(written, "path=here eval_fraction=0.25").data == Jsonl("here", 0.25)
    assert run_config.experiment_of(written).data == Jsonl("nowhere", 0.5)


def test_a_device_with_data_of_its_own_says_that_the_experiment_wants_none(config, tmp_path):
    with pytest.raises(ConfigError, match=r"data of its own \(path=/data\)(.|\n)*data=jsonl") as caught:
        run_config.experiment_of(run_config.write(config, tmp_path), "path=/data")
    assert "data.path: Synthetic has no such key" in str(caught.value)
    wrong = {**config, "num_rounds": -1}
    with pytest.raises(ConfigError, match="num_rounds is -1") as caught:
        run_config.experiment_of(run_config.write(wrong, tmp_path), "path=/data")
    assert "of its own" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("path", "write key=value"),
        ("=x", "write key=value"),
        ("path='", "write key=value"),
        ("path=[", "write key=value"),
        ("_target_=fedgen.data.images.Images", "write key=value"),
        ("pth=x", "did you mean 'path'"),
        ("eval_fraction=7", "eval_fraction is 7"),
    ],
)
def test_data_of_a_device_that_cannot_be_are_refused(config, tmp_path, data, message):
    there = {**config, "data": {"_target_": "fedgen.data.jsonl.Jsonl", "path": "nowhere"}}
    with pytest.raises(ConfigError, match=message):
        run_config.experiment_of(run_config.write(there, tmp_path), data)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (run_config.EXPERIMENT, "", "is no JSON"),
        (run_config.EXPERIMENT, "[" * 100_000, "is no JSON"),
        (run_config.EXPERIMENT, "3", "holds no experiment"),
        (run_config.EXPERIMENT, '{"_target_": "os.system"}', "may not be named here"),
        (run_config.CLIENTS, '{"a": 1}', "no list of names"),
        (run_config.CLIENTS, "[1]", "no list of names"),
    ],
)
def test_a_run_config_that_is_none_is_refused(config, tmp_path, key, value, message):
    with pytest.raises(ConfigError, match=message):
        run_config.read({**run_config.write(config, tmp_path), key: value})


def test_a_run_that_fedgen_did_not_start_is_told_apart():
    with pytest.raises(ConfigError, match=r"no fedgen\.experiment; the run was not started by fedgen"):
        run_config.read({"lr": 0.1})


def test_what_json_cannot_say_is_refused(tmp_path):
    for value in (float("nan"), object()):
        with pytest.raises(ConfigError, match="cannot travel"):
            run_config.write({"a": value}, tmp_path)


def test_it_is_short_enough_for_a_command_line(config, tmp_path):
    assert len(json.dumps(run_config.write(config, tmp_path))) < 100_000
