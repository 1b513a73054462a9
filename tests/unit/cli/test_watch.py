"""``fedgen status`` as it is called; the doctor and the page have tests of their own."""

import json

import pytest

from fedgen.cli.main import main
from fedgen.deployment.provision import provision


@pytest.fixture
def home(tmp_path):
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "observed.jsonl").write_text(
        '{"kind": "start", "name": "night", "round": 0, "num_rounds": 9, "clients": ["a"]}\n'
        '{"kind": "client", "round": 1, "client": "a", "refused": "died"}\n'
    )
    return provision(tmp_path / "home", "127.0.0.1:8443", ["a", "b"]).home


def test_a_table(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["status", str(home.path), "--runs", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr().out
    assert "night running, round 0 of 9" in shown
    assert "no server runs here" in shown
    assert "1 × died" in shown
    assert "a did not answer: died" in shown


def test_json(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FEDGEN_RUNS", str(tmp_path / "runs"))
    assert main(["status", str(home.path), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert state["run"]["folder"] == "one"
    assert [device["refused"] for device in state["devices"]] == [{"died": 1}, {}]


def test_a_run_by_name(home, tmp_path, capsys):
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "metrics.jsonl").write_text('{"kind": "end", "round": 3, "seconds": 5}\n')
    assert main(["status", str(home.path), "--run", str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["status"] == "finished"


@pytest.mark.parametrize("verb", ["status", "dashboard", "doctor"])
def test_a_place_that_is_none(verb, tmp_path, capsys):
    assert main([verb, str(tmp_path)]) == 2
    assert "fleet.json" in capsys.readouterr().err
