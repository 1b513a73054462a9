"""What happened in a run, one JSON object per line, in `metrics.jsonl`.

The lines of a round are appended with one write and forced to the disk before the checkpoint of that round is saved. So
after a crash the journal is never behind the newest checkpoint, and the lines that are ahead of it are dropped and made
again. (A checkpoint, next door, keeps what is needed to go on; the journal keeps what people and reports look at.)
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, final

from fedgen import disk
from fedgen.errors import RunError
from fedgen.types import Record

CLOSING = frozenset({"conversation", "report", "end"})
"""Kinds of the records that close a run. They come after its last checkpoint, and `end` is the last of them."""


@final
class Journal:
    """A journal that is open for writing; made by ``Journal.open``."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path, *, after_round: int | None) -> "Journal":
        """Opens a journal, less the lines that will be written again.

        Records up to and including `after_round` are kept. A line that a crash cut off is dropped, and so is an ending
        without its `end`. The file is only rewritten, in one step, if there is something to drop.

        Args:
            path: the file; made if there is none.
            after_round: the last round that is over; None or a negative number if the run begins at its beginning.

        Raises:
            RunError: the file cannot be written, or one of its lines is damaged.
        """
        with disk.writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            os.close(descriptor)
        lines, torn = _lines(path)
        kept = _kept(lines, -1 if after_round is None else after_round)
        if torn or len(kept) < len(lines):
            disk.write_atomic(path, b"".join(line + b"\n" for line, _ in kept))
        with disk.writing(path):
            return cls(path, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Appends records, all of them or none; they are on the disk when this returns.

        Numbers that are not finite become null, since JSON has no word for them.

        Raises:
            RunError: the disk is full or broken; the journal is as it was before.
        """
        if not records:
            return
        content = "".join(json.dumps(strict(record), allow_nan=False) + "\n" for record in records).encode()
        with disk.writing(self._path):
            num_bytes = os.fstat(self._descriptor).st_size
            try:
                disk.append(self._descriptor, content)
            except BaseException:
                # The next line must not be glued to half of this one. If even that fails, the first error tells more.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, num_bytes)
                raise

    def close(self) -> None:
        """Closes the file; may be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> list[Record]:
    """The records of a journal, also of one that is being written. A last line that was cut off is left out.

    Raises:
        RunError: the file cannot be read, or one of its lines is damaged; names the line.
    """
    return [record for _, record in _lines(path)[0]]


def _kept(lines: Sequence[tuple[bytes, Record]], after_round: int) -> list[tuple[bytes, Record]]:
    """Lines that a run continued after this round will not write again."""
    old = [(line, record) for line, record in lines if _round(record) <= after_round]
    if any(record.get("kind") == "end" for _, record in old):
        return old
    return [(line, record) for line, record in old if record.get("kind") not in CLOSING]


def _round(record: Record) -> int | float:
    """The record's round; one without any belongs to no round that is over."""
    value = record.get("round")
    return value if isinstance(value, int) else math.inf


def _lines(path: Path) -> tuple[list[tuple[bytes, Record]], bytes]:
    """Each line with its record, and what follows the last line's end: nothing, or a line that was cut off."""
    try:
        *whole, torn = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}; it is where a run keeps its metrics") from error
    return [(line, _record(line, path, number)) for number, line in enumerate(whole, start=1)], torn


def _record(line: bytes, path: Path, number: int) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}, line {number} is damaged: {error}. Put back a copy, or remove that line") from error
    if not isinstance(record, dict):
        raise RunError(f"{path}, line {number} is not a record: expected an object, as every line is. Remove that line")
    return record


def strict(value: Any) -> Any:  # noqa: ANN401 - any value that JSON can hold
    """The value with null in the place of every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [strict(entry) for entry in value]
    return value
