"""Versions of what fedgen stands on, and whether torch computes on this processor."""

import json
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import fedgen
from fedgen.deployment.finding import Finding

ARITHMETIC = (sys.executable, "-m", "fedgen.deployment.arithmetic")
CPU_BUILD = "take torch's CPU build, from the index that pytorch.org names under Get Started (Linux, Pip, CPU)"
"""A constraint file cannot say this: on aarch64 the ordinary index has builds with CUDA only."""

LEAST_PYTHON = (3, 11)
LEAST_TORCH = (2, 13)
FLWR_FROM, FLWR_BELOW = (1, 41), (1, 43)
LONGEST_S = 180.0
"""Importing torch for the first time took 30 seconds on a busy server and 85 on an emulated board, and no more."""


def python() -> Finding:
    """Version and width of the interpreter."""
    got = f"{platform.python_version()}, {platform.machine()}"
    if sys.maxsize < 2**32:
        return Finding(
            "python", "fail", f"{got}, 32 bits", "install a 64-bit operating system; torch has no 32-bit build"
        )
    if sys.version_info < LEAST_PYTHON:
        return Finding("python", "fail", got, "install Python 3.11 or newer (Raspberry Pi OS Bookworm or later has it)")
    return Finding("python", "ok", got)


def own_version(wanted: str | None) -> Finding:
    """Whether this fedgen goes with the server's; devices of another minor version get no work.

    Args:
        wanted: version that the server's bundle names; None if nothing names one.
    """
    here = fedgen.__version__
    if wanted is None or _numbers(wanted)[:2] == _numbers(here)[:2]:
        return Finding("fedgen", "ok", here)
    return Finding(
        "fedgen",
        "fail",
        f"{here}; the server's bundle is of {wanted}",
        f"pip install 'fedgen[device]=={wanted}', since a server gives no work to another minor version",
    )


def flower(installed: str | None) -> Finding:
    """Whether Flower is there in a version that was tested.

    Args:
        installed: its version; None if it is not installed.
    """
    if installed is None:
        return Finding("flwr", "fail", "not installed", "pip install 'fedgen[device]'")
    if FLWR_FROM <= _numbers(installed)[:2] < FLWR_BELOW:
        return Finding("flwr", "ok", installed)
    return Finding("flwr", "fail", f"{installed}; tested are 1.41 and 1.42", "pip install 'flwr>=1.41,<1.43'")


def torch(command: Sequence[str] = ARITHMETIC, machine: str | None = None, longest_s: float = LONGEST_S) -> Finding:
    """Whether torch can be imported and multiplies; asked in a process of its own, which may die of it.

    Args:
        command: what to start.
        machine: kind of processor; this one's if None.
        longest_s: how long it may take.
    """
    machine = platform.machine() if machine is None else machine
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=longest_s, check=False)
    except subprocess.TimeoutExpired:
        return Finding(
            "torch", "fail", f"did not answer within {longest_s:g} s", "look at memory and disk; then try again"
        )
    if done.returncode < 0:
        return _killed(-done.returncode)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Finding("torch", "fail", f"cannot be used: {said}", CPU_BUILD)
    told = json.loads(lines[-1])
    build = f"with CUDA {told['cuda']}" if told["cuda"] else "for the CPU"
    got = f"{told['torch']}, {build}, {told['threads']} threads"
    if not told["right"]:
        return Finding(
            "torch", "fail", f"{got}; multiplies wrongly", f"{CPU_BUILD}; then suspect power and memory of the board"
        )
    if _numbers(told["torch"])[:2] < LEAST_TORCH:
        return Finding("torch", "fail", f"{got}; expected 2.13 or newer", CPU_BUILD)
    if told["cuda"] and machine == "aarch64":
        return Finding("torch", "warn", f"{got}; gigabytes that a Pi cannot use", CPU_BUILD)
    return Finding("torch", "ok", got)


def installed(package: str) -> str | None:
    """Version of an installed package; None if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _killed(number: int) -> Finding:
    name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
    if number == signal.SIGILL:
        return Finding(
            "torch",
            "fail",
            "died of an instruction that this processor does not have (SIGILL)",
            "this build of torch is for newer processors (Cortex-A72 and A53 lack atomics that some builds assume); "
            f"another release may do: {CPU_BUILD}",
        )
    if number == signal.SIGKILL:
        return Finding("torch", "fail", "was killed, most likely for want of memory", "free memory, or add zram")
    return Finding("torch", "fail", f"died of {name}", CPU_BUILD)


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers that a version begins with.

    >>> _numbers("2.13.0+cpu")
    (2, 13, 0)
    """
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(number) for number in found[0].split(".")) if found else ()
