"""Payloads in turn, with real files."""

import os
import resource
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgen.errors import RunError
from fedgen.messages import Payload
from fedgen.turns import Stored, Turns

NAMES = ("ada", "ben", "cleo", "dora", "emil", "fay")


def made(client: str, num_bytes: int = 100) -> Payload:
    """A payload that no other client has."""
    number = NAMES.index(client)
    data = (torch.arange(num_bytes) * (2 * number + 1) + number).to(torch.uint8)
    return Payload(((f"wéight.{number}", "float32", (number, 5)), ("scalar", "int64", ())), data)


def same(a: Payload, b: Payload) -> bool:
    return a.manifest == b.manifest and a.data.dtype == b.data.dtype and torch.equal(a.data, b.data)


@pytest.fixture
def turns(tmp_path) -> Iterator[Turns]:
    opened = Turns(NAMES, tmp_path)
    yield opened
    opened.close()


@settings(max_examples=60)
@given(
    arrivals=st.permutations(NAMES),
    sizes=st.lists(st.sampled_from([0, 1, 64, 1000, 70_000]), min_size=6, max_size=6),
    unusable=st.sets(st.sampled_from(NAMES)),
    absent=st.sets(st.sampled_from(NAMES)),
)
def test_any_order_of_arrival_gives_the_order_of_the_cohort_and_the_same_bytes(arrivals, sizes, unusable, absent):
    sent = {client: made(client, size) for client, size in zip(NAMES, sizes, strict=True)}
    got = []
    with tempfile.TemporaryDirectory() as folder:
        turns = Turns(NAMES, Path(folder))
        for client in arrivals:
            if client not in absent:
                got += turns.arrive(client, None if client in unusable else sent[client])
        got += turns.rest()
        turns.close()
        assert os.listdir(folder) == []
    assert [client for client, _ in got] == [client for client in NAMES if client not in unusable | absent]
    assert all(same(payload, sent[client]) for client, payload in got)


def test_what_lies_somewhere_already_is_read_when_its_turn_is_and_not_written_again(turns, tmp_path):
    read = []

    def stored(client: str) -> Stored:
        def load() -> Payload:
            read.append(client)
            return made(client)

        return load

    assert list(turns.arrive("ben", stored("ben"))) == []
    assert list(turns.arrive("cleo", made("cleo"))) == []
    assert list(turns.arrive("emil", stored("emil"))) == []
    assert read == []
    assert num_bytes_waiting(tmp_path) < 200
    due = turns.arrive("ada", stored("ada"))
    assert next(due)[0] == "ada"
    assert read == ["ada"]
    assert [client for client, _ in due] == ["ben", "cleo"]
    assert read == ["ada", "ben"]
    assert num_bytes_waiting(tmp_path) == 0  # emil's is not in the file
    ((client, payload),) = turns.rest()
    assert client == "emil"
    assert same(payload, made("emil"))


def test_each_is_handed_on_as_soon_as_nobody_before_it_is_missing(turns):
    def arrive(client: str, payload: Payload | None) -> list[str]:
        return [due for due, _ in turns.arrive(client, payload)]

    assert arrive("cleo", made("cleo")) == []
    assert arrive("ada", made("ada")) == ["ada"]
    assert arrive("dora", None) == []
    assert arrive("fay", made("fay")) == []
    assert arrive("ben", None) == ["cleo"]
    assert [client for client, _ in turns.rest()] == ["fay"]
    assert list(turns.rest()) == []


def test_what_is_in_turn_does_not_touch_the_disk(tmp_path):
    turns = Turns(NAMES, tmp_path / "gone")
    for client in NAMES:
        payload = made(client)
        assert [handed for _, handed in turns.arrive(client, payload)] == [payload]
    turns.close()


def test_what_waits_has_no_name_and_takes_no_memory(turns, tmp_path):
    size = 1_000_000
    for client in NAMES[1:]:
        assert list(turns.arrive(client, made(client, size))) == []
    assert os.listdir(tmp_path) == []
    kept = [value for value in vars(turns).values() if isinstance(value, dict)]
    assert not any(isinstance(item, Payload | bytes | torch.Tensor) for part in kept for item in part.values())
    got = list(turns.arrive("ada", made("ada", size)))
    assert all(same(payload, made(client, size)) for client, payload in got)
    assert len(got) == len(NAMES)


def test_what_waited_lies_in_memory_as_what_did_not(turns):
    """Products of matrices may depend on how their operands are aligned."""
    list(turns.arrive("ben", made("ben", 4096)))
    _, waited = list(turns.arrive("ada", made("ada", 4096)))[1]
    assert waited.data.data_ptr() % 64 == torch.zeros(4096, dtype=torch.uint8).data_ptr() % 64 == 0


def num_bytes_waiting(folder: Path) -> int:
    """Size of the files in a folder that this process holds open, with a name or without."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(link.stat().st_size for link in links if os.readlink(link).startswith(f"{folder}/"))


def test_the_file_is_as_long_as_what_waits(turns, tmp_path):
    list(turns.arrive("ben", made("ben", 5000)))
    assert 5000 < num_bytes_waiting(tmp_path) < 5200
    list(turns.arrive("dora", made("dora", 1000)))
    assert 6000 < num_bytes_waiting(tmp_path) < 6400
    assert len(list(turns.arrive("ada", None))) == 1
    assert num_bytes_waiting(tmp_path) > 0
    assert len(list(turns.arrive("cleo", None))) == 1
    assert num_bytes_waiting(tmp_path) == 0
    list(turns.arrive("fay", made("fay", 1000)))
    assert 1000 < num_bytes_waiting(tmp_path) < 1200


def test_only_one_payload_is_read_back_at_a_time(turns):
    for client in NAMES[1:]:
        list(turns.arrive(client, made(client)))
    due = turns.arrive("ada", made("ada"))
    assert next(due)[0] == "ada"
    assert next(due)[0] == "ben"
    # The others still wait, and come when they are asked for.
    assert [client for client, _ in due] == list(NAMES[2:])


def forked(work) -> int:
    """Exit status of work that is done in a process of its own."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_space_is_given_back_when_nothing_waits(tmp_path):
    order = [f"{number:03d}" for number in range(100)]
    payload = made("fay", 50_000)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        turns = Turns(order, tmp_path)
        for first, second in zip(order[::2], order[1::2], strict=True):
            assert list(turns.arrive(second, payload)) == []
            assert [client for client, _ in turns.arrive(first, payload)] == [first, second]

    assert forked(work) == 0


def test_a_limit_on_file_sizes_is_explained_and_leaves_the_others_alone(tmp_path):
    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        turns = Turns(NAMES, tmp_path)
        assert list(turns.arrive("ben", made("ben", 50_000))) == []
        with pytest.raises(RunError, match="ulimit -f"):
            turns.arrive("cleo", made("cleo", 50_000))
        ((_, ada), (_, ben)) = turns.arrive("ada", made("ada"))
        assert same(ada, made("ada"))
        assert same(ben, made("ben", 50_000))

    assert forked(work) == 0


@pytest.mark.parametrize("small_disk", ["1m"], indirect=True)
def test_a_full_disk_is_explained(small_disk):
    turns = Turns(NAMES, small_disk)
    with pytest.raises(RunError, match=r"No space left on device \(0 bytes are free there\)\. Free some space"):
        turns.arrive("ben", made("ben", 2_000_000))
    turns.close()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    turns = Turns(NAMES, tmp_path / "gone")
    with pytest.raises(RunError, match="gone"):
        turns.arrive("ben", made("ben"))


def test_short_writes_and_reads_are_carried_on(turns, monkeypatch):
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda file, content, start: write(file, content[:7], start))
    monkeypatch.setattr(os, "preadv", lambda file, parts, start: read(file, [parts[0][:5]], start))
    list(turns.arrive("ben", made("ben")))
    assert same(list(turns.arrive("ada", made("ada")))[1][1], made("ben"))


def test_a_disk_that_fails_is_explained(turns, monkeypatch):
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    list(turns.arrive("ben", made("ben")))
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(RunError, match="cannot be read back: Input/output error"):
        list(turns.arrive("ada", made("ada")))


def test_arriving_twice_is_our_own_mistake(turns):
    list(turns.arrive("ada", made("ada")))
    list(turns.arrive("cleo", made("cleo")))
    for client in ("ada", "cleo"):
        with pytest.raises(AssertionError, match="arrives once"):
            turns.arrive(client, made(client))


def test_nobody_arrives_after_the_end(turns):
    assert list(turns.rest()) == []
    with pytest.raises(AssertionError, match="before its round is over"):
        turns.arrive("ada", made("ada"))


def test_a_name_that_stands_twice_in_the_order_is_our_own_mistake(tmp_path):
    with pytest.raises(AssertionError, match="one turn"):
        Turns(["ada", "ada"], tmp_path)
