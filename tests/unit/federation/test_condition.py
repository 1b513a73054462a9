"""What a device tells of itself, from files as a kernel writes them."""

import os
import stat

import pytest

from fedgen.federation.condition import condition, forget_peak, memory_bytes
from fedgen.records import peak_memory_bytes

MIB = 2**20


def write(root, **files):
    for name, content in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


@pytest.fixture
def board(tmp_path):
    """900 MiB could still be had, and the process holds 100."""
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    write(proc, meminfo=f"MemTotal: 1 kB\nMemAvailable:   {900 * 1024} kB\n")
    write(proc / "self", status=f"Name: x\nVmRSS:\t {100 * 1024} kB\n", cgroup="0::/system.slice/fedgen.service\n")
    return proc, sys


def test_memory_is_what_is_held_and_what_could_be_had(board):
    assert memory_bytes(*board) == 1000 * MIB


def test_a_limit_on_a_group_leaves_less(board):
    slice_ = board[1] / "fs" / "cgroup" / "system.slice"
    write(slice_ / "fedgen.service", **{"memory.max": str(400 * MIB), "memory.current": str(150 * MIB)})
    assert memory_bytes(*board) == (100 + 250) * MIB
    # Pages of files are given up first; a limit further up counts as well, and none is no limit.
    write(slice_ / "fedgen.service", **{"memory.stat": f"anon 5\ninactive_file {30 * MIB}\n"})
    assert memory_bytes(*board) == (100 + 280) * MIB
    write(slice_, **{"memory.max": str(200 * MIB), "memory.current": str(180 * MIB)})
    assert memory_bytes(*board) == (100 + 20) * MIB
    write(slice_, **{"memory.max": "max"})
    write(slice_ / "fedgen.service", **{"memory.max": str(100 * MIB)})
    assert memory_bytes(*board) == 100 * MIB


def test_the_older_kind_of_groups_counts_too(board):
    proc, sys = board
    write(proc / "self", cgroup="4:cpu,cpuacct:/\n3:memory:/fedgen\n")
    place = sys / "fs" / "cgroup" / "memory" / "fedgen"
    write(place, **{"memory.limit_in_bytes": str(300 * MIB), "memory.usage_in_bytes": str(120 * MIB)})
    assert memory_bytes(*board) == (100 + 180) * MIB


def test_what_nobody_says_is_left_out(tmp_path):
    told = condition("barn", tmp_path, tmp_path / "proc", tmp_path / "sys")
    assert {"memory_bytes", "temperature_c", "battery"}.isdisjoint(told)
    assert told["client"] == "barn"
    assert told["free_disk_bytes"] > 0
    assert "free_disk_bytes" not in condition("barn", tmp_path / "away", tmp_path / "proc", tmp_path / "sys")


def test_heat_charge_and_the_boards_own_words_are_told(board, tmp_path, monkeypatch):
    proc, sys = board
    thermal, supplies = sys / "class" / "thermal", sys / "class" / "power_supply"
    write(thermal, thermal_zone0__temp="48312\n", thermal_zone1__temp="51500\n", thermal_zone2__temp="broken\n")
    write(supplies, mains__type="Mains\n", mains__capacity="0\n", BAT0__type="Battery\n", BAT0__capacity="73\n")
    tool = tmp_path / "bin" / "vcgencmd"
    write(tmp_path, bin__vcgencmd="#!/bin/sh\necho throttled=0x50005\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    told = condition("barn", tmp_path, proc, sys)
    assert (told["temperature_c"], told["battery"], told["throttled"]) == (51.5, 0.73, "0x50005")
    tool.write_text("#!/bin/sh\nexit 1\n")
    assert "throttled" not in condition("barn", tmp_path, proc, sys)


def test_a_peak_can_be_forgotten():
    block = bytearray(200 * MIB)
    block[::4096] = b"x" * len(block[::4096])
    high = peak_memory_bytes()
    del block
    forget_peak()
    assert peak_memory_bytes() < high - 100 * MIB
