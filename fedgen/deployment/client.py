"""``fedgen client BUNDLE``: the resident worker that trains, and the SuperNode that fetches its work, kept running.

A device only ever calls; nobody can call it. Before the SuperNode is started the server is looked at, and so is it when
the SuperNode cannot reach it: what is wrong is said in a sentence, and tried again without end, since a device has
nobody who would start it again.
"""

import contextlib
import logging
import os
import re
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
from fedgen.ports import free_port

LONGEST_SOCKET = 100
"""Bytes; the system takes 107."""

LOOK_AGAIN_S = (2.0, 5.0, 10.0, 20.0, 30.0)
WATCH_S = 10.0
STILL_ONLINE = "code: 2004"
FAULT = re.compile(
    rb"^fedgen\.errors\.(ModelError|DataError|ConfigError): ([^\r\n]{1,500}(?:\n  [^\r\n]{1,500}){0,8})", re.MULTILINE
)
"""How the worker's log ends the trace of an error that the owner of the device can mend, with the faults it lists."""

AWAY = b"Connection attempt failed"
BROKEN = (b"SSL/TLS handshake error detected", b"Failed to send message")
"""After these a SuperNode lives on and does nothing more: Flower tries again when a connection cannot be made or ends,
but not when TLS breaks off, as it does if something on the way takes connections and drops them."""


@final
@dataclass(frozen=True)
class Ways:
    """How a device takes part.

    Attributes:
        data: folder of this device's examples; None: where the experiment says.
        state: folder for logs and what lasts; None: `state` in the bundle.
        turn_limit_s: a turn that takes longer is given up, and the worker started anew.
        threads: how many cores training may use.
    """

    data: Path | None = None
    state: Path | None = None
    turn_limit_s: int = 3600
    threads: int = 1

    def __post_init__(self) -> None:
        if self.turn_limit_s < 1 or self.threads < 1:
            raise ValueError(f"turn_limit_s={self.turn_limit_s}, threads={self.threads}: expected at least 1 of both")


def join(path: Path, ways: Ways) -> None:
    """Takes part in a server's runs until SIGTERM.

    Args:
        path: the bundle.
        ways: how this device takes part.

    Raises:
        FedgenError: the bundle is none or damaged, a folder is missing or unfit, or a client of it runs already.
    """
    bundle = Bundle.open(path)
    if ways.data is not None and not ways.data.is_dir():
        raise ConfigError(f"--data {ways.data}: there is no such folder")
    key = pem(public_half(read_bytes(bundle.path / "node.key")).decode())
    state = (ways.state or bundle.path / "state").resolve()
    config = node_config(bundle, state, ways)
    for folder in (state, state / "logs", state / "flwr"):
        with disk.writing(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with only_one(state / "lock", f"a client with the state {state}"):
        log = teller(state / "logs" / "client.log")
        children = Children(state / "logs", log)
        desk = _Desk(bundle, state, key, log, config, ways.threads)
        for child in (desk.worker(), desk.supernode()):
            desk.news(child.name)
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


def node_config(bundle: Bundle, state: Path, ways: Ways) -> str:
    """What the SuperNode hands to the part of a run that works on this device.

    Raises:
        ConfigError: a path has a character that Flower's syntax has no word for.
    """
    values = {"client": bundle.client, "socket": str(socket_path(state))}
    if ways.data is not None:
        values["data"] = f"path={ways.data.resolve()}"
    for name, value in values.items():
        if any(character in "\"'\\" or not character.isprintable() for character in value):
            raise ConfigError(
                f"the {name} {value!r} has a quote, a backslash or a line's end in it: use another folder"
            )
    return " ".join([*(f'{name}="{value}"' for name, value in values.items()), f"turn_limit_s={ways.turn_limit_s}"])


@final
@dataclass
class _Desk:
    """What a running client knows."""

    bundle: Bundle
    state: Path
    key: bytes
    log: logging.Logger
    config: str
    threads: int
    said: str | None = None
    looks: int = 0
    due: float = 0.0
    away: bool = False
    fault: bytes = b""
    read: dict[str, int] = field(default_factory=dict)

    def worker(self) -> Child:
        command = [sys.executable, "-m", "fedgen.federation.worker", str(socket_path(self.state))]
        command += ["--threads", str(self.threads)]
        return Child("worker", lambda: command, quiet_environment(self.state / "flwr"), explain=self._worker_ended)

    def supernode(self) -> Child:
        bundle = self.bundle

        def command() -> list[str]:
            return [
                *("flower-supernode", "--superlink", str(bundle.server)),
                *("--root-certificates", str(bundle.path / "ca.crt")),
                *("--auth-supernode-private-key", str(bundle.path / "node.key")),
                *("--host", "127.0.0.1", "--port", str(free_port()), "--node-config", self.config),
            ]

        environment = quiet_environment(self.state / "flwr")
        return Child("supernode", command, environment, ready=self._reached, explain=self._node_ended)

    def step(self, children: Children) -> None:
        """Looks after the processes; says why, when a SuperNode that runs complains that it cannot reach the server."""
        children.step()
        new = self.news("supernode")
        if online := re.findall(rb"SuperNode ID: (\d+)", new):
            self.log.info("online as node %s", online[-1].decode())
        if "supernode" in children.pids() and any(words in new for words in BROKEN):
            self.log.warning(
                "the connection broke off in a way that Flower does not get over; the SuperNode starts anew"
            )
            children.renew("supernode")
        self.away = self.away or AWAY in new
        if "supernode" in children.pids() and self.away and time.monotonic() >= self.due:
            self.due = time.monotonic() + WATCH_S
            self.away = self._reached() is not None
        for _, reason in FAULT.findall(self.news("worker")):
            if reason != self.fault:
                said = " ".join(reason.decode(errors="replace").split())
                self.log.warning("the worker cannot do what it is asked: %s. %s", said, self._advice())
            self.fault = reason

    def news(self, name: str) -> bytes:
        """What a process has written since last time."""
        with contextlib.suppress(FileNotFoundError), open(self.state / "logs" / f"{name}.log", "rb") as file:
            size = file.seek(0, os.SEEK_END)
            began = self.read.get(name, 0)
            file.seek(began if began <= size else 0)
            self.read[name] = size
            return file.read()
        return b""

    def _reached(self) -> float | None:
        """Looks at the server; how long to wait before looking again, or None if nothing is wrong."""
        problem = look(self.bundle.server, self.bundle.path / "ca.crt", self.key).problem
        if problem is not None and problem != self.said:
            self.log.warning("%s Trying again", problem if problem.endswith("?") else f"{problem}.")
        elif problem is None and self.said is not None:
            self.log.info("%s is reached", self.bundle.server)
        self.looks = 0 if problem is None else self.looks + 1
        self.said = problem
        return None if problem is None else LOOK_AGAIN_S[min(self.looks, len(LOOK_AGAIN_S)) - 1]

    def _node_ended(self, ended: Ended) -> str | None:
        if STILL_ONLINE in ended.output:
            return (
                "The server takes this device for online, as after a power cut or a kill: that lasts a minute. "
                "If it goes on, another device has a copy of this bundle"
            )
        return None

    def _worker_ended(self, ended: Ended) -> str | None:
        advice = self._advice()
        if ended.status == -9:
            return f"It was killed: memory ran out, or a turn took longer than its limit. {advice}"
        if ended.status == -4:
            return f"torch uses instructions that this processor does not have. {advice}"
        if "ModuleNotFoundError" in ended.output or "ImportError" in ended.output:
            return f"A library is missing. {advice}"
        return None

    def _advice(self) -> str:
        return f"fedgen doctor {self.bundle.path} says what to do"
