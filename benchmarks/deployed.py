"""A whole deployment on this machine: a server with its proxy and some devices, by the commands that a user types.

Everything that is started ends when the block ends, and also when this process is killed.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from fedgen.ports import free_port

PATIENCE_S = 180.0
"""Processes share the processor with whatever else runs; nothing takes so long otherwise."""

STOP_S = 45.0
_PR_SET_PDEATHSIG = 1

Process = subprocess.Popen[bytes]


class Deployment:
    """A home, and the processes that serve it.

    Args:
        clients: names of the devices.
        server: HOST:PORT under which they reach the server; None for a free port of this machine.
        words: what stands before the commands of a device, or of `server`: where they run.
        programs: what takes the place of `fedgen` on a device.
        arguments: of `fedgen client` on a device, besides its bundle.
        more: what is added to the environment of all processes.
        runs: folder of the runs; None for one that is removed with the home.
    """

    def __init__(
        self,
        clients: Sequence[str],
        server: str | None = None,
        words: Mapping[str, Sequence[str]] | None = None,
        programs: Mapping[str, Sequence[str]] | None = None,
        arguments: Mapping[str, Sequence[str]] | None = None,
        more: Mapping[str, str] | None = None,
        runs: Path | None = None,
    ) -> None:
        # A short path: the sockets of the devices lie in there.
        self.folder = Path(tempfile.mkdtemp(prefix="fedgen-"))
        self.home = self.folder / "home"
        self.runs = (runs or self.folder / "runs").absolute()
        self.clients = tuple(clients)
        self.running: dict[str, Process] = {}
        self._server = server or f"127.0.0.1:{free_port()}"
        self._words, self._programs, self._arguments = dict(words or {}), dict(programs or {}), dict(arguments or {})
        package = str(Path(__file__).parents[1])
        paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        own = {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "FEDGEN_RUNS": str(self.runs)}
        self.environment = {**os.environ, **own, **(more or {})}

    def __enter__(self) -> "Deployment":
        try:
            devices = [word for name in self.clients for word in ("--device", name)]
            self.call("provision", self.home, "--server", self._server, *devices)
            for name in self.clients:
                shutil.unpack_archive(self.home / "bundles" / f"{name}.tar", self.folder, filter="data")
            self.start("server")
            for name in self.clients:
                self.start(name)
            self.until(lambda: all(self.is_online(name) for name in self.clients), "all devices are online")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, name: str) -> None:
        """Starts the server, or a device.

        Args:
            name: of the device, or `server`.
        """
        verb, place = ("server", self.home) if name == "server" else ("client", self.folder / name)
        self.running[name] = self.spawn(name, verb, place, *self._arguments.get(name, ()))

    def spawn(self, name: str, *arguments: object, place: str = "", output: int | None = None) -> "Process":
        """Starts one of fedgen's commands.

        Args:
            name: what it says is added to a file of this name, unless it goes elsewhere.
            arguments: of the command.
            place: name of the device where it runs, or `server`; if empty, the same name.
            output: number of a file for what it says.
        """
        with open(self.folder / f"{name}.out", "ab") as said:
            return subprocess.Popen(
                self.command(place or name, *arguments),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said if output is None else output,
                stderr=said if output is None else output,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def command(self, place: str, *arguments: object) -> list[str]:
        """One of fedgen's commands, as it is started at a place."""
        program = self._programs.get(place, (sys.executable, "-m", "fedgen"))
        return [*self._words.get(place, ()), *program, *map(str, arguments)]

    def call(self, *arguments: object) -> str:
        """Carries out one of fedgen's commands where the server is; what it said.

        Raises:
            RuntimeError: it failed; says what it said.
        """
        done = subprocess.run(
            self.command("server", *arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"fedgen {arguments[0]} ended with {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout

    def said(self, name: str) -> str:
        """What the server or a device has said so far."""
        return (self.folder / f"{name}.out").read_text(errors="replace")

    def is_online(self, name: str) -> bool:
        """Whether the server has let a device in since it was started."""
        return "online as node" in self.said(name).rpartition("takes part at")[2]

    def until(self, condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
        """Waits for something.

        Raises:
            RuntimeError: it does not come, or the server or a device has ended meanwhile.
        """
        end = time.monotonic() + patience_s
        while not condition():
            for name, process in self.running.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} has ended with {process.returncode}: {self.said(name)[-2000:]}")
            if time.monotonic() > end:
                told = "\n".join(f"{name}: {self.said(name)[-800:]}" for name in self.running)
                raise RuntimeError(f"not within {patience_s:g} s: {what}\n{told}")
            time.sleep(0.1)

    def stop(self, *names: str) -> None:
        """Ends the server or devices as a user would, and those that do not listen."""
        for name in names:
            with contextlib.suppress(ProcessLookupError):
                self.running[name].send_signal(signal.SIGTERM)
        end = time.monotonic() + STOP_S
        for name in names:
            process = self.running.pop(name)
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def close(self) -> None:
        """Ends everything and removes the home."""
        try:
            self.stop(*self.running)
        finally:
            for pid in self.left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self.folder, ignore_errors=True)

    def left(self) -> list[int]:
        """Numbers of all processes that live on this home, whoever started them."""
        mark = str(self.folder).encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                signs = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                if mark in signs and int(process.name) != os.getpid():
                    found.append(int(process.name))
        return found


def cpu_s(pid: int) -> float:
    """Seconds of the processor that a process has had; 0 if there is no such process."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _end_with_parent() -> None:
    """The kernel sends the new process a SIGTERM when the one that started it is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
