"""Replies that come in rounds after the one in which they were asked for: semi-asynchronous federation.

FedBuff: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022. Nobody waits for slow
devices; what comes in is folded, whatever the state from which it began. Here the fleet says in which round a reply
comes in, so that a run has the same bytes every time, and a client that is still at work is not asked again.

Until its round has come a reply lies in a file, one per round of asking, that goes from checkpoint to checkpoint. So
memory does not grow with what is on its way, and a run that is killed still has it.
"""

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fedgen import disk, spool
from fedgen.checkpoint import Attached, Checkpoint
from fedgen.journal import strict
from fedgen.messages import Payload
from fedgen.spool import Place
from fedgen.turns import Stored
from fedgen.types import Record

FACT = "late"
"""Under this name a checkpoint's facts tell of what is on its way."""

_NUM_NAMES = 3


class _Entry(NamedTuple):
    """A reply that is on its way: the journal's line of it, of the round in which it is due, and its place, if any."""

    line: Record
    place: Place | None


def lines_of(checkpoint: Checkpoint) -> list[Record]:
    """The lines of the replies that are on their way, as they will stand in the journal."""
    return [entry["line"] for entry in checkpoint.facts.get(FACT, ())]


class Late:
    """What is on its way in one round. Made from the checkpoint before it, and tells what the next one keeps.

    Attributes:
        busy: clients that are still at work when the round begins, those included whose replies come in in it.
    """

    def __init__(self, before: Checkpoint, folder: Path) -> None:
        """Begins the round after a checkpoint; ``folder`` is that of the checkpoints."""
        found = [
            _Entry(entry["line"], Place(*entry["place"]) if entry["place"] else None)
            for entry in before.facts.get(FACT, ())
        ]
        self.busy = frozenset(str(entry.line["client"]) for entry in found)
        self._round, self._folder, self._attached = before.round + 1, folder, before.attached
        self._due = [entry for entry in found if entry.line["round"] <= self._round]
        self._later = [entry for entry in found if entry.line["round"] > self._round]
        self._file: Path | None = None
        self._end = 0

    @property
    def lines(self) -> list[Record]:
        """What the journal will say of those that are on their way when the round is over."""
        return [entry.line for entry in sorted(self._later, key=_by_round)]

    @property
    def due(self) -> list[tuple[Record, Stored | None]]:
        """Line and payload of each reply that comes in in this round; None in place of a payload of no use."""
        return [(dict(e.line), functools.partial(self._get, e.line, e.place) if e.place else None) for e in self._due]

    def keep(self, line: Record, payload: Payload | None) -> None:
        """Keeps a reply to this round until it is due.

        Args:
            line: what the journal will say of it; its `round` is the one in which it is due.
            payload: None if it is of no use.

        Raises:
            RunError: the disk is full or fails.
        """
        assert line["round"] > line["asked"] == self._round, "what is due now does not have to be kept"
        place = None
        if payload is not None:
            self._file = self._file or disk.beside(self._folder / _name(line), "tmp")
            with disk.writing(self._file), self._file.open("r+b" if self._end else "xb") as file:
                place = spool.put(file.fileno(), self._end, payload)
            self._end = place.end
        self._later.append(_Entry(strict(line), place))

    def close(self) -> tuple[list[Record], dict[str, Attached]]:
        """Ends the round.

        Returns:
            What the next checkpoint's facts tell of what is on its way, and the files that it needs.

        Raises:
            RunError: the disk is full or fails.
        """
        files = dict(self._attached)
        if self._file is not None:
            with disk.writing(self._file), self._file.open("rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[_name({"asked": self._round})] = Attached(self._file, self._end, digest)
        later = sorted(self._later, key=_by_round)
        needed = {_name(line) for line, place in later if place is not None}
        entries: list[Record] = [{"line": line, "place": list(place) if place else None} for line, place in later]
        return entries, {name: file for name, file in files.items() if name in needed}

    def _get(self, line: Record, place: Place) -> Payload:
        path = self._attached[_name(line)].path
        try:
            file = path.open("rb", buffering=0)
        except OSError as error:
            raise spool.unreadable(path, error) from error
        with file:
            return spool.get(file.fileno(), place, path)


def left(lines: Sequence[Record]) -> str:
    """What to say when a run is over and these are still on their way."""
    names = [f"{line['client']}, asked in round {line['asked']}" for line in lines[:_NUM_NAMES]]
    more = f"; and {len(lines) - len(names)} more" if len(lines) > len(names) else ""
    count = f"{len(lines)} repl{'y was' if len(lines) == 1 else 'ies were'}"
    return f"{count} still on the way when the run ended, and not in its result: {'; '.join(names)}{more}"


def _by_round(entry: _Entry) -> tuple[int, str]:
    return entry.line["round"], entry.line["client"]


def _name(line: Mapping[str, object]) -> str:
    """The file with the replies to a round."""
    return f"late-{line['asked']:04d}.bin"
