"""Payloads in a fixed order, whatever the order in which they come.

Sums of fp32 depend on the order of their terms, so replies are folded in the order of the clients' names. One that
comes before its turn waits on the disk: memory stays at one payload, however slow the first client is.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import torch

from fedgen.disk import writing
from fedgen.errors import RunError
from fedgen.messages import Payload


class _Place(NamedTuple):
    """Where a payload waits in the file: its manifest as JSON, then its bytes."""

    start: int
    manifest_bytes: int
    payload_bytes: int


class Turns:
    """Hands payloads on in turn. One per round; closes with the round.

    What waits lies in one file without a name, which goes with the process that opened it.
    """

    def __init__(self, order: Sequence[str], folder: Path) -> None:
        self._order = tuple(order)
        self._turn = {client: number for number, client in enumerate(order)}
        assert len(self._turn) == len(self._order), "a client has one turn"
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._end = 0
        self._next = 0
        self._waiting: dict[int, _Place | None] = {}

    def arrive(self, client: str, payload: Payload | None) -> Iterator[tuple[str, Payload]]:
        """Takes what came of a client and hands on what is due now, in order.

        Args:
            client: one of the order; each arrives once.
            payload: what came; None if nothing usable did, and nobody has to wait for this client any more.

        Returns:
            Client and payload of each whose turn it is. To be used up before the next arrival.

        Raises:
            RunError: the disk is full or fails.
        """
        turn = self._turn[client]
        assert turn >= self._next, "a client arrives once, and before its round is over"
        assert turn not in self._waiting, "a client arrives once"
        if turn > self._next:
            self._waiting[turn] = None if payload is None else self._put(payload)
            return iter(())
        self._next += 1
        return self._hand_on(client, payload)

    def rest(self) -> Iterator[tuple[str, Payload]]:
        """What still waits, in order, passing over those that never came. Nobody can arrive after that."""
        waiting = sorted(self._waiting)
        self._next = len(self._order)
        for turn in waiting:
            yield from self._take(turn)

    def close(self) -> None:
        """Gives the disk's space back."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._waiting.clear()

    def _hand_on(self, client: str, payload: Payload | None) -> Iterator[tuple[str, Payload]]:
        if payload is not None:
            yield client, payload
        del payload  # it must not be held while the next one is read
        while self._next in self._waiting:
            self._next += 1
            yield from self._take(self._next - 1)

    def _take(self, turn: int) -> Iterator[tuple[str, Payload]]:
        place = self._waiting.pop(turn)
        if place is not None:
            payload = self._get(place)
            if not any(self._waiting.values()):
                self._clear()
            yield self._order[turn], payload

    def _put(self, payload: Payload) -> _Place:
        manifest = json.dumps(payload.manifest).encode()
        place = _Place(self._end, len(manifest), payload.num_bytes)
        with writing(self._folder):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - see close
            start = place.start
            for content in (memoryview(manifest), payload.data.contiguous().numpy().data):
                while content:
                    written = os.pwrite(self._file.fileno(), content, start)
                    content, start = content[written:], start + written
        self._end = start
        return place

    def _get(self, place: _Place) -> Payload:
        """Raises RunError if the disk fails."""
        manifest = bytearray(place.manifest_bytes)
        self._read(memoryview(manifest), place.start)
        # Memory of torch's own, aligned like that of a payload that did not wait: sums must not depend on it.
        data = torch.empty(place.payload_bytes, dtype=torch.uint8)
        self._read(data.numpy().data, place.start + place.manifest_bytes)
        return Payload(tuple((name, dtype, tuple(shape)) for name, dtype, shape in json.loads(manifest)), data)

    def _read(self, into: memoryview, start: int) -> None:
        assert self._file is not None, "what waits has been written"
        try:
            while into:
                length = os.preadv(self._file.fileno(), [into], start)
                if not length:
                    raise OSError("the file is shorter than what was written")
                into, start = into[length:], start + length
        except OSError as error:
            raise RunError(
                f"a reply that waited for its turn in {self._folder} cannot be read back: {error.strerror or error}. "
                "Look at the disk's health (dmesg) and continue the run; what was saved before is intact"
            ) from error

    def _clear(self) -> None:
        """Gives the space back when nothing waits, so that the file is never longer than a round's replies."""
        assert self._file is not None, "something has waited"
        with writing(self._folder):
            self._file.truncate(0)
        self._end = 0
