"""Memory, disk and heat, as the kernel and the board's firmware tell them."""

import os
import shutil
from pathlib import Path

from fedgen.deployment.finding import Finding
from fedgen.deployment.throttling import NOW, VOLTAGE, bits_of, words
from fedgen.federation.condition import condition, memory_bytes
from fedgen.report.text import num_bytes

ROOT = Path("/")

LEAST_TOTAL_BYTES = 850_000_000
"""Flower's three processes (390 MB, measured) and a worker without a model (290 MB), beside the operating system."""

LEAST_FREE_BYTES = 700_000_000
SWAP_BELOW_BYTES = 4_100_000_000
"""Boards with less memory than this want something to fall back on."""

LEAST_DISK_BYTES, ENOUGH_DISK_BYTES = 500_000_000, 2_000_000_000
HOT_C, TOO_HOT_C = 80.0, 85.0
"""A Raspberry Pi slows down from here, and from there to a crawl."""


def memory(root: Path = ROOT) -> Finding:
    """How much memory there is, and how much of it a worker could have now."""
    told = meminfo(root)
    total, free = told.get("MemTotal"), available_bytes(root)
    if total is None or free is None:
        return Finding("memory", "warn", "the kernel does not tell", "")
    got = f"{num_bytes(free)} available of {num_bytes(total)}"
    if total < LEAST_TOTAL_BYTES:
        return Finding(
            "memory", "fail", got, f"take a board with 1 GB or more; {num_bytes(LEAST_TOTAL_BYTES)} are needed at least"
        )
    if free < LEAST_FREE_BYTES:
        return Finding("memory", "warn", got, "stop other programs; on a Pi, run without a desktop")
    return Finding("memory", "ok", got)


def swap(root: Path = ROOT) -> Finding:
    """Whether memory can be compressed when it runs short, instead of killing the worker or wearing out the card."""
    total, kinds = meminfo(root).get("MemTotal", 0), _swaps(root)
    size = num_bytes(meminfo(root).get("SwapTotal", 0))
    if any("zram" in name for name in kinds):
        return Finding("swap", "ok", f"{size}, in compressed memory")
    advice = "sudo apt install zram-tools; compressed memory is faster than a card, and wears nothing out"
    if kinds and any(kind == "file" or "mmcblk" in name for name, kind in kinds.items()) and total < SWAP_BELOW_BYTES:
        return Finding("swap", "warn", f"{size}, on {', '.join(kinds)}", advice)
    if not kinds and total < SWAP_BELOW_BYTES:
        return Finding("swap", "warn", "none", advice)
    return Finding("swap", "ok", size if kinds else "none, and none is needed")


def memory_limit(root: Path = ROOT) -> Finding:
    """Whether the kernel can hold a service to a limit of memory."""
    controllers = _text(root / "sys/fs/cgroup/cgroup.controllers")
    if controllers is None:
        lines = [line.split() for line in (_text(root / "proc/cgroups") or "").splitlines()]
        on = any(fields[0] == "memory" and fields[-1] == "1" for fields in lines if fields)
    else:
        on = "memory" in controllers.split()
    if on:
        return Finding("memory cgroup", "ok", "on")
    return Finding(
        "memory cgroup",
        "warn",
        "off, so MemoryMax= of a service does nothing",
        "append `cgroup_enable=memory` to the line in /boot/firmware/cmdline.txt, and start again",
    )


def disk(folder: Path) -> Finding:
    """Free space where the data and the models go."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    got = f"{num_bytes(free)} free for {folder}"
    if free < LEAST_DISK_BYTES:
        return Finding("disk", "fail", got, "make room: `sudo apt clean`, old runs and logs, or a larger card")
    if not os.access(there, os.W_OK):
        return Finding(
            "disk", "fail", f"{there} cannot be written", "mount it writable, or run as the user who owns it"
        )
    if free < ENOUGH_DISK_BYTES:
        return Finding("disk", "warn", got, "make room soon: old runs and logs, `sudo apt clean`")
    return Finding("disk", "ok", got)


def heat(root: Path = ROOT) -> Finding:
    """Temperature, and what the firmware says of power and throttling, where there is one that says it."""
    told = condition("", proc=root / "proc", sys=root / "sys")
    found, bits = told.get("temperature_c"), bits_of(str(told.get("throttled", "")))
    degrees = None if found is None else float(found)
    got = ", ".join(filter(None, ["" if degrees is None else f"{degrees:.0f} °C", words(bits)])) or "no sensor"
    if bits & VOLTAGE:
        return Finding("heat and power", "warn", got, "use the board's official power supply and a short cable")
    if degrees is not None and degrees >= TOO_HOT_C:
        return Finding("heat and power", "fail", got, "let it cool down, and give it a heat sink or a fan")
    if (degrees is not None and degrees >= HOT_C) or bits & NOW:
        return Finding("heat and power", "warn", got, "it slows down: give it a heat sink or a fan")
    return Finding("heat and power", "ok", got)


def available_bytes(root: Path = ROOT) -> int | None:
    """Memory that a worker could have: what the kernel calls available, or what limits leave if that is less."""
    return memory_bytes(root / "proc", root / "sys")


def meminfo(root: Path = ROOT) -> dict[str, int]:
    """What /proc/meminfo says, in bytes."""
    fields = (line.split() for line in (_text(root / "proc/meminfo") or "").splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in fields if len(line) > 1 and line[1].isdigit()}


def _swaps(root: Path) -> dict[str, str]:
    """Device or file → kind."""
    fields = [line.split() for line in (_text(root / "proc/swaps") or "").splitlines()[1:]]
    return {line[0]: line[1] for line in fields if len(line) > 1}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
