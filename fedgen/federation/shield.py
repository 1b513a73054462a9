"""The file that knows what of Flower may change with its next release."""

import os
import sys
from pathlib import Path

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
