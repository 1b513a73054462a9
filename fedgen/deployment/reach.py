"""Looks from a device at its server: is it there, is it the right one, do the clocks agree, does it know our key?

Flower itself says of each of these only that a connection attempt failed.
"""

import base64
import contextlib
import datetime
import email.utils
import re
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fedgen.deployment.address import Address

AHEAD_S = 5.0
BEHIND_S = 300.0
"""Flower takes a signature that is at most 5 s of the future and 305 s of the past."""

TIMEOUT_S = 4.0
MOST_BYTES = 65536
PROBE = "/v1/fleet/activate-node"
"""Without a signature it changes nothing."""

PUBLIC_KEY_HEADER = "flwr-public-key"
"""In it a SuperNode says which key it signs with: base64 of the key's PEM."""

UNKNOWN_DEVICE = "unknown device"
"""What the proxy answers to a key that is not in `fleet.json`."""

_NOT_YET_VALID, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64
"""OpenSSL's numbers of what is wrong with a certificate."""


@final
@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        problem: what is wrong and what to do, or None.
        ahead_s: by how much our clock is ahead of the server's; None if the server did not say.
    """

    problem: str | None
    ahead_s: float | None = None


def look(server: Address, authority: Path, public_key: bytes = b"", timeout_s: float = TIMEOUT_S) -> Finding:
    """Makes one request to a server.

    Args:
        server: where it should be.
        authority: certificate of the only authority that is trusted.
        public_key: the device's (PEM); if empty, the server is not asked whether it knows it.
        timeout_s: how long each step may take.
    """
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError):
        return Finding(f"{authority} is missing or damaged. Unpack the bundle again")
    try:
        status, ahead_s, said = _ask(server, context, public_key, timeout_s)
    except ssl.SSLCertVerificationError as error:
        return _distrusted(server, error, timeout_s)
    except ssl.SSLError:
        return Finding(f"{server} does not speak TLS: something else than `fedgen server` answers there")
    except socket.gaierror:
        return Finding(f"nobody knows the name {server.host}. Is this device online, and the name right?")
    except ConnectionRefusedError:
        return Finding(f"{server} refuses connections. Is `fedgen server` running there?")
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return Finding(f"{server} cannot be reached ({why}). Is this device online, and the server running?")
    if status is None:
        return Finding(f"{server} does not speak HTTP: something else than `fedgen server` answers there")
    if public_key and status == 401 and UNKNOWN_DEVICE in said:
        return Finding(
            "the server does not know this device's key: it was revoked, or the bundle is from another home. "
            "On the server, `fedgen provision HOME --device NAME` makes a new one",
            ahead_s,
        )
    if status == 503:
        return Finding(f"{server} is starting, or its SuperLink is down", ahead_s)
    return Finding(_clock(ahead_s), ahead_s)


def _distrusted(server: Address, error: ssl.SSLCertVerificationError, timeout_s: float) -> Finding:
    number = error.verify_code
    if number in (_NOT_YET_VALID, _EXPIRED):
        ahead_s = None
        with contextlib.suppress(OSError):
            # Only to name the likelier culprit: nothing else is believed of what an unproven server says.
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            ahead_s = _ask(server, context, b"", timeout_s)[1]
        state = "is not valid yet" if number == _NOT_YET_VALID else "has ended"
        advice = _clock(ahead_s) or "On the server, `fedgen provision HOME` renews it"
        return Finding(f"the certificate of {server} {state}. {advice}", ahead_s)
    if number in (_OTHER_NAME, _OTHER_ADDRESS):
        return Finding(
            f"the certificate of {server} is for another name. The bundle or the server's address is outdated"
        )
    return Finding(
        f"the certificate of {server} is not from this bundle's authority. Either the bundle belongs to another "
        "server, or somebody stands between"
    )


def _ask(
    server: Address, context: ssl.SSLContext, public_key: bytes, timeout_s: float
) -> tuple[int | None, float | None, str]:
    """The status of the answer to one request, by how much we are ahead of its date, and its body."""
    head = [f"POST {PROBE} HTTP/1.1", f"Host: {server}", "Content-Length: 0", "Connection: close"]
    if public_key:
        head.append(f"{PUBLIC_KEY_HEADER}: {base64.b64encode(public_key).decode()}")
    with (
        socket.create_connection((server.host, server.port), timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=server.host) as secure,
    ):
        began = time.time()
        secure.sendall("\r\n".join([*head, "", ""]).encode())
        answer = b""
        while len(answer) < MOST_BYTES and (piece := secure.recv(4096)):
            answer += piece
        middle = (began + time.time()) / 2
    lines, _, body = answer.decode("latin-1").partition("\r\n\r\n")
    status = re.match(r"HTTP/1\.[01] ([0-9]{3})", lines)
    ahead_s = None
    for line in lines.split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "date":
            with contextlib.suppress(ValueError, TypeError):
                # A date has whole seconds: on average the half of one has passed.
                ahead_s = middle - email.utils.parsedate_to_datetime(value.strip()).timestamp() - 0.5
    return (int(status[1]) if status else None), ahead_s, body


def _clock(ahead_s: float | None) -> str | None:
    if ahead_s is None or -BEHIND_S <= ahead_s <= AHEAD_S:
        return None
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    direction = "ahead of" if ahead_s > 0 else "behind"
    return (
        f"this device's clock ({now} UTC) is {abs(ahead_s):.0f} s {direction} the server's, and what it signs is "
        "refused. Let it keep time: sudo timedatectl set-ntp true"
    )
