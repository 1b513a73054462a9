"""A whole deployment on loopback, by the commands that a user types: a server, two devices, one that was revoked."""

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedgen.ports import free_port

ROOT = Path(__file__).parents[2]
PATIENCE_S = 90


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}


def fedgen(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "fedgen", *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def until(condition, what):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.3)
    raise AssertionError(f"never came: {what()}")


class Deployment:
    """The processes of one deployment, each with what it said on stderr in a file."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.home = folder / "home"
        self.running = {}

    def start(self, name, *arguments):
        with open(self.folder / f"{name}.err", "ab") as said:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "fedgen", *map(str, arguments)], env=environment(), stdout=said, stderr=said
            )

    def said(self, name):
        return (self.folder / f"{name}.err").read_text()

    def everything(self):
        """All processes of the deployment, found by what they were given to live on."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("FLWR_HOME", "").startswith(str(self.folder)):
                    found.append(process)
        return found

    def online(self):
        done = subprocess.run(
            [Path(sys.executable).parent / "flwr", "supernode", "list", "fedgen", "--format", "json"],
            env=environment(FLWR_HOME=str(self.home / "flwr"), FLWR_DISABLE_UPDATE_CHECK="1"),
            capture_output=True,
            text=True,
            check=False,
        )
        with contextlib.suppress(ValueError, KeyError):
            nodes = json.loads(done.stdout)["nodes"]
            return {node["node-id"] for node in nodes if node["status"] == "online"}
        return set()

    def stop(self):
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        try:
            return {name: process.wait(40) for name, process in self.running.items()}
        finally:
            for process in (*self.running.values(), *self.everything()):
                with contextlib.suppress(psutil.Error, OSError):
                    process.kill()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    # Short, for the sake of the worker's socket.
    there = Deployment(tmp_path_factory.mktemp("f"))
    names = ("kitchen", "attic", "lost")
    made = fedgen(
        "provision", there.home, "--server", f"127.0.0.1:{there.port}", *(f"--device={name}" for name in names)
    )
    assert made.returncode == 0, made.stderr
    assert all(f"{name}.tar" in made.stdout for name in names)
    for name in names:
        shutil.unpack_archive(there.home / "bundles" / f"{name}.tar", there.folder, filter="data")
    assert fedgen("provision", there.home, "--revoke", "lost").returncode == 0
    for name in names:
        there.start(name, "client", there.folder / name)
    there.start("server", "server", there.home)
    yield there
    there.stop()


def ask(there, target):
    context = ssl.create_default_context(cafile=there.home / "ca.crt")
    with (
        socket.create_connection(("127.0.0.1", there.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        secure.sendall(f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        return int(secure.recv(4096).split()[1])


@pytest.mark.slow
def test_devices_come_online_and_what_is_killed_comes_back_and_nothing_is_left_behind(deployment):
    online = until(
        lambda: len(nodes := deployment.online()) == 2 and nodes,
        lambda: [deployment.said(name) for name in deployment.running],
    )
    registered = json.loads((deployment.home / "state" / "nodes.json").read_text())["nodes"]
    assert {registered[name]["node_id"] for name in ("kitchen", "attic")} == online
    assert set(registered) == {"kitchen", "attic"}

    # What the network can reach.
    for target in ("/v1/control/list-runs", "/v1/control/list-nodes", "/v1/runtime/acquire-task", "/docs"):
        assert ask(deployment, target) == 404
    assert ask(deployment, "/v1/fleet/pull-messages") == 401

    # A device that was waiting before there was a server, and one whose key is not known.
    assert "refuses connections. Is `fedgen server` running there? Trying again" in deployment.said("kitchen")
    assert "is reached" in deployment.said("kitchen")
    until(lambda: "online as node" in deployment.said("kitchen"), lambda: deployment.said("kitchen"))
    until(lambda: "does not know this device's key" in deployment.said("lost"), lambda: deployment.said("lost"))
    assert not (deployment.folder / "lost" / "state" / "logs" / "supernode.log").exists()

    # A second server or client of the same folder is refused, and says why.
    second = fedgen("server", deployment.home)
    assert (second.returncode, "is running already" in second.stderr) == (2, True)
    assert fedgen("client", deployment.folder / "kitchen").returncode == 2

    # The SuperLink is killed and comes back; devices stay registered.
    running = json.loads((deployment.home / "run.json").read_text())
    assert running["pid"] == deployment.running["server"].pid
    assert set(running["children"]) == {"superlink", "superexec", "proxy"}
    os.kill(running["children"]["superlink"], signal.SIGKILL)
    until(
        lambda: "superlink ended (killed by signal 9)" in deployment.said("server"), lambda: deployment.said("server")
    )
    until(lambda: deployment.online() == online, lambda: deployment.said("server"))

    # A registration that a crash kept from being noted is found again; a device that is revoked is out.
    nodes = deployment.home / "state" / "nodes.json"
    noted = json.loads(nodes.read_text())
    del noted["nodes"]["kitchen"]
    nodes.write_text(json.dumps(noted))
    assert fedgen("provision", deployment.home, "--revoke", "attic").returncode == 0
    until(lambda: {*json.loads(nodes.read_text())["nodes"]} == {"kitchen"}, lambda: deployment.said("server"))
    assert json.loads(nodes.read_text())["nodes"]["kitchen"] == registered["kitchen"]
    until(lambda: "does not know this device's key" in deployment.said("attic"), lambda: deployment.said("attic"))
    until(lambda: deployment.online() == {registered["kitchen"]["node_id"]}, lambda: deployment.said("server"))

    # SIGTERM ends everything.
    assert len(deployment.everything()) >= 5
    assert deployment.stop() == dict.fromkeys(deployment.running, 0)
    assert deployment.everything() == []
    assert not (deployment.home / "run.json").exists()
    for name in deployment.running:
        assert deployment.said(name).rstrip().endswith("stopped")


@pytest.mark.slow
def test_a_port_in_use_and_a_missing_authority_get_one_message(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        home = tmp_path / "home"
        assert fedgen("provision", home, "--server", f"127.0.0.1:{taken.getsockname()[1]}").returncode == 0
        done = fedgen("server", home)
    assert done.returncode == 2
    assert done.stderr.startswith("fedgen: cannot listen at 127.0.0.1:")
    assert "Address already in use" in done.stderr
    (home / "ca.crt").unlink()
    done = fedgen("server", home)
    assert done.returncode == 2
    assert done.stderr.startswith(f"fedgen: there is no {home}/ca.crt")
    assert fedgen("server", tmp_path).stderr.startswith(f"fedgen: {tmp_path} is no home")
    assert fedgen("client", home).stderr.startswith(f"fedgen: {home} is no bundle")
