"""What a run's file tells, read as it grows, and the picture of a fleet that comes of it."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgen.deployment.nodes import Node
from fedgen.deployment.observed import NUM_EVENTS, Observed, Tail
from fedgen.deployment.provision import provision
from fedgen.deployment.snapshot import Watch, newest
from fedgen.deployment.status import picture
from fedgen.errors import ConfigError

REPORT = {"memory_bytes": 9e8, "temperature_c": 61.5, "throttled": "0x10000"}
HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J\u202egnp"


def start(round=0, num_rounds=4, clients=("a", "b")):
    return {"kind": "start", "name": "night", "round": round, "num_rounds": num_rounds, "clients": list(clients)}


def ask(round, *clients):
    return {"kind": "dispatch", "round": round, "clients": list(clients), "late": [], "due": []}


def answer(round, client, refused=None, **more):
    seconds = {"compute": 2.0, "wire": 0.5, "wait": 1.0}
    return {"kind": "client", "round": round, "client": client, "refused": refused, "seconds": seconds, **more}


def over(round, value, loss=1.0):
    return {
        "kind": "round",
        "round": round,
        "loss": loss,
        "metric": "exact_match",
        "higher_is_better": True,
        "evaluation": {"held_out": {"exact_match": value}},
        "seconds": {"compute": 4.0, "wire": 1.0, "wait": 2.0, "total": 5.0},
    }


def after(*records):
    seen = Observed()
    for record in records:
        seen.note(record)
    return seen


def write(folder, *records, name="observed.jsonl", config="name: night\n"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.yaml").write_text(config)
    with (folder / name).open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return provision(tmp_path_factory.mktemp("fleet") / "home", "127.0.0.1:8443", ["a", "b", "c"]).home


def look(home, tmp_path, **more):
    return Watch(home.path, tmp_path / "runs").look(**more)


def test_a_round_as_it_goes():
    seen = after(start(), over(0, 0.1), ask(1, "a", "b"), answer(1, "a"))
    assert (seen.round, seen.phase, seen.asked, list(seen.waiting)) == (1, "training", 2, ["b"])
    seen.note(answer(1, "b"))
    seen.note({"kind": "evaluate", "round": 1})
    assert (seen.phase, list(seen.waiting)) == ("evaluating", [])
    seen.note(over(1, 0.4))
    assert seen.phase == "between rounds"
    assert seen.events[-1]["text"] == "exact match 0.400, training loss 1.000, took 5.0 s"
    seen.note({"kind": "end", "round": 1, "seconds": 61.0})
    assert (seen.status, seen.events[-1]["text"]) == ("finished", "finished after 1 round in 1 min 01 s")


def test_replies_for_later_rounds_are_not_waited_for():
    seen = after(start(), ask(2, "a", "b") | {"late": ["a"], "due": ["c"]})
    assert list(seen.waiting) == ["b", "c"]


def test_a_run_that_goes_on_forgets_the_rounds_that_it_plays_again():
    seen = after(start(), over(0, 0.1), over(1, 0.2), over(2, 0.3), ask(3, "a"), start(round=2))
    assert sorted(seen.rounds) == [0, 1]
    assert (seen.round, seen.status, list(seen.waiting)) == (1, "running", [])


def test_a_run_that_failed_says_why():
    seen = after(start(), {"kind": "failed", "message": "no usable update"})
    assert (seen.status, seen.message, seen.events[-1]["word"]) == ("failed", "no usable update", "bad")


def test_a_device_that_fails_rests_longer_and_longer():
    """Once is nothing; the k-th time in a row it is left alone for 2**(k-2) rounds."""
    seen, ends = after(start()), []
    for round in (1, 2, 4, 7):
        seen.note(ask(round, "a"))
        seen.note(answer(round, "a", refused="died"))
        ends.append(seen.turns["a"].rests_until)
    assert ends == [-1, 2 + 1, 4 + 2, 7 + 4]
    seen.note(ask(12, "a"))
    seen.note(answer(12, "a"))
    assert (seen.turns["a"].rests_until, seen.turns["a"].streak) == (-1, 0)
    assert seen.turns["a"].refused == {"died": 4}


def test_an_update_that_is_refused_is_no_reason_to_rest():
    seen = after(start(), *(answer(round, "a", refused="non_finite") for round in (1, 2, 3)))
    assert (seen.turns["a"].rests_until, seen.turns["a"].streak) == (-1, 3)
    assert seen.events[-1]["text"] == "a was refused: non finite"


def test_events_are_few_and_short():
    seen = after(*({"kind": "warning", "round": n, "text": "x" * 10_000} for n in range(60)))
    assert len(seen.events) == NUM_EVENTS
    assert all(len(event["text"]) <= 400 for event in seen.events)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
SAID = ["reason", "node", "when", "text", "message", "rung"]
KEYS = [*start(), *ask(1), *answer(1, ""), *over(1, 0.5), *REPORT, *SAID]
kinds = st.sampled_from(
    ["start", "dispatch", "client", "device", "round", "refused", "stale", "warning", "failed", "end", "x"]
)


@given(st.lists(st.tuples(kinds, st.dictionaries(st.sampled_from(KEYS), json_values, max_size=6)), max_size=8))
def test_no_line_brings_the_picture_down(records):
    seen = after(*({**fields, "kind": kind} for kind, fields in records))
    for turns in seen.turns.values():
        assert turns.count >= 0
    json.dumps([*seen.events])


@given(st.lists(st.tuples(kinds, st.dictionaries(st.sampled_from(KEYS), json_values, max_size=6)), max_size=5))
def test_no_line_brings_the_page_down(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("any")
    home = folder / "home"
    home.mkdir()
    (home / "fleet.json").write_text(
        json.dumps({"format": 1, "server": "h:1", "superlink_port": 2, "devices": {}})
    )  # fmt: skip
    write(folder / "runs" / "one", *({**fields, "kind": kind} for kind, fields in records))
    state = Watch(home, folder / "runs").look()
    json.dumps(state)
    picture(state)


def test_lines_are_read_once_and_only_when_they_are_whole(tmp_path):
    run = write(tmp_path / "run", start(), over(0, 0.1))
    tail = Tail(run)
    assert sorted(tail.read().rounds) == [0]
    whole = json.dumps(over(1, 0.2)) + "\n"
    with (run / "observed.jsonl").open("a") as file:
        file.write(whole[:40])
        file.flush()
        assert sorted(tail.read().rounds) == [0]
        file.write(whole[40:] + "no json\n[1]\n" + json.dumps(over(2, 0.3)) + "\n")
    assert sorted(tail.read().rounds) == [0, 1, 2]
    assert len(tail.read().events) == 4, "nothing is told twice"


def test_a_file_that_was_made_anew_is_read_anew(tmp_path):
    run = write(tmp_path / "run", start(), over(0, 0.1), over(1, 0.2))
    tail = Tail(run)
    tail.read()
    (run / "observed.jsonl").unlink()
    assert sorted(tail.read().rounds) == [0, 1], "what was known is kept while there is nothing else"
    write(run, start(), over(0, 0.5))
    assert sorted(tail.read().rounds) == [0]


def test_a_run_without_it_is_read_from_its_journal(tmp_path):
    run = write(tmp_path / "run", over(0, 0.1), over(1, 0.2), name="metrics.jsonl")
    assert sorted(Tail(run).read().rounds) == [0, 1]


def test_the_newest_run_of_this_home_is_taken(home, tmp_path):
    runs = tmp_path / "runs"
    assert newest(runs, home.path) is None
    mine = write(runs / "mine", start(), config=f"federation: {{home: {home.path}}}\n")
    write(runs / "theirs", start(), config="federation: {home: /elsewhere}\n")
    old = write(runs / "old", start())
    (runs / ".tmp").mkdir()
    for age, folder in enumerate(("theirs", "mine", "old")):
        os.utime(runs / folder / "observed.jsonl", (1000 - age, 1000 - age))
    assert newest(runs, home.path) == mine
    os.utime(old / "observed.jsonl", (2000, 2000))
    assert newest(runs, home.path) == old


def test_the_shape_of_the_state(home, tmp_path):
    write(
        tmp_path / "runs" / "one",
        start(),
        over(0, 0.1),
        ask(1, "a", "b"),
        {"kind": "device", "when": 1000.0, "client": "a", **REPORT},
        answer(1, "a", rung="tight"),
        answer(1, "b", refused="malformed"),
        over(1, 0.4),
        {"kind": "refused", "when": 1001.0, "client": "z", "node": "7", "reason": "unknown_client"},
        ask(2, "a"),
    )  # fmt: skip
    state = json.loads(json.dumps(look(home, tmp_path, nodes={"a": Node("online", 990.0)}, now=1010.0)))
    assert set(state) == {"when", "home", "server", "serving", "run", "devices", "events"}
    assert (state["when"], state["server"], state["serving"]) == (1010.0, "127.0.0.1:8443", False)
    run = state["run"]
    assert (run["name"], run["round"], run["num_rounds"], run["asked"], run["answered"]) == ("night", 2, 4, 1, 0)
    assert run["quality"] == [[0, 0.1], [1, 0.4]]
    assert run["seconds"] == [{"round": 1, "compute": 4.0, "wire": 1.0, "wait": 2.0, "total": 5.0}]
    devices = {device["name"]: device for device in state["devices"]}
    assert list(devices) == ["a", "b", "c"]
    a = devices["a"]
    assert (a["online"], a["since"], a["state"], a["heard"], a["round"]) == (True, 990.0, "at work", 1000.0, 1)
    assert (a["memory_bytes"], a["temperature_c"], a["throttled"], a["rung"]) == (
        9e8,
        61.5,
        "under-voltage since start",
        "tight",
    )
    assert (devices["b"]["online"], devices["b"]["refused"]) == (None, {"malformed": 1})
    assert (devices["c"]["state"], devices["c"]["num_turns"]) == ("not asked yet", 0)
    assert state["events"][0] == {
        "when": 1001.0,
        "round": None,
        "word": "bad",
        "text": "z was turned away: unknown client",
    }


@pytest.mark.parametrize(
    ("node", "state"),
    [(Node("offline", 5.0), "offline"), (Node("registered", None), "registered"), (Node("online", 5.0), "online")],
)
def test_what_the_server_says_comes_first(home, tmp_path, node, state):
    devices = look(home, tmp_path, nodes={"a": node})["devices"]
    assert devices[0]["state"] == state


def test_a_home_without_a_run_and_a_path_that_is_no_home(home, tmp_path):
    state = look(home, tmp_path)
    assert state["run"] is None
    assert [device["name"] for device in state["devices"]] == ["a", "b", "c"]
    with pytest.raises(ConfigError):
        Watch(tmp_path / "nowhere", tmp_path).look()


def test_a_run_that_tells_nothing_any_more_is_called_silent(home, tmp_path):
    run = write(tmp_path / "runs" / "one", start())
    told = (run / "observed.jsonl").stat().st_mtime
    assert look(home, tmp_path, now=told + 3599)["run"]["status"] == "running"
    assert look(home, tmp_path, now=told + 3601)["run"]["status"] == "silent"


def test_a_server_that_runs_is_known_by_its_process(home, tmp_path):
    (home.path / "run.json").write_text(json.dumps({"pid": os.getpid()}))
    assert look(home, tmp_path)["serving"]
    (home.path / "run.json").write_text(json.dumps({"pid": 2**22 + 1}))
    assert not look(home, tmp_path)["serving"]
    (home.path / "run.json").write_text("{")
    assert not look(home, tmp_path)["serving"]
    (home.path / "run.json").unlink()


def test_names_cannot_steer_a_terminal(home, tmp_path, capsys):
    from rich.console import Console

    write(tmp_path / "runs" / "one", start(clients=[HOSTILE]), answer(1, HOSTILE, refused="[red]died"))
    state = look(home, tmp_path)
    Console(width=200).print(picture(state))
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown
    assert "\u202e" not in shown
    assert "[red]died" in shown
    assert "<img src=x onerror=alert(1)>" in shown
