"""A server's home: the folder that ``fedgen provision`` makes and ``fedgen server`` runs from.

::

    ca.crt ca.key             the federation's own authority
    server.pem server.key     the server's certificate, for its public name and for this machine
    superexec.secret          between the SuperLink and what starts the server's part of a run
    fleet.json                where the server is, and the devices with their public keys
    bundles/NAME/ NAME.tar    what a device needs to join
    flwr/config.toml          how Flower's commands on this machine reach the SuperLink
    state/                    the SuperLink's database, and which key is registered as which node
    logs/                     of every process
    run.json                  process numbers and ports, while a server runs
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fedgen.deployment.address import Address, address_of
from fedgen.deployment.files import read_object, write_object
from fedgen.deployment.keys import PUBLIC_KEY
from fedgen.errors import ConfigError

DEVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
CONNECTION = "fedgen"
"""What Flower's commands call the SuperLink of a home."""


@final
@dataclass(frozen=True)
class Enrolled:
    """A device that may join.

    Attributes:
        public_key: OpenSSH, without a comment.
        added: when it was provisioned (UTC, ISO 8601).
    """

    public_key: str
    added: str


@final
@dataclass(frozen=True)
class Home:
    """A home and what its `fleet.json` says.

    Attributes:
        path: the folder, absolute.
        server: where devices reach the server.
        superlink_port: where the SuperLink listens, on this machine only.
        devices: who may join, by name.
    """

    path: Path
    server: Address
    superlink_port: int
    devices: Mapping[str, Enrolled]

    @classmethod
    def open(cls, path: Path) -> "Home":
        """Reads a home.

        Raises:
            ConfigError: it is none, or its `fleet.json` is damaged.
        """
        path = path.resolve()
        if not path.is_dir():
            raise ConfigError(f"there is no folder {path}. fedgen provision makes a home")
        if not (path / "fleet.json").exists():
            raise ConfigError(f"{path} is no home: it has no fleet.json. fedgen provision makes one in a new folder")
        fields = read_object(path / "fleet.json", {"server": str, "superlink_port": int, "devices": dict})
        if not 1 <= fields["superlink_port"] <= 65535:
            raise ConfigError(f"{path / 'fleet.json'}: superlink_port {fields['superlink_port']} is no port")
        devices = {name: _enrolled(path / "fleet.json", name, entry) for name, entry in fields["devices"].items()}
        return cls(path, address_of(fields["server"]), fields["superlink_port"], devices)

    def save(self) -> None:
        """Writes `fleet.json` in one step.

        Raises:
            RunError: it cannot be written; what it said before stands.
        """
        devices = {name: {"public_key": one.public_key, "added": one.added} for name, one in self.devices.items()}
        fields = {"server": str(self.server), "superlink_port": self.superlink_port, "devices": devices}
        write_object(self.path / "fleet.json", fields)

    @property
    def superlink(self) -> Address:
        """The SuperLink, which only this machine can reach."""
        return Address("127.0.0.1", self.superlink_port)

    @property
    def flwr(self) -> Path:
        """FLWR_HOME of every Flower process and command of the server."""
        return self.path / "flwr"

    @property
    def state(self) -> Path:
        """What lasts from one start of the server to the next."""
        return self.path / "state"

    @property
    def logs(self) -> Path:
        """The processes' output."""
        return self.path / "logs"

    def bundle(self, name: str) -> Path:
        """The folder with what a device needs to join; the tar lies beside it."""
        return self.path / "bundles" / check_device_name(name)


def check_device_name(name: str) -> str:
    """The name of a device, if it is one. It is also the name of a folder, and of the client in a run.

    Raises:
        ConfigError: it is none.
    """
    if DEVICE_NAME.fullmatch(name) is None:
        raise ConfigError(
            f"{name[:80]!r} is no name for a device: expected 1 to 64 letters, digits, - and _ (no other), "
            "beginning with a letter or digit"
        )
    return name


def _enrolled(path: Path, name: str, entry: object) -> Enrolled:
    check_device_name(name)
    key, added = (entry.get("public_key"), entry.get("added")) if isinstance(entry, dict) else (None, None)
    if not isinstance(key, str) or PUBLIC_KEY.fullmatch(key) is None or not isinstance(added, str):
        raise ConfigError(f"{path} is damaged: device {name} has no valid public_key and added. Restore it from a copy")
    return Enrolled(key, added)
