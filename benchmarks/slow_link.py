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
    # The loop itself does not keep tasks that wait.
    kept: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_connection(reader, writer, there, delay_s))
        kept.add(task)
        task.add_done_callback(kept.discard)

    server = await asyncio.start_server(connected, *listen)
    async with server:
        await server.serve_forever()


async def _connection(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, there: tuple[str, int], delay_s: float
) -> None:
    """One connection, until both directions are at their end or one is broken."""
    writers = [writer]
    try:
        await asyncio.sleep(delay_s)
        far_reader, far_writer = await asyncio.open_connection(*there)
        writers.append(far_writer)
        async with asyncio.TaskGroup() as ways:
            ways.create_task(_carry(reader, far_writer, delay_s))
            ways.create_task(_carry(far_reader, writer, delay_s))
    except* OSError:
        pass
    for end in writers:
        end.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Carries bytes one way until there are no more.

    Raises:
        OSError: the connection is broken.
    """
    way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(NUM_CHUNKS)
    loop = asyncio.get_running_loop()

    async def take() -> None:
        chunk = b"more"
        while chunk:
            chunk = await reader.read(CHUNK_BYTES)
            await way.put((loop.time() + delay_s, chunk))

    async def give() -> None:
        while (item := await way.get())[1]:
            await asyncio.sleep(max(0.0, item[0] - loop.time()))
            writer.write(item[1])
            await writer.drain()
        await asyncio.sleep(max(0.0, item[0] - loop.time()))
        # The other direction goes on.
        writer.write_eof()

    async with asyncio.TaskGroup() as both:
        both.create_task(take())
        both.create_task(give())


def main(arguments: Sequence[str]) -> None:
    """Serves until a signal ends it."""
    listen, there, milliseconds = arguments
    ends = [(host, int(port)) for host, _, port in (end.rpartition(":") for end in (listen, there))]
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(ends[0], ends[1], float(milliseconds) / 1000))


if __name__ == "__main__":
    main(sys.argv[1:])
