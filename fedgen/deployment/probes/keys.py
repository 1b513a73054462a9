"""Keys and certificates in a device's bundle and in a server's home: there, private, and belonging together."""

import time
from collections.abc import Collection, Mapping

from fedgen.deployment import keys, provision
from fedgen.deployment.bundle import Bundle
from fedgen.deployment.files import read_bytes
from fedgen.deployment.finding import Finding
from fedgen.deployment.home import Home
from fedgen.deployment.probes.link import DAY_S, SET_CLOCK, lasting
from fedgen.errors import ConfigError

AGAIN = "copy the bundle from the server again"


def pair(bundle: Bundle) -> Finding:
    """Whether a device's two keys belong together."""
    try:
        mine = keys.public_half(read_bytes(bundle.path / "node.key")).split()[:2]
        told = read_bytes(bundle.path / "node.pub").split()[:2]
    except ConfigError as error:
        return Finding("device key", "fail", str(error), AGAIN)
    if mine != told:
        return Finding("device key", "fail", "node.key and node.pub are no pair", AGAIN)
    return Finding("device key", "ok", f"of {bundle.client}, private and a pair")


def authority(bundle: Bundle, now: float | None = None) -> Finding:
    """How long the certificate of the only authority that a device trusts lasts.

    Args:
        bundle: of the device.
        now: seconds since 1970; this moment if None.
    """
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(read_bytes(bundle.path / "ca.crt"))
    except (ConfigError, ValueError) as error:
        return Finding("CA", "fail", f"ca.crt is damaged: {error}", AGAIN)
    moment = time.time() if now is None else now
    if moment < found.not_valid_before_utc.timestamp():
        return Finding("CA", "fail", "not valid yet by this clock", SET_CLOCK)
    return lasting("CA", found.not_valid_after_utc.timestamp() - moment)


def server_certificate(home: Home) -> Finding:
    """Whether the server's secrets are private, and its certificate is its authority's, for its address, and lasts."""
    try:
        days = provision.check_certificate(home)
    except ConfigError as error:
        return Finding("certificate", "fail", str(error), "do what it says")
    return lasting("certificate", days * DAY_S)


def registered(devices: Collection[str], nodes: Mapping[str, str] | None) -> Finding:
    """Whether the server knows the keys of all devices.

    Args:
        devices: names in fleet.json.
        nodes: device → what the server says of its key; None if the server could not be asked.
    """
    if not devices:
        return Finding("devices", "warn", "none", "fedgen provision HOME --device NAME")
    if nodes is None:
        return Finding("devices", "warn", f"{len(devices)}; no server runs that could be asked", "fedgen server HOME")
    unknown = [name for name in devices if name not in nodes]
    if unknown:
        few = ", ".join(unknown[:3]) + ("" if len(unknown) <= 3 else f" and {len(unknown) - 3} more")
        return Finding(
            "devices", "fail", f"the server does not know the key of {few}", "start the server again: it registers keys"
        )
    online = sum(nodes[name] == "online" for name in devices)
    return Finding("devices", "ok", f"{len(devices)} registered, {online} online")
