"""A device's bundle: the folder with which ``fedgen client`` joins, unpacked from a tar of ``fedgen provision``.

::

    join.json     where the server is, and which client this device is
    ca.crt        the only authority that it trusts
    node.key      its own key, which the server knows it by
    node.pub      the public half
"""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fedgen.deployment.address import Address, address_of
from fedgen.deployment.files import check_private, read_bytes, read_object, write_object, write_private
from fedgen.deployment.home import check_device_name
from fedgen.errors import ConfigError

MODES = {"ca.crt": 0o644, "join.json": 0o644, "node.key": 0o600, "node.pub": 0o644}


@final
@dataclass(frozen=True)
class Bundle:
    """A bundle and what its `join.json` says.

    Attributes:
        path: the folder, absolute.
        server: where the server is.
        client: the name under which this device takes part.
        fedgen: version of fedgen that made it.
    """

    path: Path
    server: Address
    client: str
    fedgen: str

    @classmethod
    def open(cls, path: Path) -> "Bundle":
        """Reads a bundle.

        Raises:
            ConfigError: it is none, a file of it is missing or damaged, or others may read its key.
        """
        path = path.resolve()
        if path.is_file() and path.suffix == ".tar":
            raise ConfigError(f"{path} is still packed: tar -xf {path}, then give the folder that it made")
        if not path.is_dir():
            raise ConfigError(f"there is no folder {path}. A bundle is what `fedgen provision` made for this device")
        if not (path / "join.json").exists():
            raise ConfigError(f"{path} is no bundle: it has no join.json. Unpack the device's tar, and give its folder")
        fields = read_object(path / "join.json", {"server": str, "client": str, "fedgen": str})
        check_private(path / "node.key")
        if b"-----BEGIN CERTIFICATE-----" not in read_bytes(path / "ca.crt"):
            raise ConfigError(f"{path / 'ca.crt'} is damaged: it holds no certificate. Unpack the bundle again")
        return cls(path, address_of(fields["server"]), check_device_name(fields["client"]), fields["fedgen"])

    def save(self) -> None:
        """Writes `join.json` in one step.

        Raises:
            RunError: it cannot be written.
        """
        fields = {"server": str(self.server), "client": self.client, "fedgen": self.fedgen}
        write_object(self.path / "join.json", fields)


def pack(bundle: Path) -> Path:
    """Packs a bundle's folder into a tar beside it, which only its owner may read.

    The same bundle gives the same bytes. Keys stay unreadable for others when it is unpacked.

    Returns:
        The tar.

    Raises:
        FedgenError: a file of the bundle is missing, or the tar cannot be written.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        folder = tarfile.TarInfo(bundle.name)
        folder.type, folder.mode = tarfile.DIRTYPE, 0o700
        tar.addfile(folder)
        for name, mode in MODES.items():
            content = read_bytes(bundle / name)
            member = tarfile.TarInfo(f"{bundle.name}/{name}")
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content))
    path = bundle.with_name(f"{bundle.name}.tar")
    write_private(path, buffer.getvalue())
    return path
