"""What a device tells Flower, and what it will not start with. What it does then is in tests/system/test_fleet.py."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from fedgen.deployment.bundle import Bundle
from fedgen.deployment.children import Child, Children, Ended
from fedgen.deployment.client import Ways, _Desk, join, node_config
from fedgen.deployment.provision import provision
from fedgen.errors import ConfigError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    home = provision(tmp_path_factory.mktemp("a") / "home", "127.0.0.1:8443", ["kitchen"]).home
    return Bundle.open(home.bundle("kitchen"))


@pytest.mark.parametrize("name", ["data", "two words", "a=b", "x.toml", "küche", "#1", "[a]", "$HOME", "a,b"])
def test_flower_reads_what_is_written(bundle, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    config = node_config(bundle, tmp_path, Ways(data=folder, turn_limit_s=60))
    assert parse_config_args([config]) == {
        "client": "kitchen",
        "socket": f"{tmp_path}/worker.sock",
        "data": f"path={folder}",
        "turn_limit_s": 60,
    }


def test_without_data_the_experiment_says_where(bundle, tmp_path):
    assert "data" not in parse_config_args([node_config(bundle, tmp_path, Ways())])


@pytest.mark.parametrize("name", ['a"b', "a'b", "a\\b", "a\nb"])
def test_a_path_that_flower_cannot_read_is_refused(bundle, tmp_path, name):
    with pytest.raises(ConfigError, match="use another folder"):
        node_config(bundle, tmp_path, Ways(data=tmp_path / name))


def test_a_path_too_long_for_a_socket_is_refused(bundle, tmp_path):
    with pytest.raises(ConfigError, match=r"too long for a socket.*--state"):
        node_config(bundle, tmp_path / ("a" * 100), Ways())


@pytest.mark.parametrize("wrong", [{"turn_limit_s": 0}, {"threads": 0}])
def test_ways_are_checked(wrong):
    with pytest.raises(ValueError, match="expected at least 1"):
        Ways(**wrong)


def test_data_that_is_not_there_is_said_before_anything_starts(bundle, tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        join(bundle.path, Ways(data=tmp_path / "x", state=tmp_path / "state"))
    assert not (tmp_path / "state").exists()


def test_what_the_owner_of_the_device_can_mend_is_said_once(bundle, tmp_path):
    (tmp_path / "logs").mkdir()
    said = []
    log = logging.Logger("test")
    log.addFilter(lambda record: said.append(record.getMessage()))
    desk = _Desk(bundle, tmp_path, b"", log, "", 1)
    children = Children(tmp_path / "logs", log)
    trace = 'Traceback (most recent call last):\n  File "a.py", line 1\nfedgen.errors.ModelError: there is no model X\n'
    for _ in range(2):
        with open(tmp_path / "logs" / "worker.log", "a") as worker:
            worker.write(f"message answered with no_model\n{trace}")
        desk.step(children)
    with open(tmp_path / "logs" / "worker.log", "a") as worker:
        worker.write("KeyError: fedgen.errors.ModelError: no\n")
    desk.step(children)
    advice = f"fedgen doctor {bundle.path} says what to do"
    assert said == [f"the worker cannot do what it is asked: there is no model X. {advice}"]
    with open(tmp_path / "logs" / "worker.log", "a") as worker:
        worker.write("fedgen.errors.ConfigError: there are two faults:\n  a: wrong\n  b: wrong as well\nnext line\n")
    desk.step(children)
    assert said[1:] == [
        f"the worker cannot do what it is asked: there are two faults: a: wrong b: wrong as well. {advice}"
    ]


@pytest.mark.parametrize(
    ("status", "output", "said"),
    [
        (-9, "", "memory ran out"),
        (-4, "", "instructions that this processor does not have"),
        (1, "ModuleNotFoundError: No module named 'torch'", "library is missing"),
    ],
)
def test_a_worker_that_ends_is_explained(bundle, tmp_path, status, output, said):
    explain = _Desk(bundle, tmp_path, b"", logging.Logger("test"), "", 1).worker().explain
    assert said in explain(Ended("worker", status, output))
    assert "fedgen doctor" in explain(Ended("worker", status, output))
    assert explain(Ended("worker", 1, "")) is None


def test_a_device_that_still_counts_as_online_is_explained(bundle, tmp_path):
    explain = _Desk(bundle, tmp_path, b"", logging.Logger("test"), "", 1).supernode().explain
    assert "as after a power cut" in explain(Ended("supernode", 1, "[code: 2004] Failed to activate SuperNode."))
    assert explain(Ended("supernode", 0, "")) is None


@pytest.mark.parametrize("words", ["ERROR : SSL/TLS handshake error detected.", "ERROR : Failed to send message a1: x"])
def test_a_supernode_that_has_given_up_is_started_anew(bundle, tmp_path, words):
    (tmp_path / "logs").mkdir()
    said = []
    log = logging.Logger("test")
    log.addFilter(lambda record: said.append(record.getMessage()))
    desk, children = _Desk(bundle, tmp_path, b"", log, "", 1), Children(tmp_path / "logs", log)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    children.keep(Child("supernode", lambda: command, dict(os.environ)))
    try:
        desk.step(children)
        before = children.pids()["supernode"]
        with open(tmp_path / "logs" / "supernode.log", "a") as file:
            file.write(f"INFO : Sending: train message\n{words}\n")
        end = time.monotonic() + 20
        while children.pids().get("supernode", before) == before:
            assert time.monotonic() < end
            desk.step(children)
            time.sleep(0.02)
        assert "broke off in a way that Flower does not get over" in said[0]
        assert said[1].startswith("supernode ended (killed by signal 15)")
    finally:
        children.close()


def test_the_process_that_watches_is_light():
    probe = (
        "import sys, fedgen.cli.main, fedgen.cli.deploy, fedgen.deployment.client, fedgen.deployment.server\n"
        "print({'torch', 'numpy', 'flwr', 'hydra', 'omegaconf', 'rich', 'httpx', 'uvicorn'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
