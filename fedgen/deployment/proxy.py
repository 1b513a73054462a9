"""All of a server that the network sees: TLS, and behind it the one part of Flower's API that devices need.

A SuperLink listens on one port for everything, and its Control API asks nobody who he is: whoever reaches it may submit
code. So it listens on this machine only, and this process passes ``POST /v1/fleet/…`` on to it and nothing else, and
that only from devices of `fleet.json`: a device that is revoked there is out with its next request. Whether it is the
device that it says, the SuperLink finds out itself, from the signature in each request.

Bodies pass through in pieces, so that memory does not grow with them. Nobody is waited for without end, and nobody can
hold more than a share of the connections.
"""

import argparse
import asyncio
import base64
import collections
import contextlib
import logging
import re
import resource
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import h11

from fedgen.deployment.address import Address, address_of
from fedgen.deployment.endpoint import CHUNK_BYTES, Endpoint, end_to_end
from fedgen.deployment.home import Home
from fedgen.deployment.keys import pem
from fedgen.deployment.reach import PUBLIC_KEY_HEADER, UNKNOWN_DEVICE
from fedgen.errors import ConfigError

ALLOWED = re.compile(rb"/v1/fleet/[a-z][a-z-]{0,63}")
"""The target of a request that passes: no query, no escapes, no dots, so that both ends read it alike."""

REASONS = {
    401: UNKNOWN_DEVICE,
    404: "not found",
    411: "no length",
    413: "too large",
    431: "head too large",
    503: "no SuperLink",
    400: "malformed",
}


@final
@dataclass(frozen=True)
class Limits:
    """What anybody from outside may take.

    Attributes:
        connections: at once, in all.
        per_host: at once from one address; many devices may share one.
        head_bytes: of a request's head.
        body_bytes: of a request's body; Flower sends pieces of 5 MB.
        handshake_s: for TLS.
        idle_s: for the head of a request, the wait between two requests, and the wait for a piece to be taken.
        rate: bytes per second that a body must reach on average.
        answer_s: for the SuperLink to begin its answer.
    """

    connections: int = 1024
    per_host: int = 256
    head_bytes: int = 16 * 2**10
    body_bytes: int = 16 * 2**20
    handshake_s: float = 10.0
    idle_s: float = 30.0
    rate: float = 2048.0
    answer_s: float = 60.0


class _RefusedError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(REASONS[status])
        self.status = status


@final
class Proxy:
    """Serves until it is cancelled.

    Args:
        home: whose certificate is shown, and whose SuperLink stands behind.
        limits: what anybody may take.
        log: where refusals are counted, once a minute.
    """

    def __init__(self, home: Home, limits: Limits, log: logging.Logger) -> None:
        self._home = home
        self._limits = limits
        self._log = log
        self._known = _Known(home.path)
        self._open: collections.Counter[str] = collections.Counter()
        self._refused: collections.Counter[str] = collections.Counter()
        self._inside = ssl.create_default_context(cafile=str(home.path / "ca.crt"))

    async def serve(self, listen: Address) -> None:
        """Listens on an address; "0.0.0.0" or "::" for all of this machine's.

        Raises:
            OSError: somebody else listens there.
        """
        outside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        outside.minimum_version = ssl.TLSVersion.TLSv1_2
        outside.load_cert_chain(self._home.path / "server.pem", self._home.path / "server.key")
        server = await asyncio.start_server(
            self._connection,
            listen.host,
            listen.port,
            limit=CHUNK_BYTES,
            ssl=outside,
            ssl_handshake_timeout=self._limits.handshake_s,
            ssl_shutdown_timeout=5.0,
        )
        async with server:
            while True:
                await asyncio.sleep(60.0)
                self._report()

    def _report(self) -> None:
        if self._refused:
            counts = ", ".join(f"{number} {reason}" for reason, number in sorted(self._refused.items()))
            self._log.warning("refused in the last minute: %s", counts)
            self._refused.clear()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = str(writer.get_extra_info("peername")[0])
        if self._open.total() >= self._limits.connections or self._open[host] >= self._limits.per_host:
            self._refused["too many connections"] += 1
            writer.transport.abort()
            return
        self._open[host] += 1
        outside = Endpoint(h11.Connection(h11.SERVER, self._limits.head_bytes), reader, writer, self._limits.idle_s)
        try:
            while await self._request(outside):
                pass
        except _RefusedError as refusal:
            self._refused[REASONS[refusal.status]] += 1
            with contextlib.suppress(OSError, TimeoutError, h11.ProtocolError):
                await outside.close_with(refusal.status, REASONS[refusal.status])
        except (OSError, TimeoutError, h11.ProtocolError, EOFError):
            self._refused["broken off"] += 1
        finally:
            self._open[host] -= 1
            self._open += collections.Counter()
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), self._limits.idle_s)

    async def _request(self, outside: Endpoint) -> bool:
        """Passes one request on and its answer back; tells whether the connection may bring another."""
        try:
            async with asyncio.timeout(self._limits.idle_s):
                request = await outside.event()
        except h11.RemoteProtocolError as error:
            raise _RefusedError(400) from error
        except (OSError, TimeoutError):
            return False
        if not isinstance(request, h11.Request):
            return False
        length = self._length(request)
        try:
            async with asyncio.timeout(self._limits.handshake_s):
                superlink = self._home.superlink
                reader, writer = await asyncio.open_connection(
                    superlink.host, superlink.port, ssl=self._inside, limit=CHUNK_BYTES
                )
        except (OSError, TimeoutError) as error:
            raise _RefusedError(503) from error
        inside = Endpoint(h11.Connection(h11.CLIENT), reader, writer, self._limits.idle_s)
        try:
            async with asyncio.timeout(self._limits.idle_s + length / self._limits.rate):
                await self._ask(request, outside, inside)
            return await self._answer(outside, inside)
        finally:
            writer.transport.abort()

    def _length(self, request: h11.Request) -> int:
        """How long the body of a request is that may pass."""
        if request.method != b"POST" or ALLOWED.fullmatch(request.target) is None:
            raise _RefusedError(404)
        if sum(len(name) + len(value) for name, value in request.headers) > self._limits.head_bytes:
            raise _RefusedError(431)
        if not self._known.holds([value for name, value in request.headers if name == PUBLIC_KEY_HEADER.encode()]):
            raise _RefusedError(401)
        lengths = [value for name, value in request.headers if name == b"content-length"]
        if len(lengths) != 1 or any(name == b"transfer-encoding" for name, _ in request.headers):
            raise _RefusedError(411)
        if len(lengths[0]) > 12 or int(lengths[0]) > self._limits.body_bytes:
            raise _RefusedError(413)
        return int(lengths[0])

    async def _ask(self, request: h11.Request, outside: Endpoint, inside: Endpoint) -> None:
        headers = [(b"host", str(self._home.superlink).encode()), *end_to_end(request.headers)]
        await inside.send(h11.Request(method=b"POST", target=request.target, headers=headers))
        if outside.connection.they_are_waiting_for_100_continue:
            await outside.send(h11.InformationalResponse(status_code=100, headers=[]))
        taken = True
        while not isinstance(event := await outside.event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise EOFError
            try:
                if taken:
                    await inside.send(event)
            except OSError:
                # It has answered before it had read all. Its answer is what counts; the rest goes nowhere.
                taken = False
        if taken:
            await inside.send(h11.EndOfMessage())

    async def _answer(self, outside: Endpoint, inside: Endpoint) -> bool:
        try:
            async with asyncio.timeout(self._limits.answer_s):
                while isinstance(event := await inside.event(), h11.InformationalResponse):
                    pass
        except (OSError, TimeoutError, h11.ProtocolError) as error:
            raise _RefusedError(503) from error
        if not isinstance(event, h11.Response):
            raise _RefusedError(503)
        framing = [pair for pair in event.headers if pair[0] == b"transfer-encoding"]
        headers = [*end_to_end(event.headers), *framing]
        await outside.send(h11.Response(status_code=event.status_code, headers=headers))
        while not isinstance(part := await inside.event(self._limits.answer_s), h11.EndOfMessage):
            if not isinstance(part, h11.Data):
                raise EOFError
            await outside.send(part)
        await outside.send(h11.EndOfMessage())
        if h11.MUST_CLOSE in (outside.connection.our_state, outside.connection.their_state):
            return False
        outside.connection.start_next_cycle()
        return True


@final
class _Known:
    """The keys of `fleet.json`, as they are now."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._read = (0, 0)
        self._keys: frozenset[bytes] = frozenset()

    def holds(self, keys: Sequence[bytes]) -> bool:
        """Whether a request that says so of itself comes from a device of the fleet."""
        # A file that is away or damaged for a moment shuts nobody out who is in.
        with contextlib.suppress(OSError, ConfigError):
            stat = (self._home / "fleet.json").stat()
            if self._read != (stat.st_mtime_ns, stat.st_size):
                self._keys = frozenset(
                    base64.b64encode(pem(one.public_key)) for one in Home.open(self._home).devices.values()
                )
                self._read = (stat.st_mtime_ns, stat.st_size)
        return len(keys) == 1 and keys[0] in self._keys


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until a signal ends it."""
    parser = argparse.ArgumentParser(
        "python -m fedgen.deployment.proxy", description="What the network sees of a home."
    )
    parser.add_argument("home", type=Path)
    parser.add_argument("listen", type=address_of)
    given = parser.parse_args(arguments)
    log = logging.Logger("proxy")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8192) if most > 0 else 8192, most))
    # Noise from connections that break in the middle of a handshake; there is nothing to do about them.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Proxy(Home.open(given.home), Limits(), log).serve(given.listen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
