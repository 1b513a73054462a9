"""What the server says of its devices: which keys it knows, and who is online."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fedgen.deployment.home import CONNECTION, Home
from fedgen.deployment.registrar import read_nodes
from fedgen.errors import RunError
from fedgen.federation.shield import quiet_environment

LONGEST_S = 20.0


@dataclass(frozen=True)
class Node:
    """A device as the server knows it.

    Attributes:
        status: registered (it was never there), online, or offline.
        since: when that began; seconds since 1970, None if it is not known.
    """

    status: str
    since: float | None


def listed(home: Home) -> dict[str, Node]:
    """Device → what the server says of it; those whose key it does not know are left out.

    Raises:
        RunError: no server runs, or it does not answer.
    """
    if not serving(home):
        raise RunError(f"no server of {home.path} runs")
    command = [str(Path(sys.executable).parent / "flwr"), "supernode", "list", CONNECTION, "--format", "json"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LONGEST_S, check=False, env=quiet_environment(home.flwr)
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(f"the server of {home.path} did not answer within {LONGEST_S:g} s") from error
    except OSError as error:
        raise RunError(f"Flower's command cannot be started: {error.strerror}; pip install 'fedgen[device]'") from error
    return of(done.stdout, {node.node_id: name for name, node in read_nodes(home).items()})


def serving(home: Home) -> bool:
    """Whether a server of this home runs on this machine."""
    try:
        told = json.loads((home.path / "run.json").read_text())
    except (OSError, ValueError):
        return False
    pid = told.get("pid") if isinstance(told, dict) else None
    return isinstance(pid, int) and Path(f"/proc/{pid}").exists()


def of(printed: str, names: Mapping[str, str]) -> dict[str, Node]:
    """Device → what the server says of it.

    Args:
        printed: what `flwr supernode list --format json` printed.
        names: id of a node → name of the device that registered with it.

    Raises:
        RunError: it is no list.
    """
    try:
        # Some of Flower's commands say a word before the object.
        told = json.loads(printed[printed.index("{") :])
    except ValueError:
        told = None
    if not isinstance(told, dict) or told.get("success") is not True or not isinstance(told.get("nodes"), list):
        said = told.get("error-message") if isinstance(told, dict) else None
        raise RunError(f"the server does not list its devices: {said or 'no answer'}")
    found = {}
    for entry in told["nodes"]:
        name = names.get(str(entry.get("node-id"))) if isinstance(entry, dict) else None
        status = str(entry.get("status")) if name is not None else "unregistered"
        if name is not None and status not in ("unregistered", "deleted"):
            found[name] = Node(
                status, _seconds(entry.get({"online": "online-at", "offline": "offline-at"}.get(status, "")))
            )
    return found


def _seconds(moment: Any) -> float | None:  # noqa: ANN401 - any JSON value
    """Seconds since 1970 of a moment as Flower writes it, 2026-11-25 22:59:12Z; None for what is no moment."""
    try:
        return datetime.fromisoformat(str(moment)).timestamp()
    except ValueError:
        return None
