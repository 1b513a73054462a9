"""Makes a server's home and the bundles of its devices; adds devices later, takes one out, renews the certificate.

Every step makes only what is missing, so that a call that was cut short is completed by the next one. A device is
enrolled by the last step of all, the new `fleet.json`.
"""

import dataclasses
import datetime
import json
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import fedgen
from fedgen import disk
from fedgen.deployment import keys
from fedgen.deployment.address import address_of
from fedgen.deployment.bundle import Bundle, pack
from fedgen.deployment.files import check_private, read_bytes, write_private
from fedgen.deployment.home import CONNECTION, Enrolled, Home, check_device_name
from fedgen.errors import ConfigError
from fedgen.ports import free_port

RENEW_BEFORE_DAYS = 60
LOOPBACK = ("127.0.0.1", "localhost")
"""The SuperLink is reached under these by what runs beside it."""


@final
@dataclass(frozen=True)
class Outcome:
    """What a call did.

    Attributes:
        home: as it is now.
        bundles: the tars of the devices that were added or whose server has moved.
        renewed: whether the server has another certificate than before.
        revoked: devices that were taken out.
    """

    home: Home
    bundles: tuple[Path, ...]
    renewed: bool
    revoked: tuple[str, ...]


def provision(path: Path, server: str | None, devices: Sequence[str], revoke: Sequence[str] = ()) -> Outcome:
    """Makes a home, or changes one.

    Args:
        path: the home's folder; a new one must be empty.
        server: HOST:PORT under which devices reach the server; must be given the first time. Given again with another
            value it moves the server: new certificate, new bundles.
        devices: names of devices to add. One that is there already stays as it is.
        revoke: names of devices to take out; their keys are refused from then on.

    Raises:
        FedgenError: the folder is foreign, a name is no name, a key is missing, or something cannot be written.
    """
    for name in (*devices, *revoke):
        check_device_name(name)
    home = _opened(path.resolve(), server)
    unknown = [name for name in revoke if name not in home.devices]
    if unknown:
        known = ", ".join(home.devices) or "none"
        raise ConfigError(f"there is no device {', '.join(unknown)} to revoke; the devices are: {known}")
    if both := set(devices) & set(revoke):
        raise ConfigError(f"{', '.join(sorted(both))}: add or revoke, in two calls")
    had_one = (home.path / "server.pem").exists()
    renewed = _complete(home) and had_one
    home.save()
    bundles = [_enter(home, name) for name in home.devices if name not in revoke and _is_behind(home, name)]
    for name in dict.fromkeys(devices):
        if name not in home.devices:
            home, tar = _add(home, name)
            bundles.append(tar)
    for name in dict.fromkeys(revoke):
        home = _revoke(home, name)
    return Outcome(home, tuple(bundles), renewed, tuple(dict.fromkeys(revoke)))


def check_certificate(home: Home) -> float:
    """Sees to it that the server can prove who it is.

    Returns:
        Days until its certificate ends.

    Raises:
        ConfigError: a file is missing, damaged or open to others; the certificate has ended or is for another server.
    """
    for name in ("server.key", "superexec.secret"):
        check_private(home.path / name)
    for name in ("ca.crt", "server.pem"):
        read_bytes(home.path / name)
    found = _standing(home)
    if not found.signed:
        raise ConfigError(
            f"{home.path / 'server.pem'} is not signed by the home's ca.crt: fedgen provision {home.path}"
        )
    if found.days_left <= 0:
        raise ConfigError(
            f"the server's certificate ended {-found.days_left:.0f} days ago: fedgen provision {home.path} renews it; "
            "bundles stay as they are"
        )
    if home.server.host not in found.hosts:
        raise ConfigError(f"the server's certificate is not for {home.server.host}: fedgen provision {home.path}")
    return found.days_left


def _opened(path: Path, server: str | None) -> Home:
    """The home with the address that its server has from now on; an empty one in a new folder."""
    if (path / "fleet.json").exists():
        home = Home.open(path)
        return home if server is None else dataclasses.replace(home, server=address_of(server))
    if path.exists() and (not path.is_dir() or {entry.name for entry in path.iterdir()} - {"lost+found"}):
        raise ConfigError(f"{path} is not empty and no home of fedgen's: name a new folder")
    if server is None:
        raise ConfigError(f"{path} is new: say where devices will reach the server, --server HOST:PORT")
    address = address_of(server)
    with disk.writing(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    home = Home(path, address, free_port(address.port), {})
    home.save()
    return home


def _complete(home: Home) -> bool:
    """Makes what the home lacks; tells whether the server has got a new certificate."""
    for folder in (home.path / "bundles", home.state, home.logs, home.flwr):
        with disk.writing(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
    if not (home.path / "ca.crt").exists():
        if home.devices:
            raise ConfigError(f"{home.path / 'ca.crt'} is missing, and devices trust no other: restore it from a copy")
        authority = keys.new_authority()
        write_private(home.path / "ca.key", authority.private)
        disk.write_atomic(home.path / "ca.crt", authority.public)
    if not (home.path / "superexec.secret").exists():
        write_private(home.path / "superexec.secret", secrets.token_bytes(32))
    config = (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{home.superlink}"\n'
        f"root-certificates = {_toml(str(home.path / 'ca.crt'))}\n"
    )
    disk.write_atomic(home.flwr / "config.toml", config)
    return _renew(home)


def _renew(home: Home) -> bool:
    hosts = list(dict.fromkeys((home.server.host, *LOOPBACK)))
    if (home.path / "server.pem").exists() and (home.path / "server.key").exists():
        found = _standing(home)
        if found.signed and found.hosts >= set(hosts) and found.days_left > RENEW_BEFORE_DAYS:
            return False
    check_private(home.path / "ca.key")
    authority = keys.Pair(read_bytes(home.path / "ca.crt"), read_bytes(home.path / "ca.key"))
    server = keys.new_server(authority, hosts)
    # A crash between the two leaves a pair that does not fit, which is not `signed` and made anew by the next call.
    write_private(home.path / "server.key", server.private)
    disk.write_atomic(home.path / "server.pem", server.public)
    return True


def _standing(home: Home) -> keys.Standing:
    server = keys.Pair(read_bytes(home.path / "server.pem"), read_bytes(home.path / "server.key"))
    return keys.standing(server, read_bytes(home.path / "ca.crt"))


def _add(home: Home, name: str) -> tuple[Home, Path]:
    identity = keys.new_identity()
    with disk.staged_folder(home.bundle(name)) as folder:
        folder.chmod(0o700)
        write_private(folder / "node.key", identity.private)
        disk.write(folder / "node.pub", identity.public + b"\n")
        disk.write(folder / "ca.crt", read_bytes(home.path / "ca.crt"))
        Bundle(folder, home.server, name, fedgen.__version__).save()
    tar = pack(home.bundle(name))
    added = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    home = dataclasses.replace(home, devices={**home.devices, name: Enrolled(identity.public.decode(), added)})
    home.save()
    return home, tar


def _is_behind(home: Home, name: str) -> bool:
    """Whether a bundle that is still here names another server; it may be gone, once the device has it."""
    return home.bundle(name).is_dir() and Bundle.open(home.bundle(name)).server != home.server


def _enter(home: Home, name: str) -> Path:
    """Writes the server's new address into a bundle."""
    folder = home.bundle(name)
    Bundle(folder, home.server, name, fedgen.__version__).save()
    return pack(folder)


def _revoke(home: Home, name: str) -> Home:
    home = dataclasses.replace(home, devices={key: one for key, one in home.devices.items() if key != name})
    home.save()
    with disk.writing(home.bundle(name)):
        home.bundle(name).with_name(f"{name}.tar").unlink(missing_ok=True)
    if home.bundle(name).exists():
        shutil.rmtree(home.bundle(name), ignore_errors=True)
    return home


def _toml(text: str) -> str:
    """A path as a string of TOML."""
    return json.dumps(text, ensure_ascii=False)
