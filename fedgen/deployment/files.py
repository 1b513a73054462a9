"""The small files of a home and of a bundle: checked JSON objects, and secrets that only their owner may read."""

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgen import disk
from fedgen.errors import ConfigError

FORMAT = 1
"""Version of every such file; one that is not known is refused."""

MOST_BYTES = 4 * 2**20
"""Far above what a thousand devices need."""


def read_object(path: Path, fields: Mapping[str, type]) -> dict[str, Any]:
    """Reads a JSON object of the known format.

    Args:
        path: the file.
        fields: what it must have, with the type of each; more is allowed.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it is damaged; says what is wrong with it.
    """
    content = read_bytes(path)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: it is no JSON ({error}). Restore it from a copy") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is damaged: expected an object, got {type(value).__name__}. Restore it from a copy")
    if value.get("format") != FORMAT or value["format"] is True:
        raise ConfigError(
            f"{path} has format {value.get('format')!r}, this fedgen knows {FORMAT}: use one version everywhere"
        )
    for name, kind in fields.items():
        field = value.get(name)
        if not isinstance(field, kind) or (kind is int and isinstance(field, bool)):
            got = "nothing" if name not in value else repr(field)[:80]
            raise ConfigError(
                f"{path} is damaged: {name!r} should be {_WORDS[kind]}, got {got}. Restore it from a copy"
            )
    return value


_WORDS = {int: "a number", str: "text", dict: "an object", list: "a list", float: "a number"}


def write_object(path: Path, fields: Mapping[str, object]) -> None:
    """Writes a JSON object of the known format, in one step.

    Raises:
        RunError: it cannot be written.
    """
    disk.write_atomic(path, json.dumps({"format": FORMAT, **fields}, indent=2) + "\n")


def read_bytes(path: Path) -> bytes:
    """The content of a small file.

    Raises:
        ConfigError: it is not there, cannot be read, or is far too large.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no {path}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}. Run as the user to whom it belongs") from error
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path} is damaged: it holds more than {MOST_BYTES} bytes. Restore it from a copy")
    return content


def write_private(path: Path, content: bytes) -> None:
    """Makes or replaces a file that only its owner may read, from its first byte on.

    Raises:
        RunError: it cannot be written; what was there before is intact.
    """
    temporary = disk.beside(path, "tmp")
    try:
        with disk.writing(path):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                disk.append(descriptor, content)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    disk.sync_folder(path.parent)


def check_private(path: Path) -> None:
    """Sees to it that a secret is there and is one.

    Raises:
        ConfigError: it is not there, or others may read or change it.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(
            f"there is no {path}" if isinstance(error, FileNotFoundError) else f"cannot read {path}"
        ) from error
    if not stat.S_ISREG(mode) or mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"others may read {path} (mode {stat.S_IMODE(mode):04o}): chmod 600 {path}")
