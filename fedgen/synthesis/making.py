"""Makes a synthetic set: plan, generate, filter, keep; or finds it, since what it depends on is its name.

The stages are those of GPT-FL (Zhang et al., 2023, arXiv 2306.02210) before the tuning: more is asked for than is
wanted (250 for 200 in the paper's code), what is alike or bad is taken out, each class is cut to its share.
"""

import dataclasses
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fedgen
from fedgen import disk
from fedgen.errors import DataError
from fedgen.generating import Generator
from fedgen.synthesis import drafting, synthetic_set
from fedgen.synthesis.filters import Evidence, Filters
from fedgen.synthesis.synthetic_set import DRAFTS, EXAMPLES, MANIFEST, ORDERS, SyntheticSet
from fedgen.synthesis.tally import complaint, tally
from fedgen.task import Order, Task
from fedgen.types import Observer

NAME_LENGTH = 16
"""Characters of the digest that name a folder."""


def _silent(record: Mapping[str, Any]) -> None:
    """Observes nothing."""


@dataclass(frozen=True)
class Synthesis:
    """What a synthetic set is made of.

    Attributes:
        task: that it is for.
        generator: that writes it.
        num_examples: wanted; labels have equal shares.
        seed: of the plan, of the generator's draws and of the filters.
        surplus: drafts asked for, as a multiple of the examples that are wanted.
        filters: which drafts are kept.
        evidence: what they are held against.
    """

    task: Task
    generator: Generator
    num_examples: int
    seed: int = 0
    surplus: float = 1.25
    filters: Filters = field(default_factory=Filters)
    evidence: Evidence = field(default_factory=Evidence)

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if self.num_examples < len(self.task.labels):
            raise ValueError(
                f"num_examples is {self.num_examples}; the task has {len(self.task.labels)} labels, and each needs one"
            )
        if not self.surplus >= 1:
            raise ValueError(f"surplus is {self.surplus}; it must be at least 1 (no more drafts than examples)")

    @property
    def quotas(self) -> dict[str, int]:
        """Label → how many examples are wanted of it."""
        share, rest = divmod(self.num_examples, len(self.task.labels))
        return {label: share + (place < rest) for place, label in enumerate(self.task.labels)}

    def inputs(self) -> dict[str, Any]:
        """Everything that the set depends on, as plain JSON."""
        return {
            "fedgen": fedgen.__version__,
            "task": self.task.digest,
            "generator": self.generator.fingerprint(),
            "num_examples": self.num_examples,
            "surplus": self.surplus,
            "seed": self.seed,
            "filters": dataclasses.asdict(self.filters),
            "evidence": self.evidence.fingerprints(),
        }

    def carry_out(self, cache: Path, observe: Observer = _silent) -> SyntheticSet:
        """The set, from the cache if it has been made before; a synthesis that was interrupted is continued.

        Another process that makes the same set is waited for.

        Args:
            cache: folder of all sets; made if need be.
            observe: is told of each thing as it happens.

        Raises:
            DataError: a label ends empty; the message counts why.
            RunError: the cache cannot be written.
        """
        inputs = self.inputs()
        digest = _sha256(json.dumps(inputs, sort_keys=True).encode())
        folder = cache / digest[:NAME_LENGTH]
        with disk.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            found = synthetic_set.find(folder)
            if found is not None:
                observe({"kind": "found", "folder": str(folder)})
                return found
            return self._make(folder, inputs, digest, observe)

    def _make(self, folder: Path, inputs: Mapping[str, Any], digest: str, observe: Observer) -> SyntheticSet:
        orders = self.generator.plan(self.task, math.ceil(self.num_examples * self.surplus), self.seed)
        drafts = drafting.draw(self.generator, self.task, orders, self.seed, folder / DRAFTS, observe)
        observe({"kind": "sifting", "drafts": len(drafts)})
        sifted = self.filters.sift(drafts, self.task, self.evidence, self.quotas, self.seed)
        report = tally(drafts, sifted, self.quotas, self.filters.examples_shown)
        if empty := [label for label in self.task.labels if not report["labels"][label]["kept"]]:
            raise DataError(
                f"the generator gave nothing that can be used for {len(empty)} of {len(self.task.labels)} labels, so "
                f"nothing is trained:\n  {complaint(report, empty)}\nAsk another generator, ask for more "
                f"(num_examples), or loosen the filter that rejects most; the drafts are in {folder / DRAFTS}"
            )
        examples = [self.task.example(draft) for draft in sifted.kept]
        contents = {EXAMPLES: synthetic_set.rows(examples), ORDERS: _order_rows(orders)}
        for name, content in contents.items():
            disk.write_atomic(folder / name, content)
        contents[DRAFTS] = (folder / DRAFTS).read_bytes()
        manifest = {
            "format": synthetic_set.FORMAT,
            "digest": digest,
            "inputs": inputs,
            "task": dataclasses.asdict(self.task),
            "generator": _node(self.generator),
            "licence": self.generator.licence,
            "files": {name: _file(content) for name, content in sorted(contents.items())},
            "report": report,
            "versions": {name: _version(name) for name in ("datasketch", "torch", "transformers")},
        }
        disk.write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        return SyntheticSet(folder, json.loads(json.dumps(manifest)))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process works on the folder; one that dies lets go by itself."""
    path = folder / ".lock"
    with disk.writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            os.close(descriptor)
            raise
    try:
        yield
    finally:
        os.close(descriptor)


def _order_rows(orders: tuple[Order, ...]) -> bytes:
    return "".join(json.dumps(dataclasses.asdict(order)) + "\n" for order in orders).encode()


def _file(content: bytes) -> dict[str, Any]:
    return {"sha256": _sha256(content), "rows": content.count(b"\n")}


def _node(value: object) -> object:
    """A component as a configuration names it: its class and its fields."""
    if not dataclasses.is_dataclass(value):
        return value
    kind = type(value)
    fields = {field.name: _node(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **fields}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
