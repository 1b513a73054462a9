import errno
import functools
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgen import checkpoint
from fedgen.checkpoint import Attached, Checkpoint
from fedgen.errors import RunError

FILES = ("state.safetensors", "server.safetensors", "facts.json", "manifest.json")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool)
STEPS = ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir")


def made(round: int, entries: int = 6) -> Checkpoint:
    state = {"b": torch.full((2, entries // 2), float(round)), "a": torch.arange(3, dtype=torch.bfloat16) + round}
    return Checkpoint(round, state, {"momentum": torch.full((3,), -float(round))}, {"strikes": {"home-1": round}})


def saved(folder: Path, *rounds: int) -> None:
    for round in rounds:
        checkpoint.save(folder, made(round), identity="mine", keep=len(rounds))


def same(a: Checkpoint, b: Checkpoint) -> bool:
    pairs = [(a.state, b.state), (a.server, b.server)]
    return (a.round, a.facts) == (b.round, b.facts) and all(
        list(x) == list(y) and all(x[n].dtype == y[n].dtype and torch.equal(x[n], y[n]) for n in x) for x, y in pairs
    )


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# --- there and back ----------------------------------------------------------------------------------------------


def test_the_newest_comes_back_as_it_was(tmp_path):
    saved(tmp_path, 0, 1, 2)
    found, skipped = checkpoint.load_latest(tmp_path, identity="mine")
    assert same(found, made(2))
    assert skipped == []


@st.composite
def states(draw) -> dict[str, torch.Tensor]:
    state = {}
    for name in draw(st.lists(st.text(max_size=8), unique=True, max_size=4)):
        if name == "__metadata__":
            continue
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 4), max_size=3))
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        largest = 1 if dtype is torch.bool else 255
        values = draw(st.lists(st.integers(0, largest), min_size=num_bytes, max_size=num_bytes))
        state[name] = torch.tensor(values, dtype=torch.uint8).view(dtype).view(shape)
    return state


def bits(state: dict[str, torch.Tensor]) -> list[tuple[str, torch.dtype, torch.Size, list[int]]]:
    return [(n, t.dtype, t.shape, t.reshape(-1).view(torch.uint8).tolist()) for n, t in state.items()]


@given(state=states(), server=states())
def test_every_bit_of_any_state_comes_back_in_order(tmp_path_factory, state, server):
    folder = tmp_path_factory.mktemp("checkpoints")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        checkpoint.save(folder, Checkpoint(3, state, server, {}), identity="mine")
    found, _ = checkpoint.load_latest(folder, identity="mine")
    assert bits(found.state) == bits(state)
    assert bits(found.server) == bits(server)
    shutil.rmtree(folder)


def test_slices_of_one_array_and_transposed_tensors_can_be_saved(tmp_path):
    packed = torch.arange(12.0)
    state = {"first": packed[:6].view(2, 3).T, "second": packed[6:]}
    checkpoint.save(tmp_path, Checkpoint(1, state, {}, {}), identity="mine")
    found, _ = checkpoint.load_latest(tmp_path, identity="mine")
    assert torch.equal(found.state["first"], torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]))
    assert torch.equal(found.state["second"], torch.arange(6.0, 12.0))


def test_what_was_loaded_does_not_depend_on_the_file_any_more(tmp_path):
    path = checkpoint.save(tmp_path, made(1), identity="mine")
    found, _ = checkpoint.load_latest(tmp_path, identity="mine")
    with (path / "state.safetensors").open("r+b") as file:
        file.write(bytes(os.fstat(file.fileno()).st_size))
    assert same(found, made(1))


def test_facts_that_json_lacks_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path, Checkpoint(1, {}, {}, {"loss": float("nan")}), identity="mine")
    with pytest.raises(ValueError, match="keep is 0"):
        checkpoint.save(tmp_path, made(1), identity="mine", keep=0)
    assert list(tmp_path.iterdir()) == []


def test_only_the_newest_are_kept(tmp_path):
    for round in range(6):
        checkpoint.save(tmp_path, made(round), identity="mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-0004", "round-0005"]
    checkpoint.save(tmp_path, made(12_345), identity="mine", keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["round-12345"]


def test_a_run_that_went_back_does_not_lose_what_it_saves_to_damaged_later_rounds(tmp_path):
    saved(tmp_path, 5, 8, 9)
    for round in (8, 9):
        (tmp_path / f"round-{round:04d}" / "manifest.json").unlink()
    checkpoint.save(tmp_path, made(6), identity="mine", keep=1)
    found, skipped = checkpoint.load_latest(tmp_path, identity="mine")
    assert same(found, made(6))
    assert len(skipped) == 2
    checkpoint.save(tmp_path, made(8), identity="mine", keep=1)
    assert same(checkpoint.load_latest(tmp_path, identity="mine")[0], made(8))


def attached(path, content: bytes) -> Attached:
    path.write_bytes(content)
    return Attached(path, len(content), hashlib.sha256(content).hexdigest())


def with_files(round: int, files: dict[str, Attached]) -> Checkpoint:
    return Checkpoint(round, {}, {}, {}, files)


@pytest.mark.parametrize("linking", [True, False])
def test_attached_files_are_moved_in_and_go_along_from_one_checkpoint_to_the_next(tmp_path, monkeypatch, linking):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not linking:
        monkeypatch.setattr(os, "link", refuse)
    first = with_files(1, {"a.bin": attached(tmp_path / ".new", b"abc")})
    first = first.within(checkpoint.save(tmp_path, first, identity="mine"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-0001"]
    second = with_files(2, {**first.attached, "b.bin": attached(tmp_path / ".newer", b"")})
    second = second.within(checkpoint.save(tmp_path, second, identity="mine", keep=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-0002"]
    found, skipped = checkpoint.load_latest(tmp_path, identity="mine")
    assert skipped == []
    assert found.attached == second.attached
    assert {name: file.path.read_bytes() for name, file in found.attached.items()} == {"a.bin": b"abc", "b.bin": b""}
    # Saved again, as by a run that had to go back: what it is made of lies in the folder that is replaced.
    checkpoint.save(tmp_path, second, identity="mine")
    assert checkpoint.load_latest(tmp_path, identity="mine")[0].attached == second.attached
    checkpoint.save(tmp_path, with_files(3, {}), identity="mine")
    assert not (tmp_path / "round-0003" / "a.bin").exists()


def test_a_damaged_attached_file_makes_a_checkpoint_that_is_passed_over(tmp_path):
    for round in (1, 2):
        path = checkpoint.save(
            tmp_path, with_files(round, {"a.bin": attached(tmp_path / ".new", b"abc")}), identity="mine"
        )
    (path / "a.bin").write_bytes(b"abd")
    found, (text,) = checkpoint.load_latest(tmp_path, identity="mine")
    assert found.round == 1
    assert text == "checkpoint round-0002 was skipped: a.bin has changed since it was saved (its SHA-256 differs)"
    (tmp_path / "round-0001" / "a.bin").unlink()
    with pytest.raises(RunError, match=r"a\.bin is missing"):
        checkpoint.load_latest(tmp_path, identity="mine")


def test_files_get_the_rights_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = checkpoint.save(tmp_path, made(1), identity="mine")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}
    assert path.stat().st_mode & 0o777 == 0o750


def test_saving_holds_one_more_copy_of_one_state(tmp_path):
    states = [{"w": torch.zeros(2_000_000)} for _ in range(2)]
    checkpoint.save(tmp_path, made(0), identity="mine")
    tracemalloc.start()
    try:
        checkpoint.save(tmp_path, Checkpoint(1, *states, {}), identity="mine")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 8_000_000 < peak_bytes < 1.1 * 8_000_000


# --- damage ------------------------------------------------------------------------------------------------------


def flip(content: bytes, position: int, bit: int = 0) -> bytes:
    return content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "a bit flipped": lambda path: path.write_bytes(flip(path.read_bytes(), path.stat().st_size * 2 // 3)),
    "last bytes zeroed": lambda path: path.write_bytes(path.read_bytes()[:-4] + bytes(4)),
    "bytes appended": lambda path: path.write_bytes(path.read_bytes() + b"0123456789"),
    "missing": lambda path: path.unlink(),
    "taken from another round": lambda path: shutil.copy(path.parent.parent / "round-0001" / path.name, path),
    "a folder in its place": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path, damage, name):
    saved(tmp_path, 1, 2)
    if "another" in name:
        assert (tmp_path / "round-0001" / name).read_bytes() != (tmp_path / "round-0002" / name).read_bytes()
    damage(tmp_path / "round-0002" / name)
    found, skipped = checkpoint.load_latest(tmp_path, identity="mine")
    assert same(found, made(1))
    (sentence,) = skipped
    assert sentence.startswith("checkpoint round-0002 was skipped: ")
    assert name in sentence or "it holds round 1" in sentence


def test_no_bit_of_a_manifest_can_flip_unnoticed(tmp_path):
    saved(tmp_path, 1)
    path = tmp_path / "round-0001" / "manifest.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(flip(whole, position, bit=position % 8))
        with pytest.raises(RunError, match=r"round-0001 was skipped: manifest\.json (is damaged|has changed)"):
            checkpoint.load_latest(tmp_path, identity="mine")
    path.write_bytes(b"[" * 5_000)
    with pytest.raises(RunError, match="is damaged"):
        checkpoint.load_latest(tmp_path, identity="mine")


def test_checkpoints_of_another_experiment_are_foreign(tmp_path):
    checkpoint.save(tmp_path, made(1), identity="mine")
    checkpoint.save(tmp_path, made(2), identity="theirs")
    found, skipped = checkpoint.load_latest(tmp_path, identity="mine")
    assert found.round == 1
    assert "another experiment" in skipped[0]


def test_a_checkpoint_of_a_newer_fedgen_says_so(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "SCHEMA", 2)
        checkpoint.save(tmp_path, made(2), identity="mine")
    found, skipped = checkpoint.load_latest(tmp_path, identity="mine")
    assert found.round == 1
    assert "newer fedgen" in skipped[0]


def test_a_renamed_checkpoint_is_not_taken_for_a_later_round(tmp_path):
    saved(tmp_path, 1)
    shutil.copytree(tmp_path / "round-0001", tmp_path / "round-0009")
    found, skipped = checkpoint.load_latest(tmp_path, identity="mine")
    assert found.round == 1
    assert skipped == ["checkpoint round-0009 was skipped: it holds round 1, so it was renamed or copied"]


def test_when_nothing_can_be_used_each_is_named(tmp_path):
    saved(tmp_path, 1, 2)
    (tmp_path / "round-0001" / "facts.json").unlink()
    (tmp_path / "round-0002" / "state.safetensors").write_bytes(b"")
    with pytest.raises(
        RunError, match=r"round-0002 .*state\.safetensors.*round-0001 .*facts\.json is missing"
    ) as caught:
        checkpoint.load_latest(tmp_path, identity="mine")
    assert "start a new run" in str(caught.value)


def test_an_empty_and_a_missing_folder_have_messages_of_their_own(tmp_path):
    with pytest.raises(RunError, match="holds no checkpoint"):
        checkpoint.load_latest(tmp_path, identity="mine")
    with pytest.raises(RunError, match="cannot be listed: No such file"):
        checkpoint.load_latest(tmp_path / "gone", identity="mine")


# --- crashes, full disks and impatience --------------------------------------------------------------------------


class Interruptor:
    """Lets the steps of a save through, and does something else in place of the n-th."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, instead: Callable[[], object]) -> None:
        self.at, self.instead, self.count = at, instead, 0
        for step in STEPS:
            patch.setattr(os, step, self._guarded(getattr(os, step)))

    def _guarded(self, step: Callable[..., object]) -> Callable[..., object]:
        def guarded(*args: object, **options: object) -> object:
            self.count += 1
            if self.count == self.at:
                self.instead()
            return step(*args, **options)

        return guarded

    @property
    def reached(self) -> bool:
        return self.count >= self.at


def refuse(error: BaseException) -> Callable[[], object]:
    def instead() -> None:
        raise error

    return instead


@pytest.fixture(params=["a new round", "a round saved before", "the only round saved again"])
def scene(request, tmp_path, monkeypatch) -> tuple[Path, Checkpoint, Checkpoint, int]:
    """Folder, what is in it, what is to be saved (another state), how many to keep."""
    # Only a power cut makes a difference between what is on the disk and what the system has in memory.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    keep = 1 if request.param.startswith("the only") else 2
    old, round = made(2), 3 if request.param == "a new round" else 2
    saved(tmp_path, *([2] if keep == 1 else [1, 2]))
    return tmp_path, old, Checkpoint(round, made(7).state, made(7).server, made(7).facts), keep


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_disk_that_fails_at_any_step_costs_no_checkpoint(scene, number, monkeypatch):
    folder, old, new, keep = scene
    for at in itertools.count(1):
        with monkeypatch.context() as patch:
            disk = Interruptor(patch, at, refuse(OSError(number, os.strerror(number))))
            try:
                checkpoint.save(folder, new, identity="mine", keep=keep)
                message = ""
            except RunError as error:
                message = str(error)
        found, skipped = checkpoint.load_latest(folder, identity="mine")
        assert skipped == []
        if not disk.reached:
            break
        assert same(found, old) or same(found, new)
        if message:
            assert f"cannot write {folder}" in message
            assert os.strerror(number) in message
            assert "bytes are free there" in message
        if same(found, old):
            assert message
            assert hidden(folder) == []
        checkpoint.sweep(folder)
        assert hidden(folder) == []
        shutil.rmtree(folder)
        saved(folder, *([2] if keep == 1 else [1, 2]))
    assert at > 20
    assert same(found, new)


def test_an_impatient_user_costs_no_checkpoint(scene, monkeypatch):
    folder, old, new, keep = scene
    for at in itertools.count(1):
        with monkeypatch.context() as patch:
            user = Interruptor(patch, at, refuse(KeyboardInterrupt()))
            try:
                checkpoint.save(folder, new, identity="mine", keep=keep)
            except KeyboardInterrupt:
                assert user.reached
            else:
                assert not user.reached
        found, skipped = checkpoint.load_latest(folder, identity="mine")
        assert skipped == []
        if not user.reached:
            break
        assert same(found, old) or same(found, new)
        if same(found, old):
            assert hidden(folder) == []
        shutil.rmtree(folder)
        saved(folder, *([2] if keep == 1 else [1, 2]))
    assert at > 20
    assert same(found, new)


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
    checkpoint.save(tmp_path, made(1), identity="mine")
    temporary = events[4]
    assert events == [*FILES, temporary, f"{temporary} becomes round-0001", tmp_path.name]


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


def exit_status(child: int) -> int:
    """Waits for a process; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_process_killed_at_any_step_costs_no_checkpoint(scene):
    folder, old, new, keep = scene
    restored = 0

    def work(at: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            Interruptor(patch, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
            checkpoint.save(folder, new, identity="mine", keep=keep)

    for at in itertools.count(1):
        status = exit_status(forked(functools.partial(work, at)))
        assert status in (0, -signal.SIGKILL)
        restored += any(".old-" in name for name in hidden(folder)) and not (folder / "round-0002").exists()
        found, skipped = checkpoint.load_latest(folder, identity="mine")
        assert skipped == []
        assert same(found, old) or same(found, new)
        for path in folder.glob("round-*"):
            assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
        checkpoint.sweep(folder)
        assert hidden(folder) == []
        after, skipped = checkpoint.load_latest(folder, identity="mine")
        assert skipped == []
        assert same(after, found)
        if status == 0:
            break
        shutil.rmtree(folder)
        saved(folder, *([2] if keep == 1 else [1, 2]))
    assert at > 20
    assert same(found, new)
    assert restored == (0 if new.round == 3 else 1)


def test_kills_at_random_times_lose_no_saved_round(tmp_path):
    moments, done = random.Random(0), 0

    def save_on(first: int, report: int) -> None:
        for round in itertools.count(first):
            checkpoint.save(tmp_path, made(round, entries=100_000), identity="mine")
            os.write(report, f"{round}\n".encode())

    for _ in range(10):
        reader, writer = os.pipe()
        child = forked(functools.partial(save_on, done + 1, writer))
        os.close(writer)
        with os.fdopen(reader) as reports:
            first = reports.readline()
            time.sleep(moments.uniform(0, 0.08))
            os.kill(child, signal.SIGKILL)
            assert exit_status(child) == -signal.SIGKILL
            last = int([first, *reports.read().split()][-1])
        found, skipped = checkpoint.load_latest(tmp_path, identity="mine")
        assert skipped == []
        assert found.round in (last, last + 1)
        assert same(found, made(found.round, entries=100_000))
        checkpoint.sweep(tmp_path)
        assert hidden(tmp_path) == []
        assert len(list(tmp_path.iterdir())) <= 3
        done = found.round
    assert done >= 10


@pytest.mark.parametrize("small_disk", ["1m"], indirect=True)
def test_a_disk_that_is_really_full_keeps_what_was_saved(small_disk):
    saved(small_disk, 1)
    with pytest.raises(RunError, match=r"state\.safetensors: No space left on device \(0 bytes are free there\)"):
        checkpoint.save(small_disk, made(2, entries=400_000), identity="mine")
    assert [path.name for path in small_disk.iterdir()] == ["round-0001"]
    assert same(checkpoint.load_latest(small_disk, identity="mine")[0], made(1))
    saved(small_disk, 2)
    assert checkpoint.load_latest(small_disk, identity="mine")[0].round == 2


def test_a_limit_on_file_sizes_is_explained(tmp_path):
    import resource

    saved(tmp_path, 1)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, 4_096))
        with pytest.raises(RunError, match="ulimit -f"):
            checkpoint.save(tmp_path, made(2, entries=10_000), identity="mine")

    assert exit_status(forked(work)) == 0
    assert hidden(tmp_path) == []
    assert checkpoint.load_latest(tmp_path, identity="mine")[0].round == 1


def test_a_file_in_place_of_the_folder_is_explained(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(RunError, match="A file stands where a folder is needed"):
        checkpoint.save(tmp_path / "checkpoints", made(1), identity="mine")
    (tmp_path / "round-0001").write_text("")
    with pytest.raises(RunError, match="A file stands where a folder is needed"):
        checkpoint.save(tmp_path, made(1), identity="mine")


def test_sweeping_leaves_alone_what_it_does_not_know(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / ".round-0002.tmp-1-0123abcd").mkdir()
    (tmp_path / ".round-0002.tmp-1-0123abcd" / "state.safetensors").write_bytes(bytes(100))
    (tmp_path / "notes.txt").write_text("mine")
    assert checkpoint.sweep(tmp_path) == [".round-0002.tmp-1-0123abcd"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "round-0001"]
    assert checkpoint.sweep(tmp_path / "gone") == []


def test_the_manifest_is_readable_by_people(tmp_path):
    path = checkpoint.save(tmp_path, made(4), identity="mine")
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["schema"], manifest["round"], manifest["identity"]) == (1, 4, "mine")
    assert set(manifest["files"]) == set(FILES) - {"manifest.json"}
    assert manifest["files"]["facts.json"]["bytes"] == len('{"strikes": {"home-1": 4}}')
