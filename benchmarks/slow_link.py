"""A proxy that hands every byte on after some milliseconds, in both directions, and loses none.

``python slow_link.py LISTEN_HOST:PORT HOST:PORT MILLISECONDS``
"""

import asyncio
import contextlib
import sys
from collections.abc import Sequence

CHUNK_BYTES = 65536
NUM_CHUNKS = 64
"""So many are on their way at most; who sends more has to wait, as with a window of that size."""


async def serve(listen: tuple[str, int], there: tuple[str, int], delay_s: float) -> None:
    """Serves until it is cancelled."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.sleep(delay_s)
            far_reader, far_writer = await asyncio.open_connection(*there)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_carry(reader, far_writer, delay_s), _carry(far_reader, writer, delay_s))
        for end in (writer, far_writer):
            end.close()

    server = await asyncio.start_server(connected, *listen)
    async with server:
        await server.serve_forever()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Carries bytes one way until there are no more."""
    way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(NUM_CHUNKS)
    loop = asyncio.get_running_loop()

    async def take() -> None:
        chunk = b"more"
        while chunk:
            try:
                chunk = await reader.read(CHUNK_BYTES)
            except OSError:
                chunk = b""
            await way.put((loop.time() + delay_s, chunk))

    taking = asyncio.create_task(take())
    with contextlib.suppress(OSError):
        while True:
            due, chunk = await way.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not chunk:
                # The other direction goes on.
                writer.write_eof()
                break
            writer.write(chunk)
            await writer.drain()
    taking.cancel()


def main(arguments: Sequence[str]) -> None:
    """Serves until a signal ends it."""
    listen, there, milliseconds = arguments
    ends = [(host, int(port)) for host, _, port in (end.rpartition(":") for end in (listen, there))]
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(ends[0], ends[1], float(milliseconds) / 1000))


if __name__ == "__main__":
    main(sys.argv[1:])
