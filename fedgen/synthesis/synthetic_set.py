"""A synthetic set in its folder: examples, the drafts that they were chosen from, and the manifest that says how.

::

    manifest.json    everything that the set depends on, its hashes, the filters' report; written last
    examples.jsonl   one conversation in a line, as ``data=jsonl`` reads it
    orders.jsonl     what the generator was asked for
    drafts.jsonl     what it proposed
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgen import disk
from fedgen.errors import DataError
from fedgen.types import Example, Message

EXAMPLES = "examples.jsonl"
MANIFEST = "manifest.json"
ORDERS = "orders.jsonl"
DRAFTS = "drafts.jsonl"
FORMAT = 1
KEYS = frozenset({"digest", "inputs", "task", "licence", "files", "report"})


@dataclass(frozen=True)
class SyntheticSet:
    """Examples that a generator wrote, and where they come from.

    Attributes:
        folder: where they lie.
        manifest: ``inputs`` (what the set depends on; ``digest`` is the hash of it), ``task`` and ``generator`` as they
            are configured, ``licence``, ``files`` → sha256 and number of rows, ``report``, ``versions``.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 over everything that the set depends on."""
        return str(self.manifest["digest"])

    @property
    def licence(self) -> str:
        """Under which the generator lets its output be used."""
        return str(self.manifest["licence"])

    def examples(self) -> tuple[Example, ...]:
        """The examples, in order; nobody owns them.

        Raises:
            DataError: the file is not the one that the manifest is about.
        """
        content = _read(self.folder / EXAMPLES)
        if hashlib.sha256(content).hexdigest() != self.manifest["files"][EXAMPLES]["sha256"]:
            raise DataError(
                f"{self.folder / EXAMPLES} has changed since {MANIFEST} was written; remove the folder, and the set is "
                "made again"
            )
        return tuple(_example(json.loads(line)) for line in content.splitlines())

    def summary(self) -> dict[str, Any]:
        """What a report tells: the filters' report (see ``tally``), with ``digest``, ``generator`` and ``licence``."""
        generator = self.manifest["inputs"]["generator"]
        return {"digest": self.digest, "generator": generator, "licence": self.licence, **self.manifest["report"]}

    def export(self, folder: Path) -> None:
        """Copies examples and manifest into a folder, which is made; ``data=jsonl data.path=FOLDER`` reads it.

        Raises:
            DataError: the examples have changed since the set was made.
            RunError: the folder cannot be written.
        """
        self.examples()
        with disk.replace_folder(folder) as fresh:
            for name in (EXAMPLES, MANIFEST):
                disk.write(fresh / name, _read(self.folder / name))


def find(folder: Path) -> SyntheticSet | None:
    """The set in a folder; None if there is none, or it is not finished.

    Raises:
        DataError: the manifest cannot be read.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return None
    try:
        manifest = json.loads(_read(file))
        known = manifest["format"] == FORMAT and set(manifest) >= KEYS
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no manifest ({error}); remove the folder, and the set is made again") from error
    if not known:
        raise DataError(f"{file} is of another version of fedgen; remove the folder, and the set is made again")
    return SyntheticSet(folder, manifest)


def rows(examples: Sequence[Example]) -> bytes:
    """Examples as lines of JSON, in the form that ``data=jsonl`` reads.

    >>> rows([Example("lights off", "TurnOff()", label="off")]).strip()
    b'{"prompt": "lights off", "completion": "TurnOff()", "label": "off"}'
    """
    lines = []
    for example in examples:
        if isinstance(example.prompt, str):
            row: dict[str, Any] = {"prompt": example.prompt, "completion": example.completion}
        else:
            turns = [*example.prompt, Message("assistant", example.completion)]
            row = {"messages": [{"role": turn.role, "content": turn.content} for turn in turns]}
        lines.append(json.dumps({**row, "label": example.label}) + "\n")
    return "".join(lines).encode()


def _example(row: Mapping[str, Any]) -> Example:
    if "messages" not in row:
        return Example(row["prompt"], row["completion"], label=row["label"])
    turns = tuple(Message(turn["role"], turn["content"]) for turn in row["messages"])
    return Example(turns[:-1], turns[-1].content, label=row["label"])


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
