"""A fleet and its newest run at one moment, in plain values: what `fedgen status --json` prints and the page shows.

Reads files only, and survives whatever they say: a missing run, one that is being written, a home that changes.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgen.deployment import throttling
from fedgen.deployment.home import Home
from fedgen.deployment.nodes import Node, serving
from fedgen.deployment.observed import METRICS_FILE, OBSERVED_FILE, Observed, Tail, Turns
from fedgen.report import series, text
from fedgen.report.records import CONFIG_FILE, Number, Record, Records, finite
from fedgen.report.text import natural

NUM_RUNS = 20
"""Runs that are looked into, from the newest, to find one of this home."""

NUM_BARS = 48
MOST_POINTS = 400
PARTS = ("compute", "wire", "wait")
REPORTED = ("memory_bytes", "temperature_c", "battery", "free_disk_bytes", "cores")
QUIET_S = 3600.0
"""A run that has told nothing for so long is called silent."""


class Watch:
    """Looks at a home and at its newest run, again and again; reads only what is new.

    Args:
        home: folder of the server.
        runs: folder of runs.
        run: the run to look at; the newest of this home if None.
    """

    def __init__(self, home: Path, runs: Path, run: Path | None = None) -> None:
        self._home, self._runs, self._run = home, runs, run
        self._tail: Tail | None = None

    def look(self, nodes: Mapping[str, Node] | None = None, now: float | None = None) -> dict[str, Any]:
        """What there is to say.

        Args:
            nodes: device → what the server says of it; None if it was not asked.
            now: seconds since 1970; this moment if None.

        Returns:
            Plain values under these keys. `when`: seconds since 1970; `home`: name of the folder; `server`; `serving`:
            whether a server runs. `run`: None, or {name, folder, status (running, silent, finished, failed), message,
            phase, round, num_rounds, asked, answered, heard, metric, split, higher_is_better, quality and loss: [round,
            value] pairs, seconds: one {round, compute, wire, wait, total} per round of the last few}. `devices`: one
            {name, known, online, since, state, heard, round, num_turns, refused: {word: count}, loss, rung, throttled,
            fedgen, and of `REPORTED` what it told} each. `events`: {when, round, word, text}, the newest first.

        Raises:
            ConfigError: the home is none.
        """
        home = Home.open(self._home)
        moment = time.time() if now is None else now
        folder = self._run or newest(self._runs, home.path)
        if folder is None:
            self._tail = None
        elif self._tail is None or self._tail.folder != folder:
            self._tail = Tail(folder)
        seen = Observed() if self._tail is None else self._tail.read()
        return {
            "when": moment,
            "home": text.clean(home.path.name),
            "server": str(home.server),
            "serving": serving(home),
            "run": None if self._tail is None else _run(seen, self._tail, moment),
            "devices": [
                _device(name, seen, name in home.devices, None if nodes is None else nodes.get(name))
                for name in sorted({*home.devices, *seen.clients, *seen.turns}, key=natural)
            ],
            "events": list(seen.events)[::-1],
        }


def newest(runs: Path, home: Path) -> Path | None:
    """The run of a home that has told something last; None if there is none."""
    told: list[tuple[float, Path]] = []
    try:
        folders = [folder for folder in runs.iterdir() if not folder.name.startswith(".")]
    except OSError:
        return None
    for folder in folders:
        for name in (OBSERVED_FILE, METRICS_FILE):
            try:
                told.append(((folder / name).stat().st_mtime, folder))
                break
            except OSError:
                continue
    candidates = [folder for _, folder in sorted(told, reverse=True)[:NUM_RUNS]]
    return next((folder for folder in candidates if _is_of(folder, home)), None)


def _is_of(folder: Path, home: Path) -> bool:
    """Whether a run was not started for another home; one that names none may be watched from any."""
    import yaml

    try:
        config = yaml.safe_load((folder / CONFIG_FILE).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return True
    federation = config.get("federation") if isinstance(config, dict) else None
    named = federation.get("home") if isinstance(federation, dict) else None
    if not isinstance(named, str) or not Path(named).is_absolute():
        return True
    return Path(named).resolve() == home


def _run(seen: Observed, tail: Tail, now: float) -> Record:
    records = Records(tail.folder, {}, "", {}, tuple(seen.rounds[number] for number in sorted(seen.rounds)))
    follow = series.followed(records)
    quiet = seen.status == "running" and tail.heard is not None and now - tail.heard > QUIET_S
    return {
        "name": seen.name or text.clean(tail.folder.name),
        "folder": text.clean(tail.folder.name),
        "status": "silent" if quiet else seen.status,
        "message": seen.message,
        "phase": seen.phase,
        "round": seen.round,
        "num_rounds": seen.num_rounds,
        "asked": seen.asked,
        "answered": seen.asked - len(seen.waiting),
        "heard": tail.heard,
        "metric": None if follow is None else text.words(follow.metric),
        "split": None if follow is None else text.words(follow.split),
        "higher_is_better": follow is None or follow.higher_is_better,
        "quality": [] if follow is None else _thin(series.quality(records, follow.split, follow.metric)),
        "loss": _thin(series.of_rounds(records, "loss")),
        "seconds": [
            {"round": record["round"], **{part: series.seconds(record, part) for part in (*PARTS, "total")}}
            for record in records.rounds[-NUM_BARS:]
            if record["round"] > 0
        ],
    }


def _device(name: str, seen: Observed, known: bool, node: Node | None) -> Record:
    turns = seen.turns.get(name, Turns())
    last = turns.last
    return {
        "name": name,
        "known": known,
        "online": None if node is None else node.status == "online",
        "since": None if node is None else node.since,
        "state": _state(name, seen, turns, node),
        "heard": turns.heard,
        "round": finite(last.get("round")),
        "num_turns": turns.count,
        "refused": dict(turns.refused),
        "loss": finite(last.get("loss")),
        "rung": None if last.get("rung") is None else text.clean(str(last["rung"])),
        **{key: finite(turns.report.get(key)) for key in REPORTED},
        "throttled": throttling.words(throttling.bits_of(str(turns.report.get("throttled")))) or None,
        "fedgen": _word(turns.report.get("fedgen")),
    }


def _state(name: str, seen: Observed, turns: Turns, node: Node | None) -> str:
    """What a device is doing, in one word or two."""
    if node is not None and node.status != "online":
        return node.status
    if name in seen.waiting:
        return "at work"
    if seen.round <= turns.rests_until:
        return "resting"
    if turns.streak:
        return "failing"
    if turns.count:
        return "answered"
    return "not asked yet" if node is None else "online"


def _word(value: object) -> str | None:
    return text.clean(value[:80]) if isinstance(value, str) and value else None


def _thin(points: list[tuple[int, Number]]) -> list[list[Number]]:
    """So many points as a screen can show, the last of them always."""
    step = max(1, -(-len(points) // MOST_POINTS))
    return [list(point) for point in [*points[:-1:step], *points[-1:]]]
