"""Replies on their way, from round to round, with real checkpoints."""

import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgen import checkpoint, spool
from fedgen.checkpoint import Checkpoint
from fedgen.errors import RunError
from fedgen.late import FACT, Late, left, lines_of
from fedgen.messages import Payload

NOTHING = Checkpoint(0, {}, {}, {})


def made(number: int, num_bytes: int = 100) -> Payload:
    """A payload that no other number has."""
    data = (torch.arange(num_bytes) * (2 * number + 1) + number).to(torch.uint8)
    return Payload(((f"wéight.{number}", "float32", (number, 5)),), data)


def same(a: Payload, b: Payload) -> bool:
    return a.manifest == b.manifest and torch.equal(a.data, b.data)


def line(client: str, asked: int, due: int) -> dict[str, object]:
    return {"kind": "client", "client": client, "asked": asked, "round": due, "refused": None}


def over(before: Checkpoint, going: Late, folder: Path, *, again: bool = False) -> Checkpoint:
    """The checkpoint after a round, from the disk if the run is continued then."""
    entries, attached = going.close()
    after = Checkpoint(before.round + 1, {}, {}, {FACT: entries}, attached)
    after = after.within(checkpoint.save(folder, after, identity="i"))
    return checkpoint.load_latest(folder, identity="i")[0] if again else after


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@settings(max_examples=12, deadline=None)
@given(
    delays=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=8),
    unusable=st.integers(0, 5),
    resumed=st.booleans(),
)
def test_each_comes_in_in_its_round_once_and_as_it_was_sent(tmp_path_factory, delays, unusable, resumed):
    folder, found, expected = tmp_path_factory.mktemp("late"), NOTHING, dict[int, dict[str, int]]()
    free = dict.fromkeys("abc", 0)
    for number in range(1, len(delays) + 6):
        going = Late(found, folder)
        due = expected.pop(number, {})
        assert {told["client"] for told, _ in going.due} == due.keys()
        assert going.busy == {*due, *(client for clients in expected.values() for client in clients)}
        for told, payload in going.due:
            sent = due[told["client"]]
            assert (told["round"], told["asked"]) == (number, sent // 10)
            assert payload is None if sent % 6 == unusable else payload is not None and same(payload(), made(sent))
        for place, client in enumerate("abc"):
            delay = delays[number - 1][place] if number <= len(delays) else 0
            if delay and free[client] < number:
                sent, free[client] = 10 * number + place, number + delay
                going.keep(line(client, number, number + delay), None if sent % 6 == unusable else made(sent))
                expected.setdefault(number + delay, {})[client] = sent
        found = over(found, going, folder, again=resumed)
        assert [told["round"] for told in lines_of(found)] == sorted(told["round"] for told in lines_of(found))
    assert expected == {}
    assert found.attached == {}
    assert names(folder / f"round-{found.round:04d}") == names(folder / f"round-{found.round - 1:04d}")


def test_what_is_on_its_way_lies_in_one_file_per_round_of_asking_and_not_in_memory(tmp_path):
    going = Late(NOTHING, tmp_path)
    for number, client in enumerate("abc"):
        going.keep(line(client, 1, 3 + number), made(number, 1_000_000))
    assert not any(isinstance(part, Payload | torch.Tensor) for entry in going._later for part in entry)
    first = over(NOTHING, going, tmp_path)
    assert names(tmp_path) == ["round-0001"]
    assert 3_000_000 < (tmp_path / "round-0001" / "late-0001.bin").stat().st_size < 3_000_500
    going = Late(first, tmp_path)
    assert going.due == []
    going.keep(line("d", 2, 3), made(4))
    second = over(first, going, tmp_path)
    # The file is not copied from round to round.
    assert os.path.samefile(*(tmp_path / f"round-000{n}" / "late-0001.bin" for n in (1, 2)))
    third = over(second, Late(second, tmp_path), tmp_path)
    assert list(third.attached) == ["late-0001.bin"]  # b and c are still to come, d has come in
    assert [told["client"] for told in lines_of(third)] == ["b", "c"]


def test_a_round_in_which_everybody_answers_leaves_nothing(tmp_path):
    going = Late(NOTHING, tmp_path)
    assert going.close() == ([], {})
    assert (going.busy, going.due, going.lines) == (frozenset(), [], [])
    assert names(tmp_path) == []


def test_what_a_crash_left_in_the_middle_of_a_round_is_swept_away(tmp_path):
    Late(NOTHING, tmp_path).keep(line("a", 1, 2), made(1))
    assert len(checkpoint.sweep(tmp_path)) == 1
    assert names(tmp_path) == []


def test_bytes_do_not_depend_on_the_order_in_which_replies_were_kept(tmp_path):
    clients = [f"c{number}" for number in range(6)]
    told = []
    for seed in (0, 1):
        order = random.Random(seed).sample(range(6), 6)
        going = Late(NOTHING, tmp_path / str(seed))
        (tmp_path / str(seed)).mkdir()
        for number in order:
            going.keep(line(clients[number], 1, 2), made(number))
        found = over(NOTHING, going, tmp_path / str(seed))
        due = Late(found, tmp_path / str(seed)).due
        told.append([entry["client"] for entry, _ in due])
        assert all(payload is not None and same(payload(), made(n)) for n, (_, payload) in enumerate(due))
    assert told == [clients, clients]


def test_a_number_that_json_lacks_is_kept_as_null(tmp_path):
    going = Late(NOTHING, tmp_path)
    going.keep({**line("a", 1, 2), "num_examples": float("nan")}, None)
    assert lines_of(over(NOTHING, going, tmp_path, again=True))[0]["num_examples"] is None


def test_a_file_that_has_gone_is_named(tmp_path):
    going = Late(NOTHING, tmp_path)
    going.keep(line("a", 1, 2), made(1))
    ((_, payload),) = Late(over(NOTHING, going, tmp_path), tmp_path).due
    (tmp_path / "round-0001" / "late-0001.bin").unlink()
    with pytest.raises(RunError, match=r"late-0001\.bin cannot be read back: No such file"):
        payload()


def test_a_full_disk_is_explained(tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool.os, "pwrite", full)
    with pytest.raises(RunError, match=r"No space left on device .* Free some space"):
        Late(NOTHING, tmp_path).keep(line("a", 1, 2), made(1))


def test_what_a_run_leaves_behind_is_told_by_name_as_far_as_there_is_room():
    assert left([line("a", 4, 7)]) == (
        "1 reply was still on the way when the run ended, and not in its result: a, asked in round 4"
    )
    assert left([line(client, 4, 7) for client in "abcde"]).endswith(
        "a, asked in round 4; b, asked in round 4; c, asked in round 4; and 2 more"
    )
