"""What a device finds out about its server, against real TLS servers with one thing wrong each."""

import base64
import contextlib
import email.utils
import socket
import ssl
import threading
import time

import pytest

from fedgen.deployment import keys
from fedgen.deployment.address import Address
from fedgen.deployment.reach import look

AUTHORITY = keys.new_authority()


@contextlib.contextmanager
def server(tmp_path, answer, *, authority=AUTHORITY, hosts=("127.0.0.1",), days=10):
    """Answers every request over TLS; yields where, and what it was asked."""
    pair = keys.new_server(authority, hosts, days)
    (tmp_path / "ca.crt").write_bytes(AUTHORITY.public)
    (tmp_path / "server.pem").write_bytes(pair.public)
    (tmp_path / "server.key").write_bytes(pair.private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError), plain, context.wrap_socket(plain, server_side=True) as secure:
                    asked.append(secure.recv(65536).decode())
                    secure.sendall(answer())

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Address("127.0.0.1", listener.getsockname()[1]), asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def http(status=404, ahead_s=0.0, body=b"not found\n"):
    """What a server says whose clock is behind ours by so much."""
    date = email.utils.formatdate(time.time() - ahead_s, usegmt=True)
    return lambda: f"HTTP/1.1 {status} x\r\nDate: {date}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_nothing_is_wrong(tmp_path):
    with server(tmp_path, http()) as (address, asked):
        finding = look(address, tmp_path / "ca.crt", b"a key")
    assert finding.problem is None
    assert abs(finding.ahead_s) < 2
    assert asked[0].startswith("POST /v1/fleet/activate-node HTTP/1.1\r\n")
    assert f"flwr-public-key: {base64.b64encode(b'a key').decode()}\r\n" in asked[0]


@pytest.mark.parametrize(
    ("ahead_s", "said"),
    [
        (3600, "3600 s ahead of the server's"),
        (8, "8 s ahead of"),
        (-310, "310 s behind"),
        (-86400, "86400 s behind"),
        (3, None),
        (-290, None),
    ],
)
def test_clocks_that_differ(tmp_path, ahead_s, said):
    with server(tmp_path, http(ahead_s=ahead_s)) as (address, _):
        finding = look(address, tmp_path / "ca.crt")
    assert finding.ahead_s == pytest.approx(ahead_s, abs=2)
    if said is None:
        assert finding.problem is None
    else:
        # A second more or less is in the date itself.
        words = said.split()
        assert words[-1] in finding.problem
        assert "set-ntp" in finding.problem


def test_a_certificate_of_another_authority(tmp_path):
    with server(tmp_path, http(), authority=keys.new_authority()) as (address, asked):
        finding = look(address, tmp_path / "ca.crt", b"a key")
    assert "not from this bundle's authority" in finding.problem
    assert asked == []


def test_a_certificate_for_another_name(tmp_path):
    for hosts in (("fl.example",), ("10.0.0.7",)):
        with server(tmp_path, http(), hosts=hosts) as (address, asked):
            assert "for another name" in look(address, tmp_path / "ca.crt").problem
        assert asked == []


def test_a_certificate_that_has_ended(tmp_path):
    with server(tmp_path, http(), days=0) as (address, _):
        finding = look(address, tmp_path / "ca.crt")
    assert "has ended. On the server, `fedgen provision HOME` renews it" in finding.problem


def test_a_certificate_that_has_ended_by_a_clock_that_is_wrong(tmp_path):
    with server(tmp_path, http(ahead_s=10 * 86400), days=0) as (address, _):
        finding = look(address, tmp_path / "ca.crt")
    assert "has ended. this device's clock" in finding.problem
    assert "set-ntp" in finding.problem


def test_a_key_that_is_not_known(tmp_path):
    with server(tmp_path, http(401, body=b"unknown device\n")) as (address, _):
        assert "does not know this device's key" in look(address, tmp_path / "ca.crt", b"a key").problem
        assert look(address, tmp_path / "ca.crt").problem is None
    with server(tmp_path, http(401, body=b"no signature\n")) as (address, _):
        assert look(address, tmp_path / "ca.crt", b"a key").problem is None


def test_a_server_without_its_superlink(tmp_path):
    with server(tmp_path, http(503)) as (address, _):
        assert "SuperLink is down" in look(address, tmp_path / "ca.crt", b"a key").problem


def test_something_else_answers(tmp_path):
    with server(tmp_path, lambda: b"220 mail\r\n") as (address, _):
        assert "does not speak HTTP" in look(address, tmp_path / "ca.crt").problem
    with server(tmp_path, lambda: b"x" * 300_000) as (address, _):
        assert "does not speak HTTP" in look(address, tmp_path / "ca.crt").problem
    with server(tmp_path, lambda: b"HTTP/1.1 200 x\r\nDate: yesterday\r\n\r\n") as (address, _):
        assert look(address, tmp_path / "ca.crt").ahead_s is None


def test_nobody_answers(tmp_path):
    (tmp_path / "ca.crt").write_bytes(AUTHORITY.public)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address("127.0.0.1", listener.getsockname()[1])
        began = time.monotonic()
        assert "cannot be reached (no answer)" in look(address, tmp_path / "ca.crt", timeout_s=0.3).problem
        assert time.monotonic() - began < 2
    assert "refuses connections" in look(address, tmp_path / "ca.crt").problem


def test_an_authority_that_is_missing_or_damaged(tmp_path):
    assert "Unpack the bundle again" in look(Address("127.0.0.1", 1), tmp_path / "ca.crt").problem
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    assert "Unpack the bundle again" in look(Address("127.0.0.1", 1), tmp_path / "ca.crt").problem
