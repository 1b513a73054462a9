"""What the process that waits for a run under Flower reads, writes and says."""

import ast
import importlib.util
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgen import run as folders
from fedgen.errors import RunError
from fedgen.federation import run_config, shield
from fedgen.federation.shield import Control, check_version
from fedgen.federation.simulation import Simulation
from fedgen.federation.submission import BUNDLE, Submission, Tail, is_over, toml_of
from fedgen.federation.superlink import Superlink
from tests.unit.federation.test_local import QUICK


def test_a_tail_reads_whole_lines_that_are_added_and_passes_over_damaged_ones(tmp_path):
    path = tmp_path / "observed.jsonl"
    path.write_text('{"kind": "start", "name": "before"}\n{"kind": "round"}\n')
    tail, again = Tail(path), Tail(path, again=True)
    with path.open("a") as file:
        file.write('{"kind": "a"}\nnonsense\n[1]\n{"kind": "b"}\n{"kind": ')
    assert [record["kind"] for record in tail.new()] == ["a", "b"]
    assert list(tail.new()) == []
    with path.open("a") as file:
        file.write('"c"}\n')
    assert [record["kind"] for record in tail.new()] == ["c"]
    assert [record["kind"] for record in again.new()] == ["start", "round", "a", "b", "c"]


def test_a_tail_makes_its_file_and_says_when_it_cannot(tmp_path):
    assert list(Tail(tmp_path / "observed.jsonl").new()) == []
    with pytest.raises(RunError):
        Tail(tmp_path / "gone" / "observed.jsonl")


def test_the_bundle_declares_every_key_and_names_apps_as_flower_looks_for_them():
    keys = "\n".join(f'"{key}" = ""' for key in run_config.KEYS)
    app = tomllib.loads(BUNDLE.format(version="1", keys=keys))["tool"]["flwr"]["app"]
    assert app["config"] == dict.fromkeys(run_config.KEYS, "")
    for reference in app["components"].values():
        module, _, name = reference.partition(":")
        tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text())
        assert any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name for node in tree.body)


@given(st.dictionaries(st.sampled_from(run_config.KEYS), st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_text_comes_through_toml(texts):
    assert tomllib.loads(toml_of(texts)) == texts


def submission(tmp_path, told):
    run = folders.create(tmp_path, "r", {"experiment.yaml": "x: 1\n", "environment.json": "{}"})
    home = tmp_path / "flwr"
    home.mkdir()
    # Nobody listens there.
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "fedgen"\n[superlink.fedgen]\naddress = "127.0.0.1:9"\ninsecure = true\n'
    )
    return Submission(Control(home, "fedgen"), run, told.append, ["a"], {})


def test_what_the_run_says_is_handed_on_until_it_is_over(tmp_path):
    told = []
    waiting = submission(tmp_path, told)
    tail = Tail(waiting.folder.observed_file)
    waiting.folder.observed_file.write_text('{"kind": "round", "round": 1}\n{"kind": "over"}\n{"kind": "later"}\n')
    waiting.follow("1", tail, lambda: None)
    assert told == [{"kind": "round", "round": 1}]


def test_what_fails_in_the_servers_part_is_an_error_here(tmp_path):
    waiting = submission(tmp_path, [])
    tail = Tail(waiting.folder.observed_file)
    waiting.folder.observed_file.write_text('{"kind": "failed", "message": "no data; put some there"}\n')
    with pytest.raises(RunError, match=r"^no data; put some there$"):
        waiting.follow("1", tail, lambda: None)


def test_a_server_that_is_not_there_is_an_error_that_says_what_to_start(tmp_path):
    waiting = submission(tmp_path, [])
    (tmp_path / "fleet.json").write_text('{"devices": {"a": {}}}')
    with pytest.raises(RunError, match=r"flwr run failed: .*\n.*fedgen server"):
        Superlink(home=tmp_path).run(QUICK, waiting.folder, lambda record: None)


def test_flower_that_is_not_there_is_an_error_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(shield, "TIMEOUT_S", 60.0)
    with pytest.raises(RunError, match="flwr ls failed"):
        submission(tmp_path, []).control.status("1")


@pytest.mark.parametrize(("found", "right"), [("1.40.9", False), ("1.41.0", True), ("1.42.3", True), ("1.43.0", False)])
def test_only_tested_versions_of_flower_are_used(monkeypatch, found, right):
    monkeypatch.setattr(shield, "version", lambda name: found)
    if right:
        check_version()
    else:
        with pytest.raises(RunError, match=rf"{found}.*pip install 'flwr>=1\.41,<1\.43'"):
            check_version()


def test_a_run_that_is_over_starts_nothing(tmp_path):
    run = folders.create(tmp_path, "r", {"experiment.yaml": "x: 1\n", "environment.json": "{}"})
    assert not is_over(run)
    run.metrics_file.write_text('{"kind": "round", "round": 1}\n{"kind": "end", "round": 1}\n')
    assert is_over(run)
    for driver in (Simulation(), Superlink(home=tmp_path / "nowhere")):
        driver.run(QUICK, run, lambda record: None)
    assert not run.observed_file.exists()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "is no home of a server"),
        ({"fleet.json": "{"}, "is no home of a server"),
        ({"fleet.json": '{"devices": {}}'}, "names no device"),
    ],
)
def test_a_folder_that_is_no_home_is_refused(tmp_path, files, said):
    run = folders.create(tmp_path, "r", {"experiment.yaml": "x: 1\n", "environment.json": "{}"})
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(RunError, match=f"{said}.*fedgen provision|{said}"):
        Superlink(home=tmp_path).run(QUICK, run, lambda record: None)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"client_cpus": 0}, "client_cpus is 0"),
        ({"num_cpus": 1, "client_cpus": 2}, "num_cpus is 1"),
        ({"num_cpus": 1, "ray_address": "auto"}, "num_cpus is 1"),
        ({"client_gpus": -0.5}, "client_gpus is -0.5"),
        ({"quorum": 0.0}, "quorum is 0.0"),
        ({"deadline_s": -1.0}, "deadline_s is -1.0"),
    ],
)
def test_a_simulation_out_of_range_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        Simulation(**values)


def test_a_superlink_out_of_range_is_refused(tmp_path):
    with pytest.raises(ValueError, match="min_clients is 0"):
        Superlink(home=tmp_path, min_clients=0)


def test_the_size_of_a_simulation_is_as_flower_takes_it():
    size = Simulation(num_cpus=4, client_gpus=0.25)._size(3)
    assert size == {
        "num-supernodes": 3,
        "client-resources-num-cpus": 1,
        "client-resources-num-gpus": 0.25,
        "init-args-num-cpus": 4,
    }
