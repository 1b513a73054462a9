"""``fedgen server HOME``: the SuperLink, what starts a run's part on the server, and the proxy, kept running.

The part of a run that the server does belongs to the SuperExec, not to the SuperLink: a run survives that the SuperLink
is killed and comes back within a minute.
"""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from fedgen.deployment.address import Address
from fedgen.deployment.children import Child, Children
from fedgen.deployment.files import write_object
from fedgen.deployment.home import Home
from fedgen.deployment.provision import check_certificate
from fedgen.deployment.registrar import UNREACHED
from fedgen.deployment.station import only_one, teller, until_told
from fedgen.errors import ConfigError
from fedgen.federation.shield import quiet_environment

WARN_DAYS = 30


def serve(path: Path, listen: Address | None = None) -> None:
    """Serves a home until SIGTERM.

    Args:
        path: the home.
        listen: where the proxy listens; if not given, at the port of the home's own address on all interfaces, or on
            this machine only if that address is.

    Raises:
        FedgenError: the home is none or damaged, its certificate has ended, a port is taken, or it is served already.
    """
    home = Home.open(path)
    days_left = check_certificate(home)
    if listen is None:
        listen = Address(home.server.host if home.server.is_loopback else "0.0.0.0", home.server.port)
    with only_one(home.state / "lock", "a server of this home"):
        check_port(listen, "--listen HOST:PORT names another; devices must still reach it at the home's address")
        check_port(home.superlink, "stop what holds it, or set superlink_port in fleet.json and call fedgen provision")
        log = teller(home.logs / "server.log")
        if days_left < WARN_DAYS:
            log.warning(
                "the server's certificate ends in %.0f days: fedgen provision %s renews it", days_left, home.path
            )
        children = Children(home.logs, log)
        desk = _Desk(home, listen, children, log)
        for child in (desk.superlink(), desk.superexec(), desk.proxy()):
            children.keep(child)
        log.info("serving %s for %d devices at %s", home.path, len(home.devices), listen)
        try:
            until_told(desk.step)
        finally:
            children.close()
            desk.close()
            log.info("stopped")


def check_port(address: Address, advice: str) -> None:
    """Sees to it that nobody listens on a port.

    Raises:
        ConfigError: somebody does, or the port or address is not for us.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except PermissionError as error:
            raise ConfigError(f"port {address.port} is for root only: take one above 1023. {advice}") from error
        except OSError as error:
            raise ConfigError(f"cannot listen at {address}: {error.strerror}. {advice}") from error


@final
@dataclass
class _Desk:
    """What a running server knows."""

    home: Home
    listen: Address
    children: Children
    log: logging.Logger
    registrar: "subprocess.Popen[str] | None" = None
    registered: tuple[int, int] | None = None
    reading: tuple[int, int] = (0, 0)
    due: float = 0.0
    written: dict[str, int] = field(default_factory=dict)

    def step(self) -> None:
        self.children.step()
        self._register()
        pids = self.children.pids()
        if pids != self.written:
            self.written = pids
            ports = {"public": self.listen.port, "superlink": self.home.superlink_port}
            write_object(self.home.path / "run.json", {"pid": os.getpid(), "ports": ports, "children": pids})

    def close(self) -> None:
        if self.registrar is not None:
            self.registrar.wait()
        (self.home.path / "run.json").unlink(missing_ok=True)

    def superlink(self) -> Child:
        home = self.home
        command = [
            *("flower-superlink", "--host", home.superlink.host, "--port", str(home.superlink_port)),
            *("--ssl-ca-certfile", str(home.path / "ca.crt"), "--ssl-certfile", str(home.path / "server.pem")),
            *("--ssl-keyfile", str(home.path / "server.key"), "--enable-supernode-auth"),
            *("--database", str(home.state / "superlink.db"), "--disable-runtime-dependency-installation"),
            *("--isolation", "process", "--superexec-auth-secret-file", str(home.path / "superexec.secret")),
        ]
        return Child("superlink", lambda: command, quiet_environment(home.flwr))

    def superexec(self) -> Child:
        home = self.home
        command = [
            *("flower-superexec", "--runtime-api-address", str(home.superlink)),
            *("--root-certificates", str(home.path / "ca.crt")),
            *("--superexec-auth-secret-file", str(home.path / "superexec.secret")),
        ]
        return Child("superexec", lambda: command, quiet_environment(home.flwr), ready=self._once_registered)

    def proxy(self) -> Child:
        command = [sys.executable, "-m", "fedgen.deployment.proxy", str(self.home.path), str(self.listen)]
        # Devices come in once their keys are known; before that they would be refused, and wait long.
        return Child("proxy", lambda: command, quiet_environment(self.home.flwr), ready=self._once_registered)

    def _once_registered(self) -> float | None:
        return None if self.registered is not None else 0.0

    def _register(self) -> None:
        """Has the keys registered when the server has started, and whenever `fleet.json` has changed."""
        if self.registrar is not None:
            if self.registrar.poll() is None:
                return
            said = self.registrar.communicate()[0].strip()
            if self.registrar.returncode == 0:
                if said:
                    self.log.info("%s", said)
                if self.registered is None:
                    self.log.info("the SuperLink is up")
                self.registered = self.reading
            elif self.registered is not None or self.registrar.returncode != UNREACHED:
                self.log.warning("devices could not be registered; again in 5 s. %s", said[-400:])
            self.due = time.monotonic() + (0.0 if self.registrar.returncode == 0 else 2.0)
            self.children.spared.discard(self.registrar.pid)
            self.registrar = None
        with contextlib.suppress(OSError):
            stat = (self.home.path / "fleet.json").stat()
            self.reading = (stat.st_mtime_ns, stat.st_size)
        if self.reading != self.registered and time.monotonic() >= self.due and self._superlink_listens():
            self.registrar = subprocess.Popen(
                [sys.executable, "-m", "fedgen.deployment.registrar", str(self.home.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=quiet_environment(self.home.flwr),
                start_new_session=True,
            )
            self.children.spared.add(self.registrar.pid)

    def _superlink_listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.home.superlink.host, self.home.superlink_port)) == 0
