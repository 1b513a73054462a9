import errno
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgen.errors import RunError
from fedgen.journal import Journal, read


def client(round: int, name: str = "home-0", loss: float = 0.5) -> dict[str, object]:
    return {"kind": "client", "round": round, "client": name, "loss": loss, "seconds": {"wait": 0.25}}


def summary(round: int) -> dict[str, object]:
    return {"kind": "round", "round": round, "evaluation": {"utterances": {"exact_match": round / 8}}}


def end(round: int) -> list[dict[str, object]]:
    talk = {"kind": "conversation", "round": round, "text": "mach das Licht in der Küche an"}
    return [talk, {"kind": "report", "round": round}, {"kind": "end", "round": round, "seconds": 1.5}]


@pytest.fixture
def path(tmp_path) -> Path:
    """A journal of three rounds."""
    path = tmp_path / "metrics.jsonl"
    with Journal.open(path, after_round=None) as journal:
        for round in range(3):
            journal.write([client(round), summary(round)])
    return path


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def finite(value):
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, list) else value


@given(records=st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=4))
def test_any_record_comes_back_with_null_for_what_is_not_finite(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("journal") / "metrics.jsonl"
    with Journal.open(path, after_round=None) as journal:
        journal.write(records)
    assert read(path) == [finite(record) for record in records]

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    for line in path.read_text(encoding="ascii").splitlines():
        json.loads(line, parse_constant=refuse)


def test_lines_are_appended_in_order(path):
    assert read(path) == [record for round in range(3) for record in (client(round), summary(round))]
    assert path.read_text().splitlines()[0] == json.dumps(client(0))


def test_the_lines_of_a_round_are_one_write_and_one_sync(path, monkeypatch):
    calls: list[str] = []
    for name in ("write", "fsync"):
        step = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, step=step: (calls.append(name), step(*args))[1])
    with Journal.open(path, after_round=2) as journal:
        calls.clear()
        journal.write([client(3, f"home-{index}") for index in range(50)])
        assert calls == ["write", "fsync"]
        journal.write([])
        assert calls == ["write", "fsync"]
    assert len(read(path)) == 56


@pytest.mark.parametrize("after_round", [-1, 0, 1, 2, 7])
def test_a_continued_run_keeps_the_rounds_that_are_over(path, after_round):
    Journal.open(path, after_round=after_round).close()
    assert [record["round"] for record in read(path)] == [r for r in (0, 0, 1, 1, 2, 2) if r <= after_round]


def test_a_run_from_the_beginning_keeps_nothing(path):
    Journal.open(path, after_round=None).close()
    assert path.read_bytes() == b""


def test_a_journal_that_needs_no_change_is_not_rewritten(path):
    before = path.stat().st_ino, path.stat().st_mtime_ns
    Journal.open(path, after_round=2).close()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before


def test_every_cut_of_the_last_line_is_dropped_and_made_again(path):
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        assert len(read(path)) == 5
        with Journal.open(path, after_round=1) as journal:
            assert [record["round"] for record in read(path)] == [0, 0, 1, 1]
            journal.write([client(2), summary(2)])
        assert path.read_bytes() == whole


def test_a_torn_tail_of_zeros_is_dropped(path):
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(500))
    assert len(read(path)) == 6
    Journal.open(path, after_round=2).close()
    assert path.read_bytes() == whole


def test_a_finished_run_stays_as_it_is_and_an_unfinished_ending_goes(path):
    with Journal.open(path, after_round=2) as journal:
        journal.write(end(2))
    whole = path.read_bytes()
    Journal.open(path, after_round=2).close()
    assert path.read_bytes() == whole
    path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    Journal.open(path, after_round=2).close()
    assert {record["kind"] for record in read(path)} == {"client", "round"}
    path.write_bytes(whole)
    Journal.open(path, after_round=1).close()
    assert [record["round"] for record in read(path)] == [0, 0, 1, 1]


def test_a_record_without_a_round_belongs_to_no_round_that_is_over(path):
    with Journal.open(path, after_round=2) as journal:
        journal.write([{"kind": "warning", "text": "?"}])
    Journal.open(path, after_round=2).close()
    assert {record["kind"] for record in read(path)} == {"client", "round"}


@pytest.mark.parametrize(
    ("damage", "why"), [(b"{", "line 3 is damaged"), (b"\xff", "line 3 is damaged"), (b"[1]", "line 3 is not a record")]
)
def test_a_damaged_line_is_named(path, damage, why):
    lines = path.read_bytes().split(b"\n")
    lines[2] = damage
    path.write_bytes(b"\n".join(lines))
    for use in (lambda: read(path), lambda: Journal.open(path, after_round=2)):
        with pytest.raises(RunError, match=why) as caught:
            use()
        assert str(path) in str(caught.value)
    assert path.read_bytes() == b"\n".join(lines)


def test_missing_and_misplaced_files_are_explained(tmp_path):
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be read: No such file"):
        read(tmp_path / "metrics.jsonl")
    with pytest.raises(RunError, match=r"cannot write .*: Is a directory"):
        Journal.open(tmp_path, after_round=None)


@pytest.mark.parametrize("step", ["write", "fsync"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_lines_that_cannot_be_kept_leave_no_trace(path, monkeypatch, step, error):
    whole, write = path.read_bytes(), os.write

    def fail(descriptor: int, *content: bytes) -> int:
        if content:
            write(descriptor, content[0][: len(content[0]) // 2])
        raise error

    with Journal.open(path, after_round=2) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            with pytest.raises((RunError, KeyboardInterrupt)) as caught:
                journal.write([client(3), summary(3)])
        assert isinstance(caught.value, KeyboardInterrupt) or "Free some space" in str(caught.value)
        assert path.read_bytes() == whole
        journal.write([client(3), summary(3)])
    assert len(read(path)) == 8


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
def test_a_disk_that_is_really_full_keeps_the_lines_before(small_disk):
    with Journal.open(small_disk / "metrics.jsonl", after_round=None) as journal:
        journal.write([summary(0)])
        with pytest.raises(RunError, match=r"No space left on device .*Free some space"):
            journal.write([client(1, "x" * 100_000)])
        assert read(small_disk / "metrics.jsonl") == [summary(0)]
        journal.write([summary(1)])
    assert read(small_disk / "metrics.jsonl") == [summary(0), summary(1)]


def test_closing_twice_is_fine(path):
    journal = Journal.open(path, after_round=2)
    journal.close()
    journal.close()
    assert len(read(path)) == 6
