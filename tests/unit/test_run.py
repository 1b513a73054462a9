import errno
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from fedgen import run as runs
from fedgen.errors import ConfigError, RunError
from fedgen.run import Run

EVENING = datetime(2026, 11, 23, 22, 15)
FILES = {"experiment.yaml": "seed: 0\n", "environment.json": "{}\n"}


def make(root: Path, name: str = "smart_home") -> Run:
    return runs.create(root, name, FILES, now=EVENING)


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events: list[str] = []
    sync, rename = os.fsync, os.rename

    def noted_sync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def noted_rename(source: Path, target: Path) -> None:
        events.append(f"{source.name} becomes {target.name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "rename", noted_rename)
    make(tmp_path)
    *synced, temporary, renamed, last = events
    assert sorted(synced) == ["checkpoints", "environment.json", "experiment.yaml", "metrics.jsonl"]
    assert renamed == f"{temporary} becomes 2026-11-23T2215-smart_home"
    assert last == tmp_path.name


def forked(work: Callable[[], object]) -> int:
    """Runs something in a process of its own, which ends with 0 if the work does; gives its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- birth -------------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_all_that_it_needs(tmp_path):
    run = make(tmp_path / "deep" / "runs")
    assert run.path == tmp_path / "deep" / "runs" / "2026-11-23T2215-smart_home"
    assert names(run.path) == ["checkpoints", "environment.json", "experiment.yaml", "metrics.jsonl"]
    assert run.experiment_file.read_text() == "seed: 0\n"
    assert run.metrics_file.read_bytes() == b""
    assert names(run.checkpoints) == []
    assert names(run.path.parent) == [run.path.name]
    assert runs.open_run(run.path) == run


def test_the_date_is_that_of_now(tmp_path):
    before = f"{datetime.now():%Y-%m-%dT%H%M}"
    run = runs.create(tmp_path, "a", FILES)
    assert before <= run.path.name.removesuffix("-a") <= f"{datetime.now():%Y-%m-%dT%H%M}"


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    (tmp_path / "2026-11-23T2215-smart_home-2").write_text("a file")
    made = [make(tmp_path).path.name for _ in range(3)]
    assert made == [f"2026-11-23T2215-smart_home{suffix}" for suffix in ("", "-3", "-4")]


def test_processes_that_start_together_get_a_folder_each(tmp_path):
    script = "import sys; from test_run import make, Path; print(make(Path(sys.argv[1])).path.name)"
    search = os.pathsep.join([str(Path(__file__).parent), str(Path(runs.__file__).parents[1])])
    command, place = [sys.executable, "-c", script, str(tmp_path)], {**os.environ, "PYTHONPATH": search}
    started = [subprocess.Popen(command, env=place, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    made = {process.communicate()[0].strip() for process in started}
    assert made == set(names(tmp_path))
    assert len(made) == 4


@pytest.mark.parametrize("name", ["seed=1,client.learning_rate=1e-3,x+y", "a", "0" * 121])
def test_names_that_fit(tmp_path, name):
    assert make(tmp_path, name).path.name == f"2026-11-23T2215-{name}"


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/b", "/etc", ".hidden", "-rf", "a b", "a\n", "a\0", "ä", "а", "a" * 122, "[red]", "~"],
)
def test_names_that_do_not(tmp_path, name):
    with pytest.raises(ConfigError, match="expected 1 to 121 of the characters") as caught:
        make(tmp_path, name)
    assert repr(name) in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("step", ["write", "fsync", "mkdir", "rename", "open"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_birth_that_fails_leaves_nothing(tmp_path, monkeypatch, step, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises((RunError, KeyboardInterrupt)) as caught:
            make(tmp_path)
    assert isinstance(caught.value, KeyboardInterrupt) or "Free some space" in str(caught.value)
    if step != "open":  # without it the temporary folder cannot even be listed
        assert names(tmp_path) == []


def make_and_die(root: Path, number: int) -> None:
    """Makes a run folder, and kills its own process before the n-th change to the disk."""
    steps = itertools.count(1)

    def guarded(step: Callable[..., object], *args: object, **options: object) -> object:
        if next(steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        for step in ("open", "write", "mkdir", "rename"):
            patch.setattr(os, step, functools.partial(guarded, getattr(os, step)))
        make(root, "killed")


def test_a_birth_that_is_killed_leaves_nothing_under_its_name(tmp_path, monkeypatch):
    # Only a power cut makes a difference between what is on the disk and what the system has in memory.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for number in itertools.count(1):
        child = forked(functools.partial(make_and_die, tmp_path / "runs", number))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for path in (tmp_path / "runs").glob("2*"):
            assert runs.open_run(path).path == path
        make(tmp_path / "runs", "next")
        assert [name for name in names(tmp_path / "runs") if name.startswith(".")] == []
        if status == 0:
            break
        assert status == -signal.SIGKILL
        shutil.rmtree(tmp_path / "runs")
    assert number > 8


def test_only_the_leftovers_of_dead_processes_are_swept(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, alive, old = (f".x.tmp-{pid}-0123abc{i}" for i, pid in enumerate((gone.pid, os.getpid(), os.getpid())))
    for name in (dead, alive, old, "x.tmp-1-01234567", ".git"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    os.utime(tmp_path / old, (0, 0))
    make(tmp_path)
    assert names(tmp_path) == [".git", alive, "2026-11-23T2215-smart_home", "x.tmp-1-01234567"]


def test_a_root_that_cannot_be_used_is_explained(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match="A file stands where a folder is needed"):
        make(tmp_path / "runs")
    with pytest.raises(RunError, match="A file stands where a folder is needed"):
        make(tmp_path / "runs" / "below")


@pytest.mark.usefixtures("bound_by_permissions")
def test_an_unwritable_root_is_explained(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(RunError, match="Make it writable for this user"):
        make(tmp_path)


# --- finding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["experiment.yaml", "environment.json", "metrics.jsonl", "checkpoints"])
def test_a_half_run_folder_says_what_is_missing(tmp_path, name):
    path = make(tmp_path).path
    shutil.rmtree(path / name) if name == "checkpoints" else (path / name).unlink()
    with pytest.raises(RunError, match=rf"not a whole run folder: {name}/? missing"):
        runs.open_run(path)


def test_a_run_that_is_not_there_brings_up_those_that_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="there is no run at gone; start one with `fedgen train`"):
        runs.open_run(Path("gone"))
    make(Path("runs"))
    for typo in ("runs/2026-11-23T2251-smart_home", "smart_home", "2026-11-23T2215-smarthome"):
        with pytest.raises(RunError, match=rf"no run at {typo}; did you mean runs/2026-11-23T2215-smart_home\?"):
            runs.open_run(Path(typo))
    with pytest.raises(RunError, match="there are 1 runs in runs"):
        runs.open_run(Path("zzz"))


def test_files_and_folders_of_runs_are_told_apart_from_runs(tmp_path):
    run = make(tmp_path)
    with pytest.raises(RunError, match=f"is a file; did you mean {run.path}"):
        runs.open_run(run.metrics_file)
    with pytest.raises(RunError, match=f"holds 1 runs and is none itself; name one of them, {run.path} say"):
        runs.open_run(tmp_path)
    with pytest.raises(RunError, match="File name too long"):
        runs.open_run(tmp_path / ("a" * 300))


# --- locking -----------------------------------------------------------------------------------------------------


def test_a_second_process_is_told_who_works_on_the_run(tmp_path):
    run = make(tmp_path)
    reader, writer = os.pipe()

    def hold() -> None:
        with runs.lock(run):
            os.write(writer, b"locked")
            signal.pause()

    child = forked(hold)
    try:
        assert os.read(reader, 6) == b"locked"
        with pytest.raises(RunError, match=f"worked on by process {child};"), runs.lock(run):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with runs.lock(run):
        assert (run.path / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_lock_ends_with_its_body_even_if_a_worker_was_forked_in_it(tmp_path):
    run = make(tmp_path)
    with runs.lock(run):
        child = forked(signal.pause)
        with pytest.raises(RunError, match=f"process {os.getpid()};"), runs.lock(run):
            pass
    try:
        with runs.lock(run):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_locking_puts_back_a_folder_that_a_crash_caught_between_two_renames(tmp_path):
    run = make(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    aside = run.path / f".adapter.old-{gone.pid}-0123abcd"
    aside.mkdir()
    (aside / "weights").write_text("whole")
    with runs.lock(run):
        assert (run.adapter / "weights").read_text() == "whole"
        assert not aside.exists()


# --- environment -------------------------------------------------------------------------------------------------


def test_the_environment_is_plain_json_and_says_nothing_about_whose_it_is():
    environment = runs.environment()
    text = json.dumps(environment, allow_nan=False)
    assert environment["packages"]["torch"].startswith("2.")
    assert environment["num_cores"] >= environment["num_usable_cores"] >= 1
    assert environment["memory_bytes"] > 2**28
    assert environment["processor"]
    private = (os.uname().nodename, str(Path.home()), os.environ.get("USER", ""))
    assert not [word for word in private if len(word) > 3 and word in text]


def test_run_folders_need_no_torch():
    script = "import sys, fedgen.run; fedgen.run.environment(); sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    search = str(Path(runs.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": search}).returncode == 0
