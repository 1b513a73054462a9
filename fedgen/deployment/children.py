"""Keeps processes running: starts them, starts them again when they end, and leaves none behind.

Each writes to a log file of its own. What a process has started itself ends with it, also when it left its family: this
process adopts all orphans among its descendants (Linux, prctl), and they have no other. Should this process be killed
outright, the system sends each child a SIGTERM.
"""

import contextlib
import ctypes
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

LOG_BYTES = 5 * 2**20
"""When a log is longer, it is moved to `.1`, what was there to `.2`, and so on."""

KEPT_LOGS = 3
GRACE_S = 10.0
"""So long a process has between SIGTERM and SIGKILL."""

STEADY_S = 60.0
"""Who lived so long is started again at once; who did not waits twice as long each time, up to LONGEST_WAIT_S."""

LONGEST_WAIT_S = 60.0

TAIL_BYTES = 8192
STRAY_GRACE_S = 3.0

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


@final
@dataclass(frozen=True)
class Ended:
    """A process that ended without being asked to.

    Attributes:
        name: of the child.
        status: its exit status; negative for a signal.
        output: the end of what it wrote since it was started.
    """

    name: str
    status: int
    output: str

    def __str__(self) -> str:
        how = f"killed by signal {-self.status}" if self.status < 0 else f"exit status {self.status}"
        return f"{self.name} ended ({how})"


@final
@dataclass(frozen=True)
class Child:
    """A process that is to run.

    Attributes:
        name: also that of its log.
        command: makes its arguments, anew for each start.
        environment: all of it.
        ready: asked before each start; seconds to wait before asking again, or None to start.
        explain: what to tell the user when it ends, or None for nothing more than that it did.
    """

    name: str
    command: Callable[[], Sequence[str]]
    environment: Mapping[str, str]
    ready: Callable[[], float | None] = lambda: None
    explain: Callable[[Ended], str | None] = lambda ended: None


@final
@dataclass
class _Kept:
    child: Child
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    log_bytes: int = 0
    due: float = 0.0
    failures: int = 0
    reason: str = ""
    told_to_end: float | None = None


@final
@dataclass
class Children:
    """The processes that this one keeps.

    Attributes:
        logs: folder of their logs.
        log: where it is told what happens to them.
        spared: numbers of processes that are somebody else's to look after, until `close`.
    """

    logs: Path
    log: logging.Logger
    spared: set[int] = field(default_factory=set)
    _kept: dict[str, _Kept] = field(default_factory=dict)

    def keep(self, child: Child) -> None:
        """Has a process run from the next step on."""
        self._kept[child.name] = _Kept(child)

    def pids(self) -> dict[str, int]:
        """Process numbers of those that run."""
        return {name: kept.process.pid for name, kept in self._kept.items() if kept.process is not None}

    def renew(self, name: str) -> None:
        """Ends a process that runs, for it to be started again. One that does not listen is killed after GRACE_S."""
        kept = self._kept[name]
        if kept.process is not None and kept.told_to_end is None:
            kept.told_to_end = time.monotonic()
            kept.process.terminate()

    def step(self) -> None:
        """Looks after all of them once; to be called about twice a second."""
        for kept in self._kept.values():
            if kept.told_to_end is not None and time.monotonic() > kept.told_to_end + GRACE_S and kept.process:
                kept.process.kill()
            if kept.process is not None and kept.process.poll() is not None:
                self._ended(kept)
            if kept.process is None and time.monotonic() >= kept.due:
                wait = kept.child.ready()
                if wait is None:
                    self._start(kept)
                else:
                    kept.due = time.monotonic() + wait
            _rotate(self.logs / f"{kept.child.name}.log")

    def close(self) -> None:
        """Ends all of them, the last one first, and all that they have started."""
        running = [kept.process for kept in reversed(self._kept.values()) if kept.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + GRACE_S
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._kept.clear()
        end_strays(())

    def _start(self, kept: _Kept) -> None:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        path = self.logs / f"{kept.child.name}.log"
        with open(path, "ab") as log:
            kept.log_bytes = log.tell()
            kept.process = subprocess.Popen(
                [*kept.child.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.logs.parent,
                env={**kept.child.environment},
                start_new_session=True,
                preexec_fn=_end_with_parent(os.getpid()),
            )
        kept.started = time.monotonic()

    def _ended(self, kept: _Kept) -> None:
        assert kept.process is not None
        status = kept.process.returncode
        kept.process = kept.told_to_end = None
        end_strays({*self.pids().values(), *self.spared})
        path = self.logs / f"{kept.child.name}.log"
        ended = Ended(kept.child.name, status, _tail(path, kept.log_bytes))
        kept.failures = 0 if time.monotonic() - kept.started > STEADY_S else kept.failures + 1
        # A little chance, lest a whole fleet come back in the same instant.
        wait = min(LONGEST_WAIT_S, 2.0 ** (kept.failures - 1)) * random.uniform(0.8, 1.2) if kept.failures else 0.0
        kept.due = time.monotonic() + wait
        reason = kept.child.explain(ended) or f"See {path}"
        again = f"again in {wait:.0f} s" if wait else "started again"
        self.log.warning("%s; %s%s", ended, again, "" if reason == kept.reason else f". {reason}")
        kept.reason = reason


def end_strays(spared: Iterable[int]) -> None:
    """Ends this process's descendants, but for those that are spared, and theirs.

    Args:
        spared: process numbers of children.
    """
    for sign in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STRAY_GRACE_S
        while strays := _strays(frozenset(spared)):
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sign)
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)


def _strays(spared: frozenset[int]) -> list[int]:
    """Descendants that are neither spared nor come from one who is; those that have ended already are reaped."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name of a process, in parentheses, may hold anything.
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(folder.name)] = int(parent)
            elif int(parent) == os.getpid() and int(folder.name) not in spared:
                os.waitpid(int(folder.name), os.WNOHANG)
    return [pid for pid in parents if _belongs(pid, parents, spared)]


def _belongs(pid: int, parents: Mapping[int, int], spared: frozenset[int]) -> bool:
    while pid not in spared and pid in parents:
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False


def _end_with_parent(parent: int) -> Callable[[], None]:
    """What a child does between fork and exec: it will get a SIGTERM when its parent is gone, however that went."""

    def arrange() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return arrange


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _LIBC.prctl(option, value, 0, 0, 0)


def _rotate(path: Path) -> None:
    """Moves the content of a log that has become long out of it. Its writer appends, and does not notice.

    The few lines that come between the copy and the cut are lost.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size <= LOG_BYTES:
            return
        for number in range(KEPT_LOGS, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{path}.{number - 1}", f"{path}.{number}")
        shutil.copyfile(path, f"{path}.1")
        os.truncate(path, 0)


def _tail(path: Path, since: int) -> str:
    """The end of what a log says from a place on, or from its beginning if it was cut meanwhile."""
    with open(path, "rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(since if since <= size else 0, size - TAIL_BYTES))
        return log.read().decode(errors="replace")
