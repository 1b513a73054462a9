"""Nothing outlives the process that holds the leash, whatever it does to get away."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Starts a grandchild in a session of its own, which ignores signals and whose parent ends at once.
RUNAWAY = """
import os, pathlib, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
time.sleep(float(sys.argv[2]))
sys.exit(7)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, timeout_s=30.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def leash(tmp_path, seconds):
    folder, note = tmp_path / "folder", tmp_path / "note"
    folder.mkdir()
    (folder / "something").write_text("left")
    command = [sys.executable, "-m", "fedgen.federation.leash", str(folder)]
    command += [sys.executable, "-c", RUNAWAY, str(note), str(seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    until(lambda: (note.exists() and note.read_text()) or process.poll() is not None)
    return process, int(note.read_text()), folder


def let_go(process):
    process.stdin.close()


def terminate(process):
    process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(("end", "status"), [(let_go, 0), (terminate, 0), (lambda process: None, 7)])
def test_everything_ends_with_the_leash_and_the_folder_goes(tmp_path, end, status):
    process, runaway, folder = leash(tmp_path, 0.3 if status else 600)
    assert status or alive(runaway)
    end(process)
    assert process.wait(30) == status
    assert not alive(runaway)
    assert not folder.exists()
    process.stdin.close()


def test_a_holder_that_is_killed_lets_go(tmp_path):
    script = "import sys, time; from tests.unit.federation.test_leash import leash; import pathlib\n"
    script += "_, runaway, _ = leash(pathlib.Path(sys.argv[1]), 600); print(runaway, flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    runaway = int(holder.stdout.readline())
    assert alive(runaway)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    until(lambda: not alive(runaway) and not (tmp_path / "folder").exists())
