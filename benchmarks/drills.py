"""``make drills``: every fault of the field happens on purpose, to a server and four devices as real processes.

Each place has its own network, memory and processor time (``field``), devices and server know each other by keys and
TLS, and links are slow, narrow or lossy. ``python benchmarks/drills.py [NAME ...] [--to FILE] [--keep FOLDER]`` carries
out all drills or those that are named, one after the other, and writes what was seen into the table; rows of drills
that are not named stay as they are. It exits 1 if something was seen that was not expected.
"""

import argparse
import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from field import PORT, SERVER, missing
from rogue import FORGERIES, SECRET
from yard import ROGUE, TURN_LIMIT_S, Going, Yard, digests, ended

TABLE = Path(__file__).parents[1] / "simulations" / "deployment" / "drills.csv"
SOON_S = 5.0
"""Within this time a dead worker must be known to the server."""

HEAD = ("drill", "fault", "expected", "seen", "as expected")


@dataclass(frozen=True)
class Row:
    """A fault, and what came of it.

    Attributes:
        fault: what was done.
        expected: what must come of it.
        seen: what came of it.
        holds: whether that is the same.
    """

    fault: str
    expected: str
    seen: str
    holds: bool


def turns(yard: Yard) -> Iterator[Row]:
    """What can go wrong while a device works."""
    yard.order({"2": "raise", "4": "hog"})
    going = yard.run("turns", "num_rounds=7")
    going.until_answered(ROGUE, 2)

    going.until_asked(3)
    killed = yard.busy("owner-0")
    os.kill(killed, signal.SIGKILL)
    after_kill = going.until_answered("owner-0", 3)

    num_before = yard.field.num_killed(ROGUE)
    going.until_asked(4)
    going.until(lambda: yard.field.num_killed(ROGUE) > num_before, "its memory is at an end")
    after_end = going.until_answered(ROGUE, 4)

    going.until_asked(5)
    stopped = yard.busy("owner-1")
    os.kill(stopped, signal.SIGSTOP)
    after_stop = going.until_answered("owner-1", 5)
    status, last = going.end(), going.rounds()[-1]

    logs = b"".join(file.read_bytes() for file in (*yard.there.home.rglob("*.log"), *going.folder.glob("*.jsonl")))
    stays = SECRET.encode() not in logs
    word, counts = _outcome(going, ROGUE, 2)
    yield Row(
        "an exception in a device's turn",
        "told as `failed`, nothing of its text leaves the device; the device counts in the next round",
        f"`{word}`; its text {'stayed' if stays else 'LEFT'}; {_counts(counts)}",
        word == "failed" and stays and counts,
    )
    soon = f"told as `died` within {SOON_S:g} s, no timeout is waited for; the device counts in the next round"
    for fault, client, number, seconds in (
        ("a device's worker killed in the middle of a turn", "owner-0", 3, after_kill),
        ("a device out of memory (its control group's limit)", ROGUE, 4, after_end),
    ):
        word, counts = _outcome(going, client, number)
        holds = word == "died" and seconds <= SOON_S and counts
        yield Row(fault, soon, f"`{word}` after {seconds:.1f} s; {_counts(counts)}", holds)
    word, counts = _outcome(going, "owner-1", 5)
    yield Row(
        "a device's worker stopped (SIGSTOP)",
        f"told as `timed_out` after its turn limit ({TURN_LIMIT_S} s here); a new worker counts in the next round",
        f"`{word}` after {after_stop:.0f} s; {_counts(counts)}",
        word == "timed_out" and counts and yard.worker("owner-1") != stopped,
    )
    num_good = last["num_clients"] - last["num_refused"]
    yield Row(
        "all of these in one run of 7 rounds",
        "the run ends well, the last round with all four",
        f"exit code {status}, {num_good} of 4 in round {last['round']}",
        (status, last["round"], num_good) == (0, 7, 4),
    )


def _outcome(going: Going, client: str, number: int) -> tuple[str | None, bool]:
    """The word for a client's answer in a round, and whether it counted in the next one."""
    lines = going.clients(client)
    return lines[number]["refused"], number + 1 in lines and lines[number + 1]["refused"] is None


def _counts(counts: bool) -> str:
    return "counted in the next round" if counts else "did NOT count in the next round"


WORDS = {
    "nan": ("an update with NaN", "non_finite"),
    "inf": ("an update with Inf", "non_finite"),
    "replay": ("the update of the round before, once more", "malformed"),
    "foreign": ("an update in another device's name", "malformed"),
    "shape": ("a wrong shape", "shape"),
    "broadcast": ("a wrong shape that would broadcast", "shape"),
    "dtype": ("a wrong type", "dtype"),
    "extra": ("a tensor too many", "names"),
    "missing": ("a tensor too few", "names"),
    "examples": ("10^12 examples", "num_examples"),
    "negative": ("a negative weight", "num_examples"),
    "oversized": ("a payload of ten times the size", "malformed"),
}
"""Order → what it is, and the word with which it is refused."""


def forgeries(yard: Yard) -> Iterator[Row]:
    """Updates that nobody should count, one each round."""
    number = len(FORGERIES)
    yard.order({str(place): order for place, order in enumerate(FORGERIES, 1)})
    going = yard.run("forgeries", f"num_rounds={number}")
    status = going.end()
    lines = going.clients(ROGUE)
    for place, order in enumerate(FORGERIES, 1):
        fault, expected = WORDS[order]
        word = lines[place]["refused"] if place in lines else "not asked"
        yield Row(fault, f"refused as `{expected}`, counted, the run goes on", f"`{word}`", word == expected)
    without = yard.expected(f"num_rounds={number}", "partition.owners=[owner-0,owner-1,owner-2]")
    equal = status == 0 and digests(going.folder) == without
    yield Row(
        "all of these in one run",
        "the bytes of a run of the other three alone",
        f"exit code {status}, bytes {'equal' if equal else 'differ'}",
        equal,
    )


LONG = ("num_rounds=24", "federation.quorum=0.5", "federation.grace_s=5", "federation.deadline_s=120")
"""A run whose rounds wait for nobody who is away."""


def power(yard: Yard) -> Iterator[Row]:
    """Devices without power in the middle of a turn."""
    going = yard.run("power", *LONG)
    going.until_asked(2)
    for name in ("owner-0", "owner-1"):
        yard.busy(name)
        yard.power_off(name)
    began = time.monotonic()
    for name, seconds in (("owner-0", 5.0), ("owner-1", 90.0)):
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        yard.power_on(name)
    status = going.end()
    for name, seconds in (("owner-0", 5.0), ("owner-1", 90.0)):
        yield _back(going, status, name, f"a device off in the middle of a turn, on again after {seconds:.0f} s")


def cut(yard: Yard) -> Iterator[Row]:
    """A link that is away for half a minute."""
    going = yard.run("cut", "num_rounds=3")
    going.until_asked(2)
    yard.busy("owner-0")
    yard.field.cut("owner-0", up=False)
    time.sleep(30)
    yard.field.cut("owner-0", up=True)
    yield _same(yard, going, "a device's link cut for 30 s in the middle of a turn", "nothing is lost")


def between(yard: Yard) -> Iterator[Row]:
    """Something on the way that takes connections and drops them: the device's proxy, whose own way is cut."""
    going = yard.run("between", *LONG[1:], "num_rounds=12")
    going.until_asked(2)
    yard.busy("owner-2")
    yard.field.cut("owner-2", up=False)
    time.sleep(30)
    yard.field.cut("owner-2", up=True)
    fault = "something on the way that takes a device's connections and drops them (TLS breaks off) for 30 s"
    yield _back(going, going.end(), "owner-2", fault)


def _back(going: Going, status: int, client: str, fault: str) -> Row:
    """Whether a device that was away from round 2 on has come back."""
    lines, num_rounds = going.clients(client), len(going.rounds())
    failed = [number for number, line in lines.items() if line["refused"]]
    back = min((number for number, line in lines.items() if number > 2 and not line["refused"]), default=0)
    word = lines[2]["refused"] if 2 in lines else "not asked"
    return Row(
        fault,
        "the rounds go on with the others; it comes back by itself and counts again",
        f"`{word}` in round 2, none in {failed}, counted again from round {back} of {num_rounds}; exit code {status}",
        bool(word) and back > 2 and status == 0,
    )


def app(yard: Yard) -> Iterator[Row]:
    """The server's part of the run is killed."""
    going = yard.run("app", "num_rounds=3")
    going.until_asked(2)
    [pid] = yard.field.found("server", "flwr-serverapp")
    os.kill(pid, signal.SIGKILL)
    yield _same(yard, going, "SIGKILL of the server's app", "submitted again by itself, goes on from its checkpoint")


def superlink(yard: Yard) -> Iterator[Row]:
    """The SuperLink is killed."""
    going = yard.run("superlink", "num_rounds=3")
    going.until_asked(2)
    note = (going.folder / "flower.json").read_text()
    [pid] = yard.field.found("server", "flower-superlink")
    os.kill(pid, signal.SIGKILL)
    row = _same(yard, going, "SIGKILL of the SuperLink", "started again, the run goes on")
    same = (going.folder / "flower.json").read_text() == note
    yield Row(row.fault, row.expected, f"{row.seen}; {'the same' if same else 'another'} run of Flower's", row.holds)


def server(yard: Yard) -> Iterator[Row]:
    """Everything on the server is killed, the command that watches included."""
    going = yard.run("server", "num_rounds=3")
    going.until_asked(2)
    yard.power_off("server")
    going.process.wait()
    time.sleep(5)
    yard.power_on("server")
    going.resume()
    fault = "the server off in the middle of a round, on again after 5 s, then `fedgen resume`"
    yield _same(yard, going, fault, "goes on from its checkpoint, the devices come back by themselves")


def disk(yard: Yard) -> Iterator[Row]:
    """The server's disk is full when a checkpoint is to be written."""
    going = yard.run("disk", "num_rounds=3", runs=yard.small)
    going.until(lambda: list(yard.small.glob("*-disk/checkpoints/round-0001")), "the first round is kept")
    filler = yard.small / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(65536))
            file.flush()
    with filler.open("rb+") as file:
        # Room for a few lines, not for a checkpoint.
        file.truncate(max(0, filler.stat().st_size - 65536))
    status, said = going.end(), going.said
    kept = sorted(path.name for path in going.folder.glob("checkpoints/round-????"))
    line = next((line for line in reversed(said.splitlines()) if line.startswith("fedgen: ")), "no message")
    clear = "No space left" in line and "Traceback" not in said
    yield Row(
        "the server's disk full during a checkpoint",
        "the run ends with one message that says so, and what was kept before is whole",
        f"exit code {status}, `{_short(line)}`; kept: {', '.join(kept)}",
        status == 2 and clear and bool(kept),
    )
    filler.unlink()
    going.resume()
    yield _same(yard, going, "the same, with room again, then `fedgen resume`", "goes on from its checkpoint")


def strangers(yard: Yard) -> Iterator[Row]:
    """Who should not get in does not."""
    other = yard.there.folder / "other"
    yard.there.call("provision", other, "--server", yard.field.server, "--device", "owner-0")
    stranger = other / "bundles" / "owner-0"
    said = _try(yard, stranger, "from this bundle's authority")
    yield Row(
        "a bundle of another authority (wrong CA)",
        "the device trusts nobody, says so, starts no SuperNode",
        _short(said),
        "not from this bundle's authority" in said and not list(stranger.rglob("supernode.log")),
    )
    (stranger / "ca.crt").write_bytes((yard.there.home / "ca.crt").read_bytes())
    said = _try(yard, stranger, "does not know this device's key")
    yield Row(
        "a key that is not registered",
        "refused, the device says so, starts no SuperNode",
        _short(said),
        "does not know this device's key" in said and not list(stranger.rglob("supernode.log")),
    )
    code = (
        "import http.client,ssl;c=ssl.create_default_context(cafile={ca!r})\n"
        "for p in {paths}:\n"
        " h=http.client.HTTPSConnection('server.test',{port},context=c,timeout=20)\n"
        " h.request('POST',p);print(h.getresponse().status)"
    )
    paths = ["/v1/control/list-runs", "/v1/control/start-run", "/v1/runtime/acquire-task", "/docs", "/health"]
    answers = yard.ask("owner-0", code.format(ca=str(yard.there.home / "ca.crt"), paths=paths, port=PORT)).split()
    inside = json.loads((yard.there.home / "fleet.json").read_text())["superlink_port"]
    code = f"import socket;s=socket.socket();s.settimeout(5);print(s.connect_ex(({SERVER!r},{inside})))"
    direct = yard.ask("owner-0", code)
    yield Row(
        "the control API asked from a device",
        "404 to everything but /v1/fleet/, and the SuperLink's port answers nobody from outside",
        f"{', '.join(answers)}; the port: {os.strerror(int(direct)) if direct.isdigit() else direct}",
        answers == ["404"] * len(paths) and direct not in ("0", ""),
    )


def clock(yard: Yard) -> Iterator[Row]:
    """A device whose clock is an hour ahead."""
    library = yard.there.folder / "ahead.so"
    source = library.with_suffix(".c")
    source.write_text(AHEAD)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    words = [*yard.field.words("owner-0"), "env", f"LD_PRELOAD={library}", sys.executable, "-m", "fedgen"]
    bundle = yard.there.folder / "owner-0"
    done = subprocess.run(
        [*words, "doctor", str(bundle), "--json"],
        env=yard.there.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    found = {finding["probe"]: finding for finding in json.loads(done.stdout)["findings"]}
    yield Row(
        "a device's clock an hour ahead, `fedgen doctor`",
        "says so, and what to do; exit code 1",
        f"exit code {done.returncode}; {found['clock']['word']}: {found['clock']['got']}",
        done.returncode == 1 and found["clock"]["word"] == "fail",
    )
    said = _try(yard, bundle, "ahead of the server's", ("env", f"LD_PRELOAD={library}"), state=yard.there.folder / "c")
    yield Row(
        "the same, `fedgen client`",
        "says so, starts no SuperNode until it is right",
        _short(said),
        "ahead of the server's" in said,
    )


def versions(yard: Yard) -> Iterator[Row]:
    """A device that is not like the others."""
    for order, fault, expected in (
        ("version", "a device with another fedgen", "other_version"),
        ("base", "a device with another base model", "other_base"),
    ):
        yard.order({"always": order}, anew=True)
        going = yard.run(order, "num_rounds=2")
        status = going.end()
        refused = {(line["client"], line["reason"]) for line in going.told() if line["kind"] == "refused"}
        counts = [line["num_clients"] - line["num_refused"] for line in going.rounds()]
        yield Row(
            fault,
            f"turned away as `{expected}` and told of; the run goes on with the other three",
            f"{', '.join(f'{client} `{reason}`' for client, reason in sorted(refused)) or 'nothing'}; "
            f"{' and '.join(map(str, counts))} counted; exit code {status}",
            refused == {(ROGUE, expected)} and counts == [3, 3] and status == 0,
        )
    yard.order({}, anew=True)


DRILLS: dict[str, Callable[[Yard], Iterator[Row]]] = {
    drill.__name__: drill
    for drill in (turns, forgeries, versions, cut, between, power, superlink, app, server, disk, strangers, clock)
}

AHEAD = """\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
int clock_gettime(clockid_t which, struct timespec *now) {
    static int (*genuine)(clockid_t, struct timespec *);
    if (!genuine) genuine = dlsym(RTLD_NEXT, "clock_gettime");
    int status = genuine(which, now);
    if (which == CLOCK_REALTIME) now->tv_sec += 3600;
    return status;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


def _same(yard: Yard, going: Going, fault: str, expected: str) -> Row:
    """Whether a run has come to the same bytes as one in one process."""
    status = going.end()
    equal = status == 0 and digests(going.folder) == yard.expected("num_rounds=3")
    seen = f"exit code {status}, bytes {'equal' if equal else 'differ'}" if status == 0 else _short(going.said[-300:])
    return Row(fault, f"{expected}: the bytes of an unbroken run", seen, equal)


def _try(yard: Yard, bundle: Path, wanted: str, before: Sequence[str] = (), state: Path | None = None) -> str:
    """What a client says of a bundle until it says what is wanted, or for half a minute."""
    words = [*yard.field.words("owner-0"), *before, sys.executable, "-m", "fedgen", "client", str(bundle)]
    words += ["--state", str(state)] if state else []
    file = yard.there.folder / "tried.out"
    with file.open("wb") as output:
        process = subprocess.Popen(words, env=yard.there.environment, stdout=output, stderr=output)
    with ended(process):
        end = time.monotonic() + 60.0
        while wanted not in file.read_text() and time.monotonic() < end:
            time.sleep(0.2)
    lines = [line for line in file.read_text().splitlines() if wanted in line]
    return lines[0].partition(" ")[2] if lines else file.read_text()[-300:]


def _short(text: str) -> str:
    """One line of a table, without the path of a folder that is soon gone."""
    line = re.sub(r"/\S*?/fedgen-\w+", "…", " ".join(text.split()))
    return line if len(line) <= 160 else f"{line[:159]}…"


def main(arguments: Sequence[str]) -> int:
    """Carries out drills and writes the table; 1 if something was seen that was not expected."""
    parser = argparse.ArgumentParser(prog="drills.py", description="Faults of the field, on purpose.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(DRILLS)}; all if none is given")
    parser.add_argument("--to", type=Path, default=TABLE, metavar="FILE", help="the table")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for logs and runs")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in DRILLS]:
        parser.error(f"no drill is called {', '.join(unknown)}; they are {', '.join(DRILLS)}")
    if lacks := missing():
        parser.error(f"drills cannot take place here: {lacks}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    good = True
    with Yard() as yard:
        for name in given.names or DRILLS:
            rows = _carry_out(name, yard)
            _write(given.to, name, rows)
            good = good and all(row.holds for row in rows)
            if given.keep:
                yard.keep(given.keep)
    return 0 if good else 1


def _carry_out(name: str, yard: Yard) -> list[Row]:
    """The rows of a drill; one that breaks off has a row that says so."""
    began, rows = time.monotonic(), []
    print(f"{name}:", flush=True)
    try:
        yard.ready()
        for row in DRILLS[name](yard):
            rows.append(row)
            print(f"  {'as expected' if row.holds else 'NOT AS EXPECTED'}: {row.fault}: {row.seen}", flush=True)
    except Exception as error:
        traceback.print_exc()
        rows.append(Row(f"{name}, which broke off", "an end", _short(f"{type(error).__name__}: {error}"), False))
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    return rows


def _write(file: Path, name: str, rows: Sequence[Row]) -> None:
    """Puts the rows of a drill into the table, in the order of the drills."""
    found: dict[str, list[list[str]]] = {}
    if file.exists():
        with file.open(newline="") as there:
            for line in list(csv.reader(there))[1:]:
                found.setdefault(line[0], []).append(line)
    found[name] = [[name, row.fault, row.expected, row.seen, "yes" if row.holds else "NO"] for row in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as there:
        writer = csv.writer(there, lineterminator="\n")
        writer.writerow(HEAD)
        for drill in DRILLS:
            writer.writerows(found.get(drill, []))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
