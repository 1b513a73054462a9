"""A run folder: the one place where a run keeps everything, born whole or not at all.

A run is its folder. This module makes, finds and locks it and knows the names of what lies in it; the journal and the
checkpoints inside are written by the modules of those names.
"""

import contextlib
import difflib
import errno
import fcntl
import itertools
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedgen import disk
from fedgen.errors import ConfigError, RunError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=,+-]{0,120}")
_PACKAGES = ("fedgen", "torch", "transformers", "peft", "safetensors", "flwr")
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY")

_LOOK_S = 0.2


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def experiment_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "experiment.yaml"

    @property
    def environment_file(self) -> Path:
        """Versions, hardware, fingerprints of data and base."""
        return self.path / "environment.json"

    @property
    def metrics_file(self) -> Path:
        """The journal."""
        return self.path / "metrics.jsonl"

    @property
    def observed_file(self) -> Path:
        """What is told of a run as it happens, if its loop is in another process than those that watch it."""
        return self.path / "observed.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """Folder of the trained adapter; there when the run is over."""
        return self.path / "adapter"

    @property
    def report_html(self) -> Path:
        """The report for people."""
        return self.path / "report.html"

    @property
    def report_json(self) -> Path:
        """The report for programs."""
        return self.path / "report.json"


def create(root: Path, name: str, files: Mapping[str, str], *, now: datetime | None = None) -> Run:
    """Makes `<root>/<date>-<name>/` with its first files, an empty journal and a folder for checkpoints.

    The folder appears under its name in one step, complete and on the disk. If the name is taken, it gets
    `-2`, `-3`, … at its end. What crashed processes left in the root is removed.

    Args:
        root: folder of runs; made if there is none.
        name: what the run is called.
        files: file name → text; `experiment.yaml` and `environment.json` among them.
        now: the date in the folder's name; None for the local time of this moment.

    Raises:
        ConfigError: the name cannot be part of a folder's name.
        RunError: the root cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"name is {name!r}; expected 1 to 121 of the characters A-Z a-z 0-9 _ . = , + - with a letter or digit in "
            "front, since it becomes part of a folder's name"
        )
    assert {"experiment.yaml", "environment.json"} <= files.keys(), (
        f"a run folder cannot begin with {sorted(files)} alone"
    )
    assert all(_NAME.fullmatch(file) for file in files), f"not all of {sorted(files)} are plain names of files"
    stem = f"{now or datetime.now():%Y-%m-%dT%H%M}-{name}"
    with disk.writing(root):
        root.mkdir(parents=True, exist_ok=True)
    disk.sweep(root, alone=False)
    temporary = disk.beside(root / stem, "tmp")
    try:
        with disk.writing(root):
            (temporary / "checkpoints").mkdir(parents=True)
        for file, text in {"metrics.jsonl": "", **files}.items():
            disk.write(temporary / file, text.encode())
        disk.sync_folder(temporary / "checkpoints")
        disk.sync_folder(temporary)
        with disk.writing(root):
            path = _claim(temporary, root, stem)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    disk.sync_folder(root)
    return Run(path)


def open_run(path: Path) -> Run:
    """The run in a folder.

    Raises:
        RunError: it is no run folder; says what is missing, and which runs have a name like it.
    """
    run = Run(path)
    try:
        if not path.exists():
            raise RunError(f"there is no run at {path}{_similar(path)}")
        if not path.is_dir():
            hint = (
                f"; did you mean {path.parent}?" if _missing(Run(path.parent)) == [] else "; give the folder of a run"
            )
            raise RunError(f"{path} is a file{hint}")
        missing = _missing(run)
        inside = _runs_in(path) if "experiment.yaml" in missing else []
    except OSError as error:
        raise RunError(f"{path} cannot be looked at: {error.strerror}; check the name and the rights on it") from error
    if inside:
        raise RunError(f"{path} holds {len(inside)} runs and is none itself; name one of them, {inside[-1]} say")
    if missing:
        raise RunError(
            f"{path} is not a whole run folder: {', '.join(missing)} missing. Put back a copy, or start a new run"
        )
    return run


@contextlib.contextmanager
def lock(run: Run, wait_s: float = 0.0) -> Iterator[None]:
    """Keeps other processes from working on the run meanwhile; a process that dies lets go by itself.

    Removes what a crashed process left in the folder.

    Args:
        run: the run.
        wait_s: seconds to wait for another process to let go.

    Raises:
        RunError: another process works on the run, or the folder cannot be written.
    """
    path = run.path / ".lock"
    with disk.writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with disk.writing(path):
            try:
                _acquire(descriptor, wait_s)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "whose number is not known yet"
                raise RunError(
                    f"{run.path} is being worked on by process {holder}; wait until that has ended, or end it first"
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            disk.sweep(run.path, alone=False)
            yield
        finally:
            # A worker that was forked meanwhile shares the lock; closing alone would leave it with the worker.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, wait_s: float) -> None:
    end = time.monotonic() + wait_s
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(_LOOK_S)


def environment() -> dict[str, Any]:
    """What a result may depend on besides its configuration; nothing that tells whose machine it is.

    Returns:
        Plain JSON: time, versions, platform, processor, memory, thread settings. What cannot be found out is None.
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "board": _first_line(Path("/proc/device-tree/model")),
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "num_usable_cores": len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "threads": {setting: os.environ.get(setting) for setting in _THREAD_SETTINGS},
    }


def _claim(temporary: Path, root: Path, stem: str) -> Path:
    """Renames to the first free name. A rename never replaces a folder that holds something, so no run is lost."""
    for number in itertools.count(1):
        path = root / (stem if number == 1 else f"{stem}-{number}")
        try:
            os.rename(temporary, path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        else:
            return path
    raise AssertionError("unreachable: counting does not end")


def _missing(run: Run) -> list[str]:
    files = (run.experiment_file, run.environment_file, run.metrics_file)
    missing = [file.name for file in files if not file.is_file()]
    return missing if run.checkpoints.is_dir() else [*missing, f"{run.checkpoints.name}/"]


def _runs_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and not _missing(Run(path)))


def _similar(path: Path) -> str:
    """A question with the names of runs that may have been meant: beside the path, or where runs usually are."""
    folders = [folder for folder in (path.parent, Path("runs")) if folder.is_dir()]
    runs = {run.name: run for folder in folders for run in _runs_in(folder)}
    within = [name for name in runs if path.name and path.name in name]
    close = list(dict.fromkeys([*sorted(within, reverse=True), *difflib.get_close_matches(path.name, runs)]))[:3]
    if close:
        return f"; did you mean {' or '.join(str(runs[name]) for name in close)}?"
    return f"; there are {len(runs)} runs in {folders[-1]}" if runs else "; start one with `fedgen train`"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str | None:
    """The processor's name: x86 says it in /proc/cpuinfo, other kinds of machine elsewhere or nowhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _first_line(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n") or None
    return None
