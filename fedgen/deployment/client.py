"""``fedgen client BUNDLE``: the resident worker that trains, and the SuperNode that fetches its work, kept running.

A device only ever calls; nobody can call it. Before the SuperNode is started the server is looked at, and so is it when
the SuperNode cannot reach it: what is wrong is said in a sentence, and tried again without end, since a device has
nobody who would start it again.
"""

import logging
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from fedgen import disk
from fedgen.deployment.bundle import Bundle
from fedgen.deployment.children import Child, Children, Ended
from fedgen.deployment.files import read_bytes
from fedgen.deployment.keys import pem, public_half
from fedgen.deployment.reach import look
from fedgen.deployment.station import only_one, teller, until_told
from fedgen.errors import ConfigError
from fedgen.federation.shield import quiet_environment

TURN_LIMIT_S = 3600
LONGEST_SOCKET = 100
"""Bytes; the system takes 107."""

LOOK_AGAIN_S = (2.0, 5.0, 10.0, 20.0, 30.0)
WATCH_S = 10.0
STILL_ONLINE = "code: 2004"
AWAY = "Connection attempt failed"


def join(path: Path, data: Path | None = None, state: Path | None = None, turn_limit_s: int = TURN_LIMIT_S) -> None:
    """Takes part in a server's runs until SIGTERM.

    Args:
        path: the bundle.
        data: folder of this device's examples; if not given, where the experiment says.
        state: folder for what lasts; `state` in the bundle if not given.
        turn_limit_s: a turn that takes longer is given up, and the worker started anew.

    Raises:
        FedgenError: the bundle is none or damaged, a folder is missing or unfit, or a client of it runs already.
    """
    bundle = Bundle.open(path)
    if data is not None and not data.is_dir():
        raise ConfigError(f"--data {data}: there is no such folder")
    key = pem(public_half(read_bytes(bundle.path / "node.key")).decode())
    state = (state or bundle.path / "state").resolve()
    for folder in (state, state / "logs", state / "flwr"):
        with disk.writing(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with only_one(state / "lock", f"a client with the state {state}"):
        log = teller(state / "logs" / "client.log")
        children = Children(state / "logs", log)
        desk = _Desk(bundle, state, key, log, node_config(bundle, state, data, turn_limit_s))
        for child in (desk.worker(), desk.supernode()):
            children.keep(child)
        log.info("%s takes part at %s", bundle.client, bundle.server)
        try:
            until_told(lambda: desk.step(children))
        finally:
            children.close()
            socket_path(state).unlink(missing_ok=True)
            log.info("stopped")


def socket_path(state: Path) -> Path:
    """Where the worker listens.

    Raises:
        ConfigError: the path is longer than a socket's may be.
    """
    path = state / "worker.sock"
    if len(str(path).encode()) > LONGEST_SOCKET:
        raise ConfigError(f"the path {path} is too long for a socket: name a folder with a shorter one, --state FOLDER")
    return path


def node_config(bundle: Bundle, state: Path, data: Path | None, turn_limit_s: int) -> str:
    """What the SuperNode hands to the part of a run that works on this device.

    Raises:
        ConfigError: a path has a character that Flower's syntax has no word for.
    """
    values = {"client": bundle.client, "socket": str(socket_path(state))}
    if data is not None:
        values["data"] = f"path={data.resolve()}"
    for name, value in values.items():
        if any(character in "\"'\\" or not character.isprintable() for character in value):
            raise ConfigError(
                f"the {name} {value!r} has a quote, a backslash or a line's end in it: use another folder"
            )
    return " ".join([*(f'{name}="{value}"' for name, value in values.items()), f"turn_limit_s={turn_limit_s}"])


@final
@dataclass
class _Desk:
    """What a running client knows."""

    bundle: Bundle
    state: Path
    key: bytes
    log: logging.Logger
    config: str
    said: str | None = None
    looks: int = 0
    due: float = field(default_factory=time.monotonic)
    read: int = 0

    def worker(self) -> Child:
        command = [sys.executable, "-m", "fedgen.federation.worker", str(socket_path(self.state))]
        return Child("worker", lambda: command, quiet_environment(self.state / "flwr"), explain=self._worker_ended)

    def supernode(self) -> Child:
        bundle = self.bundle

        def command() -> list[str]:
            return [
                *("flower-supernode", "--superlink", str(bundle.server)),
                *("--root-certificates", str(bundle.path / "ca.crt")),
                *("--auth-supernode-private-key", str(bundle.path / "node.key")),
                *("--host", "127.0.0.1", "--port", str(_free_port()), "--node-config", self.config),
            ]

        environment = quiet_environment(self.state / "flwr")
        return Child("supernode", command, environment, ready=self._reached, explain=self._node_ended)

    def step(self, children: Children) -> None:
        """Looks after the processes; says why, when a SuperNode that runs complains that it cannot reach the server."""
        children.step()
        if "supernode" not in children.pids() or time.monotonic() < self.due:
            return
        self.due = time.monotonic() + WATCH_S
        path = self.state / "logs" / "supernode.log"
        size = path.stat().st_size
        with open(path, "rb") as file:
            file.seek(self.read if self.read <= size else 0)
            new = file.read()
        self.read = size
        if AWAY.encode() in new or self.said is not None:
            self._reached()

    def _reached(self) -> float | None:
        """Looks at the server; how long to wait before looking again, or None if nothing is wrong."""
        problem = look(self.bundle.server, self.bundle.path / "ca.crt", self.key).problem
        if problem is not None and problem != self.said:
            self.log.warning("%s. Trying again", problem)
        elif problem is None and self.said is not None:
            self.log.info("%s is reached", self.bundle.server)
        self.looks = 0 if problem is None else self.looks + 1
        self.said = problem
        return None if problem is None else LOOK_AGAIN_S[min(self.looks, len(LOOK_AGAIN_S)) - 1]

    def _node_ended(self, ended: Ended) -> str | None:
        if STILL_ONLINE in ended.output:
            return (
                "The server still takes this device for online, as after a power cut or a kill: that lasts a minute. "
                "If it goes on, another device has a copy of this bundle"
            )
        return None

    def _worker_ended(self, ended: Ended) -> str | None:
        advice = f"fedgen doctor {self.bundle.path} says what to do"
        if ended.status == -9:
            return f"It was killed, most likely because memory ran out. {advice}"
        if ended.status == -4:
            return f"torch uses instructions that this processor does not have. {advice}"
        if "ModuleNotFoundError" in ended.output or "ImportError" in ended.output:
            return f"A library is missing. {advice}"
        if "ModelError" in ended.output:
            return f"The model cannot be used. {advice}"
        return None


def _free_port() -> int:
    """A port of this machine's that is free now; should another take it first, the SuperNode is started again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
