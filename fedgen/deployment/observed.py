"""What a run has told so far, line by line as its file grows; small, whatever the length of the run.

Reads `observed.jsonl`, which a server's part of a run writes, or the journal where there is none. Lines that make no
sense are passed over: whoever watches must not fall over what is watched.
"""

import json
import os
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedgen.report import series, text
from fedgen.report.records import Record, finite

OBSERVED_FILE, METRICS_FILE = "observed.jsonl", "metrics.jsonl"
NUM_EVENTS = 40
LONGEST_TEXT = 400
LONGEST_LINE = 16 * 2**20

FAILURES = frozenset({"died", "failed", "late", "no_answer", "offline", "timed_out", "unreachable"})
"""Words for devices that did not answer. Those who do it twice rest for a round, then for two, for four, and so on."""


@dataclass
class Turns:
    """What one device has done.

    Attributes:
        last: its last reply's line.
        count: its replies.
        refused: word → how many of them did not count.
        streak: how many in a row did not, up to the last.
        silent: how many in a row did not even come.
        rests_until: the last round in which it is left alone.
        report: what it said of itself last.
        heard: when; seconds since 1970.
    """

    last: Record = field(default_factory=dict)
    count: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    streak: int = 0
    silent: int = 0
    rests_until: int = -1
    report: Record = field(default_factory=dict)
    heard: float | None = None


@dataclass
class Observed:
    """The state of a run; grows by `note`."""

    name: str = ""
    num_rounds: int | None = None
    clients: tuple[str, ...] = ()
    rounds: dict[int, Record] = field(default_factory=dict)
    turns: dict[str, Turns] = field(default_factory=dict)
    waiting: dict[str, None] = field(default_factory=dict)
    asked: int = 0
    round: int = 0
    phase: str = "getting ready"
    status: str = "running"
    message: str = ""
    when: float | None = None
    events: deque[Record] = field(default_factory=lambda: deque(maxlen=NUM_EVENTS))

    def note(self, record: Record) -> None:
        """Takes note of a line; one of a kind that it does not know changes nothing."""
        when = finite(record.get("when"))
        self.when = self.when if when is None else float(when)
        match record.get("kind"):
            case "start":
                self._start(record)
            case "dispatch":
                self._dispatch(record)
            case "client":
                self._client(record)
            case "device":
                self._device(record)
            case "evaluate":
                self.phase = "evaluating"
            case "round":
                self._round(record)
            case "refused":
                who = _said(record.get("client") or f"node {record.get('node')}")
                self._tell(record, f"{who} was turned away: {text.words(_said(record.get('reason')))}", "bad")
            case "stale":
                asked = _count(record.get("asked"))
                self._tell(record, f"{_said(record.get('client'))} answered for round {asked} too late", "warn")
            case "warning":
                self._tell(record, _said(record.get("text")), "warn")
            case "failed":
                self.status, self.message = "failed", _said(record.get("message"))
                self._tell(record, self.message, "bad")
            case "end":
                self.status, self.phase = "finished", ""
                self.waiting.clear()
                took = text.seconds(finite(record.get("seconds")))
                self._tell(record, f"finished after {text.plural(self.round, 'round')} in {took}", "good")

    def _start(self, record: Record) -> None:
        first = _count(record.get("round"))
        self.name, self.num_rounds = _said(record.get("name")), _count(record.get("num_rounds")) or None
        self.clients = _names(record.get("clients"))
        # A run that goes on plays the rounds after its checkpoint once more.
        self.rounds = {number: line for number, line in self.rounds.items() if number < first}
        self.round, self.status, self.message, self.phase = max(0, first - 1), "running", "", "getting ready"
        self.waiting.clear()
        self._tell(record, f"goes on with round {first}" if first else "the run begins", "plain")

    def _dispatch(self, record: Record) -> None:
        late = set(_names(record.get("late")))
        self.round = _count(record.get("round"))
        asked = [*(name for name in _names(record.get("clients")) if name not in late), *_names(record.get("due"))]
        self.waiting, self.asked, self.phase = dict.fromkeys(asked), len(asked), "training"

    def _client(self, record: Record) -> None:
        name, refused = _said(record.get("client")), record.get("refused")
        self.waiting.pop(name, None)
        turns = self.turns.setdefault(name, Turns())
        turns.last, turns.count = record, turns.count + 1
        turns.streak = turns.streak + 1 if refused else 0
        turns.silent = turns.silent + 1 if str(refused) in FAILURES else 0
        turns.rests_until = self.round + 2 ** min(turns.silent - 2, 30) if turns.silent > 1 else -1
        if refused:
            word = text.words(_said(refused))
            turns.refused[word] += 1
            verb = "did not answer" if str(refused) in FAILURES else "was refused"
            self._tell(record, f"{name} {verb}: {word}", "bad")

    def _device(self, record: Record) -> None:
        turns = self.turns.setdefault(_said(record.get("client")), Turns())
        turns.report = {key: value for key, value in record.items() if key not in ("kind", "client", "when")}
        turns.heard = self.when if finite(record.get("when")) is not None else turns.heard

    def _round(self, record: Record) -> None:
        number = _count(record.get("round"))
        self.rounds[number] = {**record, "round": number}
        self.round, self.phase, self.asked = number, "between rounds", 0
        self.waiting.clear()
        metric = _said(record.get("metric"))
        value = next((finite(split.get(metric)) for split in series.evaluation(record).values()), None)
        parts = [] if value is None else [f"{text.words(metric)} {text.number(value)}"]
        loss, total = finite(record.get("loss")), series.seconds(record, "total")
        parts += [] if loss is None else [f"training loss {text.number(loss)}"]
        parts += [] if total is None else [f"took {text.seconds(total)}"]
        said = ", ".join(parts) or "over"
        self._tell(record, said if number else f"before training: {said}", "good")

    def _tell(self, record: Record, said: str, word: str) -> None:
        at = finite(record.get("round"))
        self.events.append({"when": self.when, "round": at, "word": word, "text": said})


class Tail:
    """Reads what a run's folder has told since it was last read.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.observed = Observed()
        self.heard: float | None = None
        self._place: tuple[str, int] = ("", 0)
        self._read = 0

    def read(self) -> Observed:
        """The state of the run after its newest whole line."""
        found = next((path for name in (OBSERVED_FILE, METRICS_FILE) if (path := self.folder / name).is_file()), None)
        if found is None:
            return self.observed
        try:
            with found.open("rb") as file:
                self._catch_up(file.fileno(), found.name)
                file.seek(self._read)
                # A line that is being written has no end yet, and is read when it has one.
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read += len(line)
                    record = _record(line)
                    if record is not None:
                        self.observed.note(record)
        except OSError:
            return self.observed
        return self.observed

    def _catch_up(self, descriptor: int, name: str) -> None:
        """Begins anew if it is another file than last time, or has become shorter."""
        stat = os.fstat(descriptor)
        self.heard = stat.st_mtime
        if self._place != (name, stat.st_ino) or stat.st_size < self._read:
            self._place, self._read, self.observed = (name, stat.st_ino), 0, Observed()


def _record(line: bytes) -> Record | None:
    if len(line) > LONGEST_LINE:
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _said(value: object) -> str:
    """Text that may be shown anywhere: on one line, of bounded length, steering nothing."""
    return text.clean(str(value if value is not None else "")[:LONGEST_TEXT])


def _names(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - any JSON value
    return tuple(map(_said, value)) if isinstance(value, list) else ()


def _count(value: object) -> int:
    number = finite(value)
    return int(number) if number is not None and number > 0 else 0
