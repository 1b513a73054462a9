"""Payloads in a fixed order, whatever the order in which they come.

Sums of fp32 depend on the order of their terms, so replies are folded in the order of the clients' names. One that
comes before its turn waits on the disk: memory stays at one payload, however slow the first client is.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from fedgen import spool
from fedgen.disk import writing
from fedgen.messages import Payload
from fedgen.spool import Place

Stored = Callable[[], Payload]
"""Reads a payload from where it lies already."""


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
        self._waiting: dict[int, Place | Stored | None] = {}

    def arrive(self, client: str, payload: Payload | Stored | None) -> Iterator[tuple[str, Payload]]:
        """Takes what came of a client and hands on what is due now, in order.

        Args:
            client: one of the order; each arrives once.
            payload: what came, or how to read it when its turn is; None if nothing usable did, and nobody has to wait
                for this client any more.

        Returns:
            Client and payload of each whose turn it is. To be used up before the next arrival.

        Raises:
            RunError: the disk is full or fails.
        """
        turn = self._turn[client]
        assert turn >= self._next, "a client arrives once, and before its round is over"
        assert turn not in self._waiting, "a client arrives once"
        if turn > self._next:
            self._waiting[turn] = self._put(payload) if isinstance(payload, Payload) else payload
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

    def _hand_on(self, client: str, payload: Payload | Stored | None) -> Iterator[tuple[str, Payload]]:
        if payload is not None:
            yield client, payload if isinstance(payload, Payload) else payload()
        del payload  # it must not be held while the next one is read
        while self._next in self._waiting:
            self._next += 1
            yield from self._take(self._next - 1)

    def _take(self, turn: int) -> Iterator[tuple[str, Payload]]:
        waiting = self._waiting.pop(turn)
        if isinstance(waiting, Place):
            payload = self._get(waiting)
            if not any(isinstance(other, Place) for other in self._waiting.values()):
                self._clear()
            yield self._order[turn], payload
        elif waiting is not None:
            yield self._order[turn], waiting()

    def _put(self, payload: Payload) -> Place:
        with writing(self._folder):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - see close
            place = spool.put(self._file.fileno(), self._end, payload)
        self._end = place.end
        return place

    def _get(self, place: Place) -> Payload:
        """Raises RunError if the disk fails."""
        assert self._file is not None, "what waits has been written"
        return spool.get(self._file.fileno(), place, self._folder)

    def _clear(self) -> None:
        """Gives the space back when nothing waits, so that the file is never longer than a round's replies."""
        assert self._file is not None, "something has waited"
        with writing(self._folder):
            self._file.truncate(0)
        self._end = 0
