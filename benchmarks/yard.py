"""Where drills take place: a deployment in a field, runs to watch, and processes to end at a chosen moment."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from deployed import Deployment, Process, cpu_s
from field import Field, Link, small_disk

LINKS = {
    "owner-0": Link(rate_mbit=20.0),
    "owner-1": Link(rate_mbit=4.0),
    "owner-2": Link(rate_mbit=20.0, delay_ms=40),
    "owner-3": Link(rate_mbit=20.0, loss=0.02, memory_mib=1000),
}
ROGUE = "owner-3"
TURN_LIMIT_S = 45
"""Of owner-1, which is to hang."""

SMALL_MIB = 12
OVERRIDES = (
    "recipe=tiny", "aggregation.momentum=0.5", "num_evaluated=16", "num_evaluated_per_round=16", "data.num_train=16",
    "client.num_steps=200",
)  # fmt: skip
"""A turn takes seconds, so that something can happen in the middle of it."""

PATIENCE_S = 600.0


class Yard:
    """A server and four devices in places of their own; one of them does what it is told to."""

    def __init__(self) -> None:
        self.field = Field(LINKS)
        self._stack = contextlib.ExitStack()
        self._expected: dict[tuple[str, ...], list[str]] = {}

    def __enter__(self) -> "Yard":
        with self._stack:
            self._stack.enter_context(self.field)
            rogue = str(Path(__file__).with_name("rogue.py"))
            self.there = Deployment(
                tuple(LINKS),
                self.field.server,
                words={name: self.field.words(name) for name in ("server", *LINKS)},
                programs={ROGUE: (sys.executable, rogue)},
                arguments={"owner-1": ("--turn-limit", str(TURN_LIMIT_S))},
            )
            # What the disk below keeps from being removed before it is gone.
            self._stack.callback(shutil.rmtree, self.there.folder, ignore_errors=True)
            # Before the server starts: it sees no disk that comes later.
            self._stack.enter_context(small_disk(self.small, SMALL_MIB))
            self._stack.enter_context(self.there)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def small(self) -> Path:
        """A folder with little room."""
        return self.there.folder / "small"

    def ready(self) -> None:
        """Sees to it that everything runs, and all devices are online and honest."""
        self.order({})
        for name in ("server", *LINKS):
            process = self.there.running.get(name)
            if process is None or process.poll() is not None:
                self.power_on(name)
        self.there.until(lambda: all(self.there.is_online(name) for name in LINKS), "all devices are online")

    def order(self, orders: dict[str, str], *, anew: bool = False) -> None:
        """Tells the rogue what to do in which round.

        Args:
            orders: round → order.
            anew: its worker is started again, for orders that it heeds when it starts.
        """
        (self.there.folder / ROGUE / "orders.json").write_text(json.dumps(orders))
        if anew:
            before = self.worker(ROGUE)
            os.kill(before, signal.SIGKILL)
            self.there.until(lambda: self.workers(ROGUE) not in ([], [before]), "the rogue's worker is back")

    def expected(self, *overrides: str) -> list[str]:
        """Digests of what the same run leaves behind that is carried out in one process."""
        if overrides not in self._expected:
            name = f"local-{len(self._expected)}"
            self.there.call("train", *OVERRIDES, *overrides, f"name={name}", "federation.num_workers=1")
            [folder] = self.there.runs.glob(f"*-{name}")
            self._expected[overrides] = digests(folder)
        return self._expected[overrides]

    def run(self, name: str, *overrides: str, runs: Path | None = None) -> "Going":
        """Starts a run on the devices.

        Args:
            name: of the run.
            overrides: besides those of all drills.
            runs: folder that it is made in.
        """
        if runs is not None:
            self.there.environment["FEDGEN_RUNS"] = str(runs)
        try:
            words = [*OVERRIDES, *overrides, "federation=superlink", f"federation.home={self.there.home}"]
            process = self.there.spawn(f"run-{name}", "train", *words, f"name={name}", place="server")
        finally:
            self.there.environment["FEDGEN_RUNS"] = str(self.there.runs)
        return Going(self, name, process, runs or self.there.runs)

    def workers(self, name: str) -> list[int]:
        """Numbers of the workers of a device: one, or none for a moment."""
        return [pid for pid in self.field.found(name, "worker.sock") if not self._is_client(pid)]

    def worker(self, name: str) -> int:
        """Number of a device's worker."""
        self.there.until(lambda: len(self.workers(name)) == 1, f"{name} has a worker")
        [pid] = self.workers(name)
        return pid

    def busy(self, name: str) -> int:
        """Waits until a device is in the middle of a turn; number of its worker."""
        self.there.until(lambda: self.field.found(name, "flwr-clientapp"), f"{name} has a message")
        pid = self.worker(name)
        began = cpu_s(pid)
        self.there.until(lambda: cpu_s(pid) > began + 0.3, f"{name} works on it")
        return pid

    def power_off(self, name: str) -> None:
        """A place is without power."""
        process = self.there.running.pop(name)
        self.field.power_off(name)
        process.wait()

    def power_on(self, name: str) -> None:
        """It has power again; what the system would start is started."""
        if name != "server":
            self.field.cut(name, up=True)
        self.there.start(name)

    def ask(self, name: str, code: str) -> str:
        """What a line of Python says at a device."""
        words = self.field.words(name)
        done = subprocess.run([*words, sys.executable, "-c", code], capture_output=True, text=True, check=False)
        return done.stdout.strip() or done.stderr.strip()[-300:]

    def keep(self, folder: Path) -> None:
        """Copies all logs and runs, to look at them later."""
        shutil.copytree(self.there.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock", "*.db"))

    @staticmethod
    def _is_client(pid: int) -> bool:
        with contextlib.suppress(OSError):
            return b"flower-supernode" in Path(f"/proc/{pid}/cmdline").read_bytes()
        return False


class Going:
    """A run on the devices that goes on."""

    def __init__(self, yard: Yard, name: str, process: Process, runs: Path) -> None:
        self.name, self.process = name, process
        self._yard, self._runs = yard, runs

    @property
    def folder(self) -> Path:
        """Of the run."""
        [found] = self._runs.glob(f"*-{self.name}")
        return found

    @property
    def said(self) -> str:
        """What its command has said."""
        return self._yard.there.said(f"run-{self.name}")

    def told(self) -> list[dict[str, Any]]:
        """What the run has told of so far."""
        files = list(self._runs.glob(f"*-{self.name}/observed.jsonl"))
        lines = files[0].read_bytes().splitlines(keepends=True) if files else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def clients(self, client: str) -> dict[int, dict[str, Any]]:
        """Round → what is told of a client's reply in it."""
        return {line["round"]: line for line in self.told() if line["kind"] == "client" and line["client"] == client}

    def rounds(self) -> list[dict[str, Any]]:
        """What is told of the rounds that are over, the first evaluation left out."""
        return [line for line in self.told() if line["kind"] == "round" and line["round"]]

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Waits for something in the run."""

        def met() -> bool:
            if condition():
                return True
            if self.process.poll() is not None:
                raise RuntimeError(f"the run has ended with {self.process.returncode}: {self.said[-1500:]}")
            return False

        self._yard.there.until(met, what, PATIENCE_S)

    def until_asked(self, number: int) -> None:
        """Waits until a round has begun."""
        self.until(
            lambda: any(line["kind"] == "dispatch" and line["round"] == number for line in self.told()),
            f"round {number} begins",
        )

    def until_answered(self, client: str, number: int) -> float:
        """Waits for what comes of a request; seconds that it took from now."""
        began = time.monotonic()
        self.until(lambda: number in self.clients(client), f"round {number} has an answer of {client}")
        return time.monotonic() - began

    def end(self) -> int:
        """Waits for the end of the run; the exit status of its command."""
        self._yard.there.until(lambda: self.process.poll() is not None, f"{self.name} is over", PATIENCE_S)
        return int(self.process.returncode)

    def resume(self) -> None:
        """Goes on with it."""
        self.process = self._yard.there.spawn(f"run-{self.name}", "resume", self.folder, place="server")


def digests(run: Path) -> list[str]:
    """SHA-256 of what a run that is over leaves behind: its state, the server's own, the adapter."""
    newest = max((run / "checkpoints").glob("round-????"))
    files = [newest / "state.safetensors", newest / "server.safetensors", run / "adapter" / "adapter_model.safetensors"]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


@contextlib.contextmanager
def ended(*processes: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ends processes with the block."""
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
