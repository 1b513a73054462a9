"""Where a server is: ``host:port``, as it is written on the command line, in files and in messages."""

import ipaddress
import re
from dataclasses import dataclass
from typing import final

from fedgen.errors import ConfigError

LONGEST_HOST = 253
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


@final
@dataclass(frozen=True)
class Address:
    """A host and a port.

    Attributes:
        host: a name, an IPv4 address, or an IPv6 address without brackets.
        port: 1 to 65535.
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port {self.port} is not between 1 and 65535")
        if not _is_address(self.host) and not _is_name(self.host):
            raise ValueError(f"{self.host!r} is neither a host name nor an address")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host == "localhost" or (_is_address(self.host) and ipaddress.ip_address(self.host).is_loopback)


def address_of(text: str) -> Address:
    """Reads ``host:port`` or ``[address]:port``.

    >>> address_of("fl.example:8443").port
    8443
    >>> str(address_of("[::1]:8443"))
    '[::1]:8443'

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(
        r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]/@\s]+)):(?P<port>[0-9]{1,5})", text, re.ASCII
    )
    if match is None:
        raise ConfigError(f"{text!r} is no address: expected HOST:PORT, fl.example.org:8443 say")
    host = (match["six"] or match["host"]).lower()
    try:
        return Address(str(ipaddress.ip_address(host)) if _is_address(host) else host, int(match["port"]))
    except ValueError as error:
        raise ConfigError(f"{text!r} is no address: {error}. Expected HOST:PORT, fl.example.org:8443 say") from error


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_name(text: str) -> bool:
    # Four numbers with a mistake in them are no name of anything.
    labels = text.removesuffix(".").split(".")
    return len(text) <= LONGEST_HOST and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdecimal()
