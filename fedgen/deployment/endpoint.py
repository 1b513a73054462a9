"""One end of an HTTP/1.1 connection: what h11 makes of its bytes, with a limit to every wait."""

import asyncio
import email.utils
from collections.abc import Iterable
from typing import final

import h11

CHUNK_BYTES = 65536
HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"host"}
    | {b"expect", b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"}
)


@final
class Endpoint:
    """One end of a connection: what h11 knows about it, and its bytes."""

    def __init__(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, idle_s: float
    ) -> None:
        self.connection = connection
        self._reader = reader
        self._writer = writer
        self._idle_s = idle_s

    async def event(self, timeout_s: float | None = None) -> object:
        """What comes in next; waits so long for each piece of it, or the connection's own limit."""
        while (event := self.connection.next_event()) is h11.NEED_DATA:
            async with asyncio.timeout(timeout_s or self._idle_s):
                self.connection.receive_data(await self._reader.read(CHUNK_BYTES))
        return event

    async def send(self, event: h11.Event) -> None:
        """Sends, and waits until there is room for more."""
        content = self.connection.send(event)
        if content:
            self._writer.write(content)
            async with asyncio.timeout(self._idle_s):
                await self._writer.drain()

    async def close_with(self, status: int, reason: str) -> None:
        """Answers shortly and closes. The date lets a device see how far its clock is off."""
        if self.connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = reason.encode() + b"\n"
        headers = [
            (b"date", email.utils.formatdate(usegmt=True).encode()),
            (b"content-type", b"text/plain"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await self.send(h11.Response(status_code=status, headers=headers))
        await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers that concern the two far ends."""
    return [(name, value) for name, value in headers if name not in HOP_BY_HOP]
