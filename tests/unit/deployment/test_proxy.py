"""What the network can reach of a server, over real sockets: the fleet's own calls, and no more than its share."""

import asyncio
import base64
import contextlib
import email.utils
import logging
import socket
import ssl
import threading
import time

import pytest

from fedgen.deployment.home import Home
from fedgen.deployment.keys import pem
from fedgen.deployment.provision import provision
from fedgen.deployment.proxy import Limits, Proxy
from fedgen.ports import free_port

TARGET = "/v1/fleet/push-object"
LIMITS = Limits(per_host=4, body_bytes=2**20, handshake_s=2.0, idle_s=0.5, rate=2.0**20, answer_s=1.0)


class Superlink:
    """Stands behind the proxy: keeps what it is asked, and answers each request with its own body."""

    def __init__(self):
        self.requests = []

    async def __call__(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(int(line.split(":")[1]) for line in head.lower().splitlines() if "content-length" in line)
            if "x-early" in head.lower():
                writer.write(b"HTTP/1.1 415 Not So\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
                writer.close()
                return
            body = await reader.readexactly(length)
            self.requests.append((head, body))
            if b"chunked" in body:
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
            elif b"silent" not in body:
                fields = f"Content-Length: {length}\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\n"
                writer.write(f"HTTP/1.1 207 Odd\r\n{fields}\r\n".encode() + body)
            else:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(3)
            await writer.drain()
        writer.close()


@contextlib.contextmanager
def running(home, superlink, limits=LIMITS, certificate=None):
    """A proxy, and a SuperLink behind it if there is one, in a thread."""
    loop = asyncio.new_event_loop()

    async def serve():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain((certificate or home).path / "server.pem", (certificate or home).path / "server.key")
        behind = await asyncio.start_server(superlink, "127.0.0.1", home.superlink_port, ssl=context)
        async with behind:
            if superlink is None:
                behind.close()
            await Proxy(home, limits, logging.Logger("proxy")).serve(home.server)

    main = loop.create_task(serve())
    thread = threading.Thread(target=run, args=(loop, main))
    thread.start()
    try:
        for _ in range(500):
            with (
                contextlib.suppress(ConnectionRefusedError),
                socket.create_connection((home.server.host, home.server.port)),
            ):
                break
            time.sleep(0.01)
        yield
    finally:
        loop.call_soon_threadsafe(main.cancel)
        thread.join(10)
        loop.close()


def run(loop, main):
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(main)
    if rest := asyncio.all_tasks(loop):
        for task in rest:
            task.cancel()
        loop.run_until_complete(asyncio.wait(rest))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return provision(tmp_path_factory.mktemp("a") / "home", f"127.0.0.1:{free_port()}", ["kitchen", "attic"]).home.path


@pytest.fixture(scope="module")
def home(path):
    return Home.open(path)


@pytest.fixture(scope="module")
def superlink(home):
    stand_in = Superlink()
    with running(home, stand_in):
        yield stand_in


def dial(home):
    context = ssl.create_default_context(cafile=home.path / "ca.crt")
    plain = socket.create_connection((home.server.host, home.server.port), 10)
    return context.wrap_socket(plain, server_hostname=home.server.host)


def key_of(home, name="kitchen"):
    return base64.b64encode(pem(home.devices[name].public_key)).decode()


def call(home, body=b"", *, line=f"POST {TARGET} HTTP/1.1", fields=None, connection=None):
    """Status, head and body of the answer to a request; no status if there is none."""
    given = {"Host": "x", "Content-Length": str(len(body)), "flwr-public-key": key_of(home)} | (fields or {})
    head = "\r\n".join([line, *(f"{name}: {value}" for name, value in given.items() if value is not None), "", ""])
    with contextlib.ExitStack() as stack:
        secure = connection or stack.enter_context(dial(home))
        with contextlib.suppress(OSError):
            secure.sendall(head.encode() + body)
        return answer(secure)


def answer(secure):
    got = b""
    with contextlib.suppress(OSError):
        while b"\r\n\r\n" not in got and (piece := secure.recv(65536)):
            got += piece
        head, _, body = got.partition(b"\r\n\r\n")
        lengths = [int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length")]
        chunked = b"transfer-encoding: chunked" in head.lower()
        while len(body) < (lengths or [0])[0] or (chunked and not body.endswith(b"0\r\n\r\n")):
            if not (piece := secure.recv(65536)):
                break
            body += piece
        return (int(head.split()[1]) if head else None), head.decode(), body
    return None, "", b""


def test_a_call_of_the_fleet_passes_both_ways_unchanged(home, superlink):
    body = bytes(range(256)) * 4096
    assert len(body) == LIMITS.body_bytes
    status, head, got = call(
        home, body, fields={"X-Own": "2", "Connection": "keep-alive", "X-Forwarded-For": "10.0.0.1"}
    )
    assert (status, got) == (207, body)
    asked, arrived = superlink.requests[-1]
    assert arrived == body
    assert asked.splitlines()[0] == f"POST {TARGET} HTTP/1.1"
    names = [line.split(":")[0].lower() for line in asked.strip().splitlines()[1:]]
    assert sorted(names) == ["content-length", "flwr-public-key", "host", "x-own"]
    assert f"host: 127.0.0.1:{home.superlink_port}" in asked.lower()
    assert "x-own: 1" in head.lower()
    assert "keep-alive" not in head.lower()


def test_an_answer_of_unknown_length_passes(home, superlink):
    status, head, got = call(home, b"chunked")
    assert (status, got) == (200, b"5\r\nhello\r\n0\r\n\r\n")
    assert "transfer-encoding: chunked" in head.lower()


def test_an_answer_that_comes_before_the_end_of_the_body_passes_if_it_can(home, superlink):
    before = len(superlink.requests)
    status, _, body = call(home, bytes(LIMITS.body_bytes), fields={"X-Early": "1"})
    # What was in flight when the SuperLink closed may be lost with the answer; then the device asks again.
    assert (status, body) in [(415, b"no"), (503, b"no SuperLink\n")]
    assert call(home, b"x")[0] == 207
    assert len(superlink.requests) == before + 1


def test_a_connection_brings_one_call_after_another(home, superlink):
    with dial(home) as secure:
        for body in (b"one", b"", b"three"):
            assert call(home, body, connection=secure)[::2] == (207, body)


@pytest.mark.parametrize(
    "line",
    [
        "POST /v1/control/list-runs HTTP/1.1",
        "POST /v1/control/start-run HTTP/1.1",
        "POST /v1/runtime/acquire-task HTTP/1.1",
        "GET /health HTTP/1.1",
        "GET /docs HTTP/1.1",
        "GET /openapi.json HTTP/1.1",
        "POST / HTTP/1.1",
        "GET /v1/fleet/push-object HTTP/1.1",
        "PUT /v1/fleet/push-object HTTP/1.1",
        "post /v1/fleet/push-object HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "CONNECT 127.0.0.1:22 HTTP/1.1",
        "POST /v1/fleet/ HTTP/1.1",
        "POST /v1/fleet HTTP/1.1",
        "POST //v1/fleet/push-object HTTP/1.1",
        "POST /v1/fleet/push-object/ HTTP/1.1",
        "POST /v1/fleet/../control/list-runs HTTP/1.1",
        "POST /v1/fleet/..%2fcontrol%2flist-runs HTTP/1.1",
        "POST /v1/fleet/%2e%2e/control/list-runs HTTP/1.1",
        "POST /v1/fleet/push-object?a=/v1/control HTTP/1.1",
        "POST /v1/fleet/push-object;x HTTP/1.1",
        "POST /V1/FLEET/push-object HTTP/1.1",
        "POST https://127.0.0.1/v1/control/list-runs HTTP/1.1",
        "POST https://127.0.0.1/v1/fleet/push-object HTTP/1.1",
    ],
)
def test_everything_else_is_not_there(home, superlink, line):
    before = len(superlink.requests)
    status, head, body = call(home, line=line)
    assert (status, body) == (404, b"not found\n")
    assert "connection: close" in head.lower()
    assert len(superlink.requests) == before


def test_a_refusal_says_what_time_it_is(home, superlink):
    head = call(home, line="GET / HTTP/1.1")[1]
    date = next(line.partition(":")[2] for line in head.splitlines() if line.lower().startswith("date:"))
    assert abs(email.utils.parsedate_to_datetime(date.strip()).timestamp() - time.time()) < 5


@pytest.mark.parametrize("key", [None, "", "x", base64.b64encode(b"-----BEGIN PUBLIC KEY-----").decode()])
def test_an_unknown_device_gets_nowhere(home, superlink, key):
    before = len(superlink.requests)
    assert call(home, fields={"flwr-public-key": key})[::2] == (401, b"unknown device\n")
    assert len(superlink.requests) == before


def test_two_keys_are_none(home, superlink):
    line = f"POST {TARGET} HTTP/1.1\r\nflwr-public-key: {key_of(home, 'attic')}"
    assert call(home, line=line)[0] == 401


def test_a_revoked_device_is_out_at_once_and_a_new_one_in(home, superlink):
    kept = (home.path / "fleet.json").read_bytes()
    try:
        assert call(home)[0] == 207
        provision(home.path, None, [], revoke=["kitchen"])
        assert call(home)[0] == 401
        added = provision(home.path, None, ["cellar"]).home
        assert call(home, fields={"flwr-public-key": key_of(added, "cellar")})[0] == 207
        (home.path / "fleet.json").write_bytes(b"{")
        assert call(home, fields={"flwr-public-key": key_of(added, "cellar")})[0] == 207
    finally:
        (home.path / "fleet.json").write_bytes(kept)
    assert call(home)[0] == 207


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"Content-Length": str(LIMITS.body_bytes + 1)}, 413),
        ({"Content-Length": "9" * 19}, 413),
        ({"Content-Length": "9" * 5000}, 400),
        ({"Content-Length": None}, 411),
        ({"Content-Length": None, "Transfer-Encoding": "chunked"}, 411),
        ({"Content-Length": "4", "Transfer-Encoding": "chunked"}, 411),
        ({"Content-Length": "4, 5"}, 400),
        ({"Content-Length": "-4"}, 400),
        ({"Content-Length": "+4"}, 400),
        ({"X": "a" * 20_000}, 431),
        ({"X": "a\x00b"}, 400),
        ({"X y": "a"}, 400),
    ],
)
def test_what_two_ends_could_read_differently_or_is_too_much_is_refused(home, superlink, fields, status):
    before = len(superlink.requests)
    assert call(home, fields=fields)[0] == status
    assert len(superlink.requests) == before


def test_a_body_behind_its_end_is_no_second_request(home, superlink):
    smuggled = b"POST /v1/control/start-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    before = len(superlink.requests)
    with dial(home) as secure:
        assert call(home, b"1234" + smuggled, fields={"Content-Length": "4"}, connection=secure)[0] == 207
        assert answer(secure)[0] == 404
    assert [body for _, body in superlink.requests[before:]] == [b"1234"]


@pytest.mark.parametrize("start", [b"", b"POST /v1/fl", f"POST {TARGET} HTTP/1.1\r\nHost: x\r\n".encode()])
def test_who_does_not_finish_a_head_is_not_waited_for(home, superlink, start):
    with dial(home) as secure:
        secure.sendall(start)
        assert secure.recv(100) == b""


def test_who_does_not_finish_a_body_is_not_waited_for(home, superlink):
    before = len(superlink.requests)
    assert call(home, b"12", fields={"Content-Length": "100"})[0] is None
    assert len(superlink.requests) == before


def test_a_superlink_that_does_not_answer_is_not_waited_for(home, superlink):
    assert call(home, b"silent")[0] == 503


def test_nobody_takes_more_than_a_share(home, superlink):
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(dial(home)) for _ in range(LIMITS.per_host)]
        assert call(home)[0] is None
        assert call(home, connection=taken[0])[0] == 207
    for _ in range(100):
        if call(home)[0] == 207:
            break
    else:
        pytest.fail("connections that are closed are never given back")


def test_only_tls_is_spoken(home, superlink):
    with socket.create_connection((home.server.host, home.server.port), 10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP" not in plain.recv(100)


def test_without_a_superlink_it_says_so(tmp_path):
    home = provision(tmp_path / "home", f"127.0.0.1:{free_port()}", ["kitchen"]).home
    with running(home, None):
        assert call(home)[::2] == (503, b"no SuperLink\n")


def test_a_superlink_of_another_home_is_not_trusted(tmp_path):
    home = provision(tmp_path / "home", f"127.0.0.1:{free_port()}", ["kitchen"]).home
    other = provision(tmp_path / "other", f"127.0.0.1:{free_port()}", []).home
    stand_in = Superlink()
    with running(home, stand_in, certificate=other):
        assert call(home)[0] == 503
    assert stand_in.requests == []
