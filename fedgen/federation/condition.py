"""What a device tells of itself: plain numbers and short texts, each only where the device knows it."""

import contextlib
import os
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import fedgen

PROC, SYS = Path("/proc"), Path("/sys")
ASK_S = 2.0
"""What the board's own tool may take."""


def condition(client: str, folder: Path = Path(), proc: Path = PROC, sys: Path = SYS) -> dict[str, int | float | str]:
    """How a device is now.

    Args:
        client: its name.
        folder: where it keeps things.
        proc: where the kernel tells of processes.
        sys: where it tells of the hardware.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told: dict[str, int | float | str | None] = {
        "client": client,
        "fedgen": fedgen.__version__,
        "torch": _version("torch"),
        "memory_bytes": memory_bytes(proc, sys),
        "cores": cores,
        "temperature_c": _temperature_c(sys),
        "throttled": _throttled(),
        "battery": _battery(sys),
        "free_disk_bytes": _free_bytes(folder),
    }
    return {name: value for name, value in told.items() if value is not None}


def memory_bytes(proc: Path = PROC, sys: Path = SYS) -> int | None:
    """What this process may hold now: what it holds, and what it could still get; None if nobody says.

    Args:
        proc: where the kernel tells of processes.
        sys: where it tells of limits.
    """
    available = _kilobytes(proc / "meminfo", "MemAvailable")
    held = _kilobytes(proc / "self" / "status", "VmRSS")
    if available is None or held is None:
        return None
    return held + max(0, min([available, *_headroom(proc, sys)]))


def forget_peak() -> None:
    """Has the kernel measure this process's peak memory anew from now on, where it can."""
    with contextlib.suppress(OSError):
        (PROC / "self" / "clear_refs").write_text("5")


def _headroom(proc: Path, sys: Path) -> list[int]:
    """What each limit on this process and on the groups that it is in still leaves."""
    found = []
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = sys / "fs" / "cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = sys / "fs" / "cgroup" / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        place = root / path.strip("/")
        for group in (place, *place.parents):
            limit, used = _text(group / names[0]).strip(), _text(group / names[1]).strip()
            if limit.isdigit() and used.isdigit():
                # Pages of files that nobody uses are given up before anything is refused.
                stat = dict(row.split() for row in _text(group / "memory.stat").splitlines())
                found.append(int(limit) - int(used) + int(stat.get(names[2], "0")))
            if group == root:
                break
    return found


def _temperature_c(sys: Path) -> float | None:
    """Of the hottest place that is measured."""
    texts = [_text(zone).strip() for zone in (sys / "class" / "thermal").glob("thermal_zone*/temp")]
    found = [int(text) / 1000 for text in texts if text.lstrip("-").isdigit()]
    return max(found, default=None)


def _battery(sys: Path) -> float | None:
    """Share of the charge of the emptiest battery."""
    supplies = (sys / "class" / "power_supply").glob("*/capacity")
    texts = [_text(file).strip() for file in supplies if _text(file.parent / "type").strip() == "Battery"]
    return min((int(text) / 100 for text in texts if text.isdigit()), default=None)


def _free_bytes(folder: Path) -> int | None:
    """What the file system of a folder has left; None where the folder may not even be looked at."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _throttled() -> str | None:
    """What a Raspberry Pi says of low voltage and heat, as bits."""
    command = shutil.which("vcgencmd")
    if command is None:
        return None
    try:
        asked = subprocess.run([command, "get_throttled"], capture_output=True, text=True, timeout=ASK_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip().removeprefix("throttled=")[:32] or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _kilobytes(file: Path, name: str) -> int | None:
    for line in _text(file).splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
