"""The way to the server: its name, its port, its certificate, and how far this clock is from its own."""

import socket
import ssl
import time
from pathlib import Path

from fedgen.deployment import keys
from fedgen.deployment.bundle import Bundle
from fedgen.deployment.files import read_bytes
from fedgen.deployment.finding import Finding, Word
from fedgen.deployment.reach import look

TIMEOUT_S = 4.0
FAST_S, SLOW_S = 4.0, 300.0
"""Flower accepts signatures from 5 s ahead of its clock to 305 s behind it; messages take a while."""

WARN_FAST_S, WARN_SLOW_S = 2.0, 60.0
SOON_DAYS = 30
DAY_S = 86400

SET_CLOCK = "sudo timedatectl set-ntp true, wait until `timedatectl` says synchronized, then start the client"


def answers(host: str, port: int, *, down: Word = "fail") -> Finding:
    """Whether the server's name resolves and its port answers.

    Args:
        host: name or address.
        port: of the server.
        down: what it means that nobody answers; a server that is not started yet is no failure on its own machine.
    """
    where = f"{host}:{port}"
    start = "start it there: `fedgen server HOME`"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return Finding("server", "fail", f"{host} does not resolve: {error}", "check the name, the network and the DNS")
    address = found[0][4][0]
    try:
        socket.create_connection((host, port), TIMEOUT_S).close()
    except TimeoutError:
        return Finding("server", down, f"{where} ({address}) is silent", f"check firewall and address; or {start}")
    except ConnectionRefusedError:
        return Finding("server", down, f"{where} ({address}) refuses: nothing listens there", start)
    except OSError as error:
        return Finding("server", down, f"{where}: {error.strerror or error}", "check the network")
    return Finding("server", "ok", f"{where} answers")


def certificate(host: str, port: int, ca: Path, now: float | None = None) -> Finding:
    """Whether the server's certificate is of the bundle's CA and for its name, and how long it lasts.

    Args:
        host: name or address.
        port: of the server.
        ca: certificate of the CA.
        now: seconds since 1970; this moment if None.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as error:
        return Finding("certificate", "fail", f"{ca} cannot be used: {error}", "copy the bundle here again")
    try:
        with (
            socket.create_connection((host, port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            told = secure.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return _refused(error)
    except (OSError, ssl.SSLError) as error:
        return Finding("certificate", "warn", f"could not be looked at: {error}", "first make the server answer")
    ends = ssl.cert_time_to_seconds(str(told["notAfter"]))
    return lasting("certificate", ends - (time.time() if now is None else now))


def clock(bundle: Bundle) -> Finding:
    """How far this clock is from the server's, which refuses what is signed at another time."""
    ahead = look(bundle.server, bundle.path / "ca.crt", timeout_s=TIMEOUT_S).ahead_s
    if ahead is None:
        return Finding("clock", "warn", "the server does not tell the time", "first make the server answer")
    return judged(ahead)


def admitted(bundle: Bundle) -> Finding:
    """Whether the server takes this device: it knows its key, and nothing else stands between."""
    key = keys.pem(keys.public_half(read_bytes(bundle.path / "node.key")).decode())
    found = look(bundle.server, bundle.path / "ca.crt", key, TIMEOUT_S)
    if found.problem is not None:
        return Finding("admission", "fail", found.problem, "do what it says")
    return Finding("admission", "ok", f"the server knows {bundle.client}")


def lasting(probe: str, seconds: float) -> Finding:
    """How long a certificate still lasts."""
    days = int(seconds // DAY_S)
    if seconds <= 0:
        return Finding(probe, "fail", "expired", "renew it on the server: `fedgen provision`; or set this clock")
    if days < SOON_DAYS:
        return Finding(probe, "warn", f"valid for {days} more days", "renew it on the server: `fedgen provision`")
    return Finding(probe, "ok", f"valid for {days} more days")


def judged(ahead: float) -> Finding:
    """A finding from the seconds that this clock is ahead of the server's."""
    if abs(ahead) <= 1:
        return Finding("clock", "ok", "as the server's, to a second")
    got = f"{_duration(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} the server's"
    if ahead > FAST_S or ahead < -SLOW_S:
        return Finding("clock", "fail", f"{got}; the server refuses that", SET_CLOCK)
    if ahead > WARN_FAST_S or ahead < -WARN_SLOW_S:
        return Finding(
            "clock", "warn", f"{got}; it refuses more than {FAST_S:g} s ahead or {SLOW_S:g} s behind", SET_CLOCK
        )
    return Finding("clock", "ok", got)


def _refused(error: ssl.SSLCertVerificationError) -> Finding:
    said = error.verify_message
    if error.verify_code in (9, 10):
        # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
        advice = f"if this clock is right, renew it on the server: `fedgen provision`; else {SET_CLOCK}"
    elif error.verify_code in (62, 64):
        # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
        advice = "the bundle names another address than the server's certificate; provision with the address in use"
    else:
        advice = "this bundle is of another server, or somebody stands between: copy the bundle from the server again"
    return Finding("certificate", "fail", f"refused: {said}", advice)


def _duration(seconds: float) -> str:
    """Seconds, or minutes where they are many.

    >>> _duration(4.26), _duration(3600.0)
    ('4.3 s', '60 min')
    """
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
