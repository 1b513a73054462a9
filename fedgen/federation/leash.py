"""A command on a leash: it and everything that it starts end when the process ends that holds the other end.

``python -m fedgen.federation.leash FOLDER COMMAND ...`` runs the command until it ends, until the standard input is
closed (the kernel does that for a process that is killed), or until SIGTERM; then kills all of its descendants, also
those that wanted to outlive it, and removes the folder. Linux only. Imports the standard library alone.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

PR_SET_CHILD_SUBREAPER = 36
LOOK_S = 0.2


def main(arguments: Sequence[str]) -> int:
    """Runs a command on a leash; returns its exit status, or 0 if it was ended."""
    folder, *command = arguments
    # Orphans of the command become children of this process, so that none is lost.
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this system does not hand orphans over")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        while process.poll() is None:
            readable, _, _ = select.select([sys.stdin.fileno()], [], [], LOOK_S)
            if readable and not os.read(sys.stdin.fileno(), 1):
                return 0
        return process.returncode
    finally:
        _end_all()
        shutil.rmtree(folder, ignore_errors=True)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _end_all() -> None:
    """Kills children until there are none: those of a child that is killed become children of this process."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while pids := children.read_text().split():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
