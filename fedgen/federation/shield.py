"""The file that knows what of Flower may change with its next release."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgen.errors import RunError

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

OLDEST, TOO_NEW = (1, 41), (1, 43)
"""The tested range of Flower's versions."""

TIMEOUT_S = 120.0
"""Of one of Flower's commands."""

_FAULTS = {3: "lost", 4: "lost", 5: "offline", 8: "died"}
"""Flower's codes: the message or the reply is no longer there, the node is not, the process has died."""

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Nothing is told to anybody, nothing is fetched."""

POLL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
POLL_INTERVAL_S = "0.25"
"""How often a process that waits for work asks; Flower's own is one second."""


def quiet_environment(flwr_home: Path) -> dict[str, str]:
    """The environment of every process of Flower's.

    Args:
        flwr_home: where Flower keeps what it writes.
    """
    # Flower starts its own commands by name; they must be those of this interpreter.
    commands = str(Path(sys.executable).parent)
    path = os.pathsep.join([commands, *filter(None, [os.environ.get("PATH")])])
    interval = os.environ.get(POLL, POLL_INTERVAL_S)
    return {**os.environ, **QUIET, "FLWR_HOME": str(flwr_home.absolute()), POLL: interval, "PATH": path}


def check_version() -> None:
    """Refuses a Flower that this file does not know.

    Raises:
        RunError: it is not installed, or its version is outside the tested range.
    """
    try:
        found = version("flwr")
    except PackageNotFoundError:
        raise RunError("Flower is not installed; pip install 'fedgen[simulation]'") from None
    if not OLDEST <= _numbers(found) < TOO_NEW:
        wanted = f"flwr>={'.'.join(map(str, OLDEST))},<{'.'.join(map(str, TOO_NEW))}"
        raise RunError(f"Flower is version {found}, and fedgen was tested with {wanted}; pip install '{wanted}'")


def fault(message: "Message") -> str:
    """Why a message has no content, in a word; empty if it has some."""
    return _FAULTS.get(message.error.code, "failed") if message.has_error() else ""


def registered(grid: "Grid") -> dict[int, str]:
    """The nodes that are online, each with the name under which it was registered; empty where it has none."""
    return {info.node_id: info.name for info in grid.get_nodes()}


@dataclass(frozen=True)
class Control:
    """Flower's command line, and the SuperLink that it speaks to.

    Attributes:
        flwr_home: folder with the `config.toml` that says where the SuperLink is.
        connection: what that file calls it.
    """

    flwr_home: Path
    connection: str

    def submit(self, bundle: Path, run_config: Path, federation: Mapping[str, int | float | bool]) -> str:
        """Starts a run; returns Flower's number of it.

        Args:
            bundle: folder whose `pyproject.toml` names the apps.
            run_config: a toml file.
            federation: of a simulation, how large it is.

        Raises:
            RunError: Flower refuses, or cannot be reached.
        """
        # Flower's parser takes true and 1.5 as toml does.
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in federation.items())
        said = self._call("run", str(bundle), self.connection, "--run-config", str(run_config), *_pair(pairs))
        return str(said["run-id"])

    def status(self, run_id: str) -> tuple[str, str]:
        """What has become of a run: `running`, say, or `finished:failed`; and Flower's words on it.

        Raises:
            RunError: Flower cannot be reached, or does not know the run.
        """
        runs = self._call("ls", self.connection, "--run-id", run_id)["runs"]
        if not runs:
            raise RunError(f"the SuperLink knows no run {run_id}")
        return str(runs[0]["status"]), str(runs[0].get("status-details") or "")

    def stop(self, run_id: str) -> None:
        """Ends a run.

        Raises:
            RunError: Flower cannot be reached, or the run is over.
        """
        self._call("stop", run_id, self.connection)

    def _call(self, *arguments: str) -> dict[str, Any]:
        command = [str(Path(sys.executable).parent / "flwr"), *arguments, "--format", "json"]
        environment = quiet_environment(self.flwr_home)
        try:
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RunError(f"flwr {arguments[0]} did not come to an end: {error}") from error
        # Notices may stand before the answer.
        start = done.stdout.find("{")
        try:
            said = json.loads(done.stdout[start:]) if start >= 0 else {}
        except ValueError:
            said = {}
        if not isinstance(said, dict) or not said.get("success"):
            reason = said.get("error-message") or said.get("error") if isinstance(said, dict) else ""
            text = str(reason or done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}")
            raise RunError(f"flwr {arguments[0]} failed: {' '.join(text.split())}")
        return said


def _pair(pairs: str) -> list[str]:
    return ["--federation-config", pairs] if pairs else []


def _numbers(text: str) -> tuple[int, ...]:
    """The first two numbers of a version.

    >>> _numbers("1.41.0")
    (1, 41)
    """
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
