"""What a display knows about a run that is going on, and the line that each event is worth. Draws nothing."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from fedgen.report import seeding, series, text
from fedgen.report.records import Number, finite

_NUM_ROUNDS_SHOWN = 8
_NUM_ROUNDS_TIMED = 5
_NUM_WARNINGS = 3
_NUM_NAMES = 3
_LATE = {"num_late": "late", "num_pending": "still to come"}


@dataclass(frozen=True)
class RoundSeen:
    """A finished round, as a row of the display.

    Attributes:
        round: its number.
        loss: mean training loss.
        quality: the followed number; None if the round was not measured.
        change: its difference to the last round that was measured, as text; empty if there is none.
        improved: whether that is for the better; None if there is no change.
        bytes_down: to all clients.
        bytes_up: from all clients.
        seconds: by the clock.
        num_refused: updates that did not count.
    """

    round: int
    loss: Number | None
    quality: Number | None
    change: str
    improved: bool | None
    bytes_down: Number | None
    bytes_up: Number | None
    seconds: Number | None
    num_refused: int


@dataclass
class Seen:
    """What has happened so far; grows by `note` and is bounded in size."""

    clock: Callable[[], float] = time.monotonic
    started: bool = False
    name: str = ""
    folder: str = ""
    people: str = ""
    metric: str = ""
    num_rounds: int = 0
    round: int = 0
    num_refused: int = 0
    rounds: deque[RoundSeen] = field(default_factory=lambda: deque(maxlen=_NUM_ROUNDS_SHOWN))
    warnings: deque[str] = field(default_factory=lambda: deque(maxlen=_NUM_WARNINGS))
    _doing: str = "getting ready"
    _finished: int = 0
    _waiting: dict[str, None] = field(default_factory=dict)
    _asked: int = 0
    _quality: Number | None = None
    _durations: deque[Number] = field(default_factory=lambda: deque(maxlen=_NUM_ROUNDS_TIMED))
    _began: float = 0.0
    _round_began: float = 0.0
    _ended: str = ""

    @property
    def rounds_done(self) -> Number:
        """Rounds that are over, with the answered part of the one that is not."""
        share = 1 - len(self._waiting) / self._asked if self._asked and self.round > self._finished else 0
        return min(self._finished + share, self.num_rounds)

    @property
    def seconds_left(self) -> Number | None:
        """Seconds until the end if the coming rounds take as long as the last few; None before there is one."""
        if not self._durations:
            return None
        in_round = self.clock() - self._round_began if self.round > self._finished else 0.0
        return max(0.0, (self.num_rounds - self._finished) * median(self._durations) - in_round)

    @property
    def status(self) -> str:
        """What is going on, in one line."""
        if self._ended:
            return self._ended
        parts = [f"round {self.round} of {self.num_rounds}"]
        left = self.seconds_left
        if left is not None:
            parts.append(f"{text.seconds(max(1, round(left)))} left")
        parts += [self._doing, f"{text.seconds(max(1, int(self.clock() - self._began)))} so far"]
        return " · ".join(parts)

    def note(self, record: dict[str, Any]) -> str:
        """Takes note of a record; returns the line that it is worth, or nothing."""
        match record.get("kind"):
            case "start":
                return self._start(record)
            case "dispatch":
                return self._dispatch(record)
            case "client":
                return self._client(record)
            case "evaluate":
                self._doing = "evaluating"
                return f"{self._where(record)}: evaluating"
            case "round":
                return self._round(record)
            case "drafting" | "sifting" | "found" | "tuning" | "asking":
                self._doing = seeding.step(record)
                return f"seed: {self._doing}"
            case "seed":
                self._doing = "measuring"
                return f"seed: {seeding.outcome(record)}"
            case "warning":
                self.warnings.append(text.clean(str(record.get("text", ""))))
                return f"warning: {self.warnings[-1]}"
            case "end":
                self._ended = (
                    f"done: {text.plural(self._finished, 'round')} in {text.seconds(finite(record.get('seconds')))}"
                )
                return self._ended
            case _:
                return ""

    def stop(self) -> None:
        """The run is over, one way or the other."""
        self._ended = self._ended or f"stopped in round {self.round} of {self.num_rounds}"

    def _start(self, record: dict[str, Any]) -> str:
        self.started, self._began = True, self.clock()
        self.name, self.folder = text.clean(str(record.get("name", ""))), text.clean(str(record.get("folder", "")))
        self.metric = str(record.get("metric") or "")
        self.num_rounds = int(record.get("num_rounds") or 0)
        first = int(record.get("round") or 0)
        self._finished = self.round = max(0, first - 1)
        num_clients, cohort = len(record.get("clients") or ()), record.get("cohort_size")
        self.people = text.plural(num_clients, "client")
        if cohort and cohort < num_clients:
            self.people += f", {cohort} a round"
        going_on = f", going on with round {first}" if first > 0 else ""
        place = f", in {self.folder}" if self.folder else ""
        return f"{self.name}: {self.people}, {text.plural(self.num_rounds, 'round')}{going_on}{place}"

    def _dispatch(self, record: dict[str, Any]) -> str:
        self.round, self._round_began = int(record["round"]), self.clock()
        clients, late, due = (list(map(str, record.get(key) or ())) for key in ("clients", "late", "due"))
        self._waiting = dict.fromkeys([*(client for client in clients if client not in set(late)), *due])
        self._asked = len(self._waiting)
        self._doing = self._at_work()
        later = f", {len(late)} for later rounds" if late else ""
        return f"{self._where(record)}: asked {text.plural(len(clients), 'client')}{later}"

    def _client(self, record: dict[str, Any]) -> str:
        client, refused = str(record["client"]), record.get("refused")
        self._waiting.pop(client, None)
        self._doing = self._at_work()
        self.num_refused += bool(refused)
        took = text.seconds(series.seconds(record, "compute"))
        back = f"({self._asked - len(self._waiting)} of {self._asked})"
        said = (
            f"refused, {text.words(str(refused))}"
            if refused
            else f"loss {text.number(finite(record.get('loss')))}, {took}"
        )
        asked = finite(record.get("asked"))
        when = f", asked in round {asked}" if asked is not None and asked < record["round"] else ""
        return f"{self._where(record)}: {text.clean(client)} {said}{when} {back}"

    def _round(self, record: dict[str, Any]) -> str:
        row = self._row(record)
        self.rounds.append(row)
        self._finished = self.round = row.round
        self._doing, self._asked = "next", 0
        self._waiting.clear()
        if row.quality is not None:
            self._quality = row.quality
        if row.seconds is not None and row.round > 0:
            self._durations.append(row.seconds)
        parts = [] if row.round == 0 else [f"loss {text.number(row.loss)}"]
        if row.quality is not None:
            change = f" ({row.change})" if row.change else ""
            parts.append(f"{text.words(self.metric)} {text.number(row.quality)}{change}")
        if row.round > 0:
            parts.append(f"{text.num_bytes(row.bytes_down)} down, {text.num_bytes(row.bytes_up)} up")
        parts += [f"{row.num_refused} refused"] if row.num_refused else []
        parts += [f"{number} {said}" for key, said in _LATE.items() if (number := finite(record.get(key)))]
        parts.append(f"in {text.seconds(row.seconds)}")
        if (left := self.seconds_left) is not None and row.round < self.num_rounds:
            parts.append(f"{text.seconds(left)} left")
        return f"{self._where(record)}: {', '.join(parts)}"

    def _row(self, record: dict[str, Any]) -> RoundSeen:
        self.metric = str(record.get("metric") or self.metric)
        numbers = next(iter(series.evaluation(record).values()), {})
        quality, before = finite(numbers.get(self.metric)), self._quality
        improved = None
        if quality is not None and before is not None and quality != before:
            improved = (quality > before) == (record.get("higher_is_better") is not False)
        return RoundSeen(
            round=int(record["round"]),
            loss=finite(record.get("loss")),
            quality=quality,
            change=text.change(before, quality),
            improved=improved,
            bytes_down=finite(record.get("bytes_down")),
            bytes_up=finite(record.get("bytes_up")),
            seconds=series.seconds(record, "total"),
            num_refused=int(finite(record.get("num_refused")) or 0),
        )

    def _where(self, record: dict[str, Any]) -> str:
        return f"round {record.get('round', 0)}/{self.num_rounds}"

    def _at_work(self) -> str:
        """Whose answers are still to come."""
        if not self._waiting:
            return "aggregating"
        names = [text.clean(name) for name in list(self._waiting)[:_NUM_NAMES]]
        more = f" and {len(self._waiting) - len(names)} more" if len(self._waiting) > len(names) else ""
        return f"{self._asked - len(self._waiting)} of {self._asked} back, waiting for {', '.join(names)}{more}"
