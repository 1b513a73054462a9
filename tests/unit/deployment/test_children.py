"""Processes that are kept: started again, given up in time, and none left behind. Each test is a process of its own."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fedgen.deployment import children as module

ROOT = Path(__file__).parents[3]
BEGIN = """
import logging, os, signal, subprocess, sys, time
from pathlib import Path
from fedgen.deployment.children import Child, Children
log = logging.Logger("test")
log.addHandler(logging.StreamHandler(sys.stdout))
kept = Children(Path(sys.argv[1]), log)
def run(name, script, **more):
    kept.keep(Child(name, lambda: [sys.executable, "-c", script], dict(os.environ), **more))
def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "never came"
        kept.step()
        time.sleep(0.02)
def wrote(name):
    path = Path(sys.argv[1]) / f"{name}.log"
    return path.read_text().split() if path.exists() else []
"""


def start(folder, script):
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + textwrap.dedent(script), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def carry_out(folder, script):
    done = start(folder, script)
    said = done.communicate(timeout=60)[0]
    assert done.returncode == 0, said
    return said


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids, seconds=10):
    end = time.monotonic() + seconds
    while any(map(lives, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(lives, pids))


def test_who_ends_is_started_again_and_waits_longer_each_time(tmp_path):
    said = carry_out(
        tmp_path,
        """
        run("brief", "import sys; print('x'); sys.exit(3)", explain=lambda ended: f"It said {ended.output.strip()}")
        began = time.monotonic()
        until(lambda: len(wrote("brief")) == 3)
        assert 0.8 + 1.6 <= time.monotonic() - began, time.monotonic() - began
        kept.close()
        """,
    )
    first, second = [line for line in said.splitlines() if "ended" in line][:2]
    assert first == "brief ended (exit status 3); again in 1 s. It said x"
    assert second == "brief ended (exit status 3); again in 2 s"


def test_only_the_last_start_is_explained(tmp_path):
    (tmp_path / "brief.log").write_text("old\n")
    said = carry_out(
        tmp_path,
        """
        run("brief", "import os; os.kill(os.getpid(), 9)", explain=lambda ended: repr(ended.output))
        until(lambda: kept._kept["brief"].failures == 1)
        kept.close()
        """,
    )
    assert "brief ended (killed by signal 9); again in 1 s. ''" in said


def test_who_is_not_ready_is_asked_again(tmp_path):
    carry_out(
        tmp_path,
        """
        asked = []
        run("late", "print('up', flush=True); import time; time.sleep(60)",
            ready=lambda: asked.append(time.monotonic()) or (0.2 if len(asked) < 3 else None))
        until(lambda: wrote("late") == ["up"])
        assert len(asked) == 3 and asked[2] - asked[0] >= 0.4
        kept.close()
        """,
    )


def test_nobody_is_left_behind(tmp_path):
    """One that will not hear, one that has left the family, and one whose parent has died before."""
    deaf = tmp_path / "deaf.py"
    deaf.write_text(
        "import signal, os, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(60)\n"
    )
    (tmp_path / "orphan.py").write_text(f"import subprocess, sys\nsubprocess.Popen([sys.executable, {str(deaf)!r}])\n")
    (tmp_path / "tree.py").write_text(
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, {str(deaf)!r}], start_new_session=True)\n"
        f"subprocess.run([sys.executable, {str(tmp_path / 'orphan.py')!r}])\n"
        "time.sleep(60)\n"
    )
    said = carry_out(
        tmp_path,
        """
        run("tree", (Path(sys.argv[1]) / "tree.py").read_text())
        until(lambda: len(wrote("tree")) == 2)
        print(*wrote("tree"), *kept.pids().values())
        kept.close()
        """,
    )
    pids = said.split()
    assert len(pids) == 3
    assert gone(pids, 0)


def test_what_a_dead_child_had_started_ends_before_it_comes_again_and_others_stay(tmp_path):
    said = carry_out(
        tmp_path,
        """
        nap = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
        run("other", nap)
        run("tree", f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {nap!r}]); {nap}")
        mine = subprocess.Popen([sys.executable, "-c", nap], stdout=subprocess.DEVNULL)
        kept.spared.add(mine.pid)
        until(lambda: len(wrote("tree")) == 2 and wrote("other"))
        first = wrote("tree")
        os.kill(kept.pids()["tree"], signal.SIGKILL)
        until(lambda: len(wrote("tree")) == 4)
        assert mine.poll() is None
        assert kept.pids()["other"] == int(wrote("other")[0])
        print([Path(f"/proc/{pid}").exists() for pid in first])
        kept.close()
        """,
    )
    assert "[False, False]" in said


def test_a_parent_that_is_killed_takes_its_children_along(tmp_path):
    parent = start(
        tmp_path,
        """
        run("nap", "import time; time.sleep(60)")
        until(lambda: kept.pids())
        print(kept.pids()["nap"], flush=True)
        time.sleep(60)
        """,
    )
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    assert lives(pid)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert gone([pid])


def test_who_is_renewed_ends_and_is_started_again_even_if_it_will_not_listen(tmp_path):
    said = carry_out(
        tmp_path,
        """
        import fedgen.deployment.children as module
        module.GRACE_S = 0.5
        run("kind", "import time; print('up', flush=True); time.sleep(60)")
        run("deaf", "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)")
        until(lambda: wrote("kind") and wrote("deaf"))
        before = kept.pids()
        for name in before:
            kept.renew(name)
            kept.renew(name)
        until(lambda: len(wrote("kind")) == 2 and len(wrote("deaf")) == 2)
        assert not {*kept.pids().values()} & {*before.values()}
        kept.close()
        """,
    )
    assert "kind ended (killed by signal 15)" in said
    assert "deaf ended (killed by signal 9)" in said


def test_who_will_not_end_is_killed(tmp_path):
    carry_out(
        tmp_path,
        """
        import fedgen.deployment.children as module
        module.GRACE_S = 0.5
        run("deaf", "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)")
        until(lambda: wrote("deaf"))
        began = time.monotonic()
        kept.close()
        assert 0.5 <= time.monotonic() - began < 5
        assert kept.pids() == {}
        """,
    )


@pytest.mark.parametrize("num_bytes", [0, module.LOG_BYTES])
def test_a_short_log_stays(tmp_path, num_bytes):
    path = tmp_path / "x.log"
    path.write_bytes(b"a" * num_bytes)
    module._rotate(path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.log"]


def test_a_long_log_is_moved_and_its_writer_goes_on(tmp_path):
    path = tmp_path / "x.log"
    with open(path, "ab", buffering=0) as writer:
        for number in range(5):
            writer.write(str(number).encode() * (module.LOG_BYTES + 1))
            module._rotate(path)
        writer.write(b"end")
    assert path.read_bytes() == b"end"
    kept = {path.name: path.read_bytes()[:1] for path in tmp_path.iterdir() if path.name != "x.log"}
    assert kept == {"x.log.1": b"4", "x.log.2": b"3", "x.log.3": b"2"}


def test_a_missing_log_is_no_matter(tmp_path):
    module._rotate(tmp_path / "x.log")
