"""Writing so that a crash, a full disk or a power cut never leaves half of something under its final name.

A file or folder is written under a hidden name beside its target, forced to the disk, and renamed. The order is data,
its folder, the rename, the folder that holds it: file systems differ in what they keep without it (Pillai et al., "All
File Systems Are Not Created Equal", OSDI 2014). ``checkpoint``, ``journal`` and ``run`` say what is written; this
module only knows how.
"""

import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from fedgen.errors import RunError

LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-(?P<pid>\d+)-[0-9a-f]{8}")
"""Hidden names: `tmp` is being written or removed, `old` is a whole folder that was moved aside for a new one."""

LEFTOVER_AGE_S = 86_400
"""After a day even the leftover of a process that seems alive is dead: process numbers are given out again."""

_REMEDIES = {
    errno.ENOSPC: "Free some space and continue the run; what was saved before is intact",
    errno.EDQUOT: "Your quota is used up: free some space and continue the run; what was saved before is intact",
    errno.EFBIG: "A limit on the size of files was hit: raise it (ulimit -f) and continue the run",
    errno.EACCES: "Make it writable for this user, or choose another folder",
    errno.EPERM: "Make it writable for this user, or choose another folder",
    errno.EROFS: "The disk is mounted read-only: remount it for writing, or choose another folder",
    errno.EIO: "The disk reports a fault: look at its health (dmesg), copy the run to another one and continue there",
    errno.ENOTDIR: "A file stands where a folder is needed: move it away, or choose another folder",
    errno.EEXIST: "A file stands where a folder is needed: move it away, or choose another folder",
}


def failure(error: OSError, path: Path) -> RunError:
    """What to tell the user when writing failed: which file, why, how much room there is, and what to do."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
    remedy = _REMEDIES.get(error.errno or 0, "Look at the disk and at the rights on this folder")
    return RunError(f"cannot write {path}: {error.strerror or error}{_room(path)}. {remedy}")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an operating system's error into a message about ``path``.

    Raises:
        RunError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise failure(error, path) from error


def append(descriptor: int, content: bytes) -> None:
    """Writes everything to an open file and forces it to the disk.

    Raises:
        OSError: some of it may have been written.
    """
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def write(path: Path, content: bytes) -> None:
    """Makes a new file, with the rights that the umask gives, and forces it to the disk.

    Raises:
        RunError: it cannot be written; a part of it may be there.
    """
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            append(descriptor, content)
        finally:
            os.close(descriptor)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Makes or replaces a file: at every instant the name shows the old content or the new one, whole.

    Args:
        path: the file; its folder must exist.
        content: text is written as UTF-8.

    Raises:
        RunError: it cannot be written; what was there before is intact.
    """
    temporary = beside(path, "tmp")
    try:
        write(temporary, content.encode() if isinstance(content, str) else content)
        with writing(path):
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside ``target`` to be filled by anyone, and then puts it in the place of ``target``.

    Whatever ``target`` held is gone then. If the body raises, the new folder goes and ``target`` stays as it was.

    Raises:
        RunError: it cannot be written; `target` is as it was before.
    """
    with staged_folder(target) as temporary:
        yield temporary
        _sync_tree(temporary)


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Like ``replace_folder``, for a body that has forced every file to the disk itself, as ``write`` does."""
    temporary = beside(target, "tmp")
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists() and not target.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
            temporary.mkdir()
        yield temporary
        sync_folder(temporary)
        with writing(target):
            _swap(temporary, target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # The body may raise OSErrors that have nothing to do with the disk; those are not for us to explain.
        if isinstance(error, OSError) and error.errno in _REMEDIES:
            raise failure(error, target) from error
        raise
    sync_folder(target.parent)


def remove_folder(path: Path) -> None:
    """Removes a folder: it is gone from under its name at once, however long its files take.

    Raises:
        RunError: it cannot be removed.
    """
    with writing(path):
        temporary = beside(path, "tmp")
        os.rename(path, temporary)
        shutil.rmtree(temporary)


def sweep(folder: Path, *, alone: bool) -> list[str]:
    """Removes what crashed processes left behind; puts a folder back that a crash caught between two renames.

    Args:
        folder: where to look; not inside its folders.
        alone: no other process can be at work in the folder, so every leftover is an orphan. Otherwise only those are
            taken whose process has gone, or that are a day old.

    Returns:
        Names of the leftovers that are gone. What cannot be removed is left for next time.
    """
    swept: list[str] = []
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return swept
    for path in paths:
        match = LEFTOVER.fullmatch(path.name)
        if match is None or not (alone or _dead(path, int(match["pid"]))):
            continue
        target = folder / match["name"]
        with contextlib.suppress(OSError):
            if match["kind"] == "old" and not target.exists():
                os.rename(path, target)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            swept.append(path.name)
    return swept


def sync_folder(path: Path) -> None:
    """Forces the names in a folder to the disk.

    Raises:
        RunError: the disk reports a fault.
    """
    with writing(path):
        _sync(path, os.O_DIRECTORY)


def beside(target: Path, kind: Literal["tmp", "old"]) -> Path:
    """A hidden name in the same folder that is not taken; ``sweep`` recognises it."""
    return target.with_name(f".{target.name}.{kind}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def _swap(new: Path, target: Path) -> None:
    """Puts a folder in the place of another. Between the renames the old one has the hidden name that sweep undoes."""
    aside = beside(target, "old")
    try:
        if target.exists():
            os.rename(target, aside)
        os.rename(new, target)
    except BaseException:
        if aside.exists() and not target.exists():
            os.rename(aside, target)
        raise
    if aside.is_symlink():
        aside.unlink()
    else:
        shutil.rmtree(aside, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    """Forces every file below a folder, and the folders below it, to the disk, with the rights that the umask gives.

    Libraries that write through a temporary file (safetensors) leave files that only their owner can read.
    """
    rights = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with writing(path):
                path.chmod(rights)
                _sync(path, 0)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FAT file systems cannot sync a folder at all, and say so with EINVAL; there is no other way.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def _dead(path: Path, pid: int) -> bool:
    with contextlib.suppress(OSError):
        if time.time() - path.lstat().st_mtime > LEFTOVER_AGE_S:
            return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False


def _room(path: Path) -> str:
    """How much room is left where the path is, if that can be found out."""
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            return f" ({shutil.disk_usage(folder).free} bytes are free there)"
    return ""
