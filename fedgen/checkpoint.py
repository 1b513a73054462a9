"""The state of a run after a round, kept so that a crash at any moment costs at most that round.

A checkpoint is a folder `round-0007/` of safetensors and JSON, never pickle. Its files are forced to the disk first and
its manifest last; the manifest holds the SHA-256 of each, because neither safetensors nor any other loader notices a
flipped bit. Then the folder gets its name in one rename. Loading goes from the newest to the oldest and takes the first
one that is whole. (The journal, next door, keeps what happened; a checkpoint keeps what is needed to go on.)
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedgen import disk
from fedgen.errors import RunError
from fedgen.types import State

SCHEMA = 1
"""Raised when older versions of fedgen could not read a checkpoint any more. The form of the manifest's text stays."""

STATE, SERVER, FACTS, MANIFEST = "state.safetensors", "server.safetensors", "facts.json", "manifest.json"

_FOLDER = re.compile(r"round-(\d{4,})|\.round-(\d{4,})\.old-\d+-[0-9a-f]{8}")
_MAX_MANIFEST_BYTES = 1_048_576


@dataclass(frozen=True)
class Attached:
    """A file that goes along with one checkpoint after another for as long as it is needed.

    Attributes:
        path: where it lies; it has been forced to the disk, and changes no more.
        num_bytes: its length.
        sha256: of its content, in hex.
    """

    path: Path
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """All that is needed to go on after a round.

    Attributes:
        round: the last round that is over; 0 is the state before training.
        state: the trainable tensors.
        server: the server optimiser's own tensors; empty if it has none.
        facts: whatever else the loop must know, as strict JSON: no NaN, no tuples. Small.
        attached: files by the names that they have in the checkpoint.
    """

    round: int
    state: State
    server: State
    facts: Mapping[str, Any]
    attached: Mapping[str, Attached] = field(default_factory=dict)

    def within(self, folder: Path) -> "Checkpoint":
        """The same, once it has been saved: its files lie in the folder of the checkpoint."""
        return replace(self, attached={n: replace(file, path=folder / n) for n, file in self.attached.items()})


def save(folder: Path, checkpoint: Checkpoint, *, identity: str, keep: int = 2) -> Path:
    """Writes a checkpoint and then removes the oldest ones.

    A checkpoint of the same round is replaced; at every instant the folder holds a whole one. One serialised state is
    held at a time, no more. Checkpoints of later rounds, left by a run that had to go back, are not touched.

    Of attached files, those that lie in `folder` itself are moved into the checkpoint, and those of other checkpoints
    become a part of this one as well, without a copy where the file system can do it.

    Args:
        folder: the run's `checkpoints`.
        checkpoint: what to keep.
        identity: hash of the experiment; only the same experiment may load the checkpoint.
        keep: how many checkpoints are left, this one included.

    Returns:
        The folder of the checkpoint.

    Raises:
        RunError: it cannot be written; what was saved before is intact.
        ValueError: `keep` is less than one, or the facts hold what JSON lacks.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least one checkpoint must be kept")
    assert checkpoint.round >= 0, "rounds are counted from 0, the state before training"
    facts = json.dumps(dict(checkpoint.facts), allow_nan=False).encode()
    target = folder / f"round-{checkpoint.round:04d}"
    with disk.staged_folder(target) as temporary:
        files = {
            STATE: _put(temporary / STATE, _pack(checkpoint.state)),
            SERVER: _put(temporary / SERVER, _pack(checkpoint.server)),
            FACTS: _put(temporary / FACTS, facts),
        }
        for name, file in checkpoint.attached.items():
            _attach(file.path, temporary / name, move=file.path.parent == folder)
            files[name] = {"bytes": file.num_bytes, "sha256": file.sha256}
        manifest = {
            "schema": SCHEMA,
            "round": checkpoint.round,
            "identity": identity,
            "fedgen": _version(),
            "files": files,
        }
        disk.write(temporary / MANIFEST, _render(manifest))
    older = [path for number, path in _found(folder) if number < checkpoint.round]
    for path in older[keep - 1 :]:
        disk.remove_folder(path)
    return target


def load_latest(folder: Path, *, identity: str) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint that is whole and of this experiment.

    Args:
        folder: the run's `checkpoints`.
        identity: hash of the experiment, as it was given to `save`.

    Returns:
        The checkpoint, and a sentence for each newer one that was skipped: which, and why.

    Raises:
        RunError: there is none; names each that was skipped.
    """
    skipped: list[str] = []
    for _, path in _found(folder):
        try:
            return _load(path, identity), skipped
        except RunError as error:
            skipped.append(f"checkpoint {path.name} was skipped: {error}")
    if not skipped:
        raise RunError(f"{folder} holds no checkpoint, so there is nothing to go on from; start a new run")
    reasons = "; ".join(skipped)
    raise RunError(f"no checkpoint in {folder} can be used: {reasons}. Put back a copy of one, or start a new run")


def sweep(folder: Path) -> list[str]:
    """Removes what a crash in the middle of ``save`` left behind. The run must be locked.

    Returns:
        Names of what was removed or, if the crash caught a whole checkpoint under a hidden name, put back.
    """
    return disk.sweep(folder, alone=True)


def _found(folder: Path) -> list[tuple[int, Path]]:
    """Round and folder of everything that is named like a checkpoint, newest first.

    One that was being replaced when the power went is whole under its hidden name, and counts after its successor.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise RunError(
            f"{folder} cannot be listed: {error.strerror}; it is where the run keeps its checkpoints"
        ) from error
    matches = [match for match in map(_FOLDER.fullmatch, names) if match]
    rounds = [(int(match[1] or match[2]), match[1] is not None, match[0]) for match in matches]
    return [(number, folder / name) for number, _, name in sorted(rounds, reverse=True)]


def _load(path: Path, identity: str) -> Checkpoint:
    """Raises RunError with the reason alone if the checkpoint cannot be used."""
    try:
        manifest = _read_manifest(path / MANIFEST)
        if manifest["schema"] > SCHEMA:
            raise RunError(f"it was written by a newer fedgen ({manifest['fedgen']}); update this one")
        if manifest["identity"] != identity:
            raise RunError("it belongs to another experiment: the configuration is not the one that it was saved with")
        match = _FOLDER.fullmatch(path.name)
        if match is None or int(match[1] or match[2]) != manifest["round"]:
            raise RunError(f"it holds round {manifest['round']}, so it was renamed or copied")
        files = manifest["files"]
        for name, entry in files.items():
            _verify(path / name, entry)
        facts = json.loads((path / FACTS).read_bytes())
        others = files.keys() - {STATE, SERVER, FACTS}
        attached = {n: Attached(path / n, files[n]["bytes"], files[n]["sha256"]) for n in sorted(others)}
        return Checkpoint(manifest["round"], _unpack(path / STATE), _unpack(path / SERVER), facts, attached)
    except FileNotFoundError as error:
        raise RunError(f"{Path(error.filename).name} is missing") from error
    except OSError as error:
        name = Path(error.filename).name if error.filename else "a file of it"
        raise RunError(f"{name} cannot be read: {error.strerror or error}") from error


def _pack(state: State) -> bytes:
    """A state as safetensors, with the names in order: sums over a state must not depend on how it was stored."""
    from safetensors.torch import save as serialise

    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    return serialise(tensors, metadata={"names": json.dumps(list(state))})


def _unpack(path: Path) -> State:
    """A state, with its names in order and every tensor in memory of its own."""
    from safetensors import SafetensorError, safe_open

    # Read, not mapped: a disk that fails under a mapped file ends the process. Copied, since a product of matrices may
    # depend on how its operands are aligned, and a continued run must give the bits of an unbroken one.
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            names = json.loads(file.metadata()["names"])
            return {name: file.get_tensor(name).clone() for name in names}
    except SafetensorError as error:
        raise RunError(f"{path.name} cannot be read: {error}") from error


def _put(path: Path, content: bytes) -> dict[str, Any]:
    """Writes a file and returns what the manifest says of it."""
    disk.write(path, content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _attach(source: Path, target: Path, *, move: bool) -> None:
    """Gives a file a name in a checkpoint."""
    with disk.writing(target):
        if move:
            os.replace(source, target)
            return
        try:
            os.link(source, target)
        except OSError:  # not every file system has files with two names
            shutil.copyfile(source, target)
            with target.open("rb+") as file:
                os.fsync(file.fileno())


def _verify(path: Path, entry: Mapping[str, Any]) -> None:
    with path.open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes != entry["bytes"]:
            raise RunError(f"{path.name} is {num_bytes} bytes long and was {entry['bytes']} when it was saved")
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            raise RunError(f"{path.name} has changed since it was saved (its SHA-256 differs)")


def _render(manifest: Mapping[str, Any]) -> bytes:
    """The manifest's text, which holds a SHA-256 of the rest of itself."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "sha256": digest}, sort_keys=True, indent=1) + "\n").encode()


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, if not a bit of it has changed: it must be, byte for byte, what ``_render`` makes of it."""
    with path.open("rb") as file:
        text = file.read(_MAX_MANIFEST_BYTES)
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path.name} is damaged: it is not JSON") from error
    if not isinstance(manifest, dict) or _render(manifest) != text:
        raise RunError(f"{path.name} has changed since it was saved")
    return manifest


def _version() -> str:
    try:
        return version("fedgen")
    except PackageNotFoundError:
        return "not installed"
