"""Asks a generator for drafts, and keeps them in a file that is only appended to; what is there is not asked again.

A batch is a fixed run of orders. Its drafts are written with a last line that counts and hashes them, in one piece; so
what a crash cut off is recognised, dropped, and drawn again from the same orders, whatever was drawn before.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fedgen import disk
from fedgen.generating import Generator
from fedgen.task import Draft, Order, Task
from fedgen.types import Observer

BATCH = 128
"""Drafts of a batch, about: as many are lost at most when the process dies."""


def batches(orders: Sequence[Order]) -> list[Sequence[Order]]:
    """Runs of orders with at least ``BATCH`` drafts each, but for the last."""
    found, begin, num = list[Sequence[Order]](), 0, 0
    for place, order in enumerate(orders, start=1):
        num += order.num
        if num >= BATCH:
            found.append(orders[begin:place])
            begin, num = place, 0
    return [*found, orders[begin:]] if begin < len(orders) else found


def draw(
    generator: Generator, task: Task, orders: Sequence[Order], seed: int, path: Path, observe: Observer
) -> list[Draft]:
    """All drafts for the orders, in the order in which the generator gives them.

    Args:
        generator: that is asked.
        task: that the drafts are for.
        orders: its plan.
        seed: of its draws.
        path: the file that keeps them; what it has of this plan already is taken from there.
        observe: is told how many batches there are after each one.

    Raises:
        RunError: the file cannot be read or written.
    """
    asked = batches(orders)
    with disk.writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        with disk.writing(path):
            blocks, whole = _blocks(path.read_bytes())
            os.ftruncate(descriptor, whole)
        drafts = [draft for block in blocks[: len(asked)] for draft in block]
        left = [order for batch in asked[len(blocks) :] for order in batch]
        observe({"kind": "drafting", "batches": len(blocks), "of": len(asked), "drafts": len(drafts)})
        # Asked once for all that is left: a generator may have a model to load.
        given = generator.generate(task, left, seed) if left else ()
        for number, group in enumerate(_grouped(given, asked, len(blocks)), start=len(blocks)):
            lines = [_line(draft) for draft in group]
            with disk.writing(path):
                disk.append(descriptor, _block(number, lines))
            # As they will be read, so that a set that was interrupted differs in nothing from one that was not.
            drafts += [_draft(json.loads(line)) for line in lines]
            observe({"kind": "drafting", "batches": number + 1, "of": len(asked), "drafts": len(drafts)})
    finally:
        os.close(descriptor)
    return drafts


def _grouped(drafts: Iterable[Draft], asked: Sequence[Sequence[Order]], first: int) -> Iterator[list[Draft]]:
    """The drafts of each batch from the first on, as soon as one of a later batch comes; a batch may have none."""
    batch_of = {order.index: number for number, batch in enumerate(asked) for order in batch}
    number, group = first, list[Draft]()
    for draft in drafts:
        while number < batch_of.get(draft.order, number):
            yield group
            number, group = number + 1, []
        group.append(draft)
    for _ in range(number, len(asked)):
        yield group
        group = []


def _line(draft: Draft) -> bytes:
    row = {"text": draft.text, "answer": draft.answer, "label": draft.label, "slots": dict(draft.slots)}
    # Escaped: what a model writes may hold half a surrogate pair, which UTF-8 has no bytes for.
    return json.dumps({**row, "order": draft.order}).encode() + b"\n"


def _draft(row: dict[str, Any]) -> Draft:
    return Draft(row["text"], row["answer"], row["label"], row["slots"], row["order"])


def _block(number: int, lines: Sequence[bytes]) -> bytes:
    content = b"".join(lines)
    closing = {"batch": number, "drafts": len(lines), "sha256": hashlib.sha256(content).hexdigest()}
    return content + json.dumps(closing).encode() + b"\n"


def _blocks(content: bytes) -> tuple[list[list[Draft]], int]:
    """Batches that are whole, from the first on, and how many bytes they take."""
    found, lines, whole, place = list[list[Draft]](), list[bytes](), 0, 0
    for line in content.splitlines(keepends=True):
        place += len(line)
        try:
            row = json.loads(line)
            if "batch" not in row:
                lines.append(line)
                continue
            if not _block(len(found), lines).endswith(b"".join([*lines, line])):
                break
            found.append([_draft(json.loads(own)) for own in lines])
        except (ValueError, KeyError, TypeError):
            break
        lines, whole = [], place
    return found, whole
