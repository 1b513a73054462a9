"""Payloads in a file, one after another, so that those that have to wait take no memory."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import torch

from fedgen.errors import RunError
from fedgen.messages import Payload


class Place(NamedTuple):
    """Where a payload lies in a file: its manifest as JSON, then its bytes."""

    start: int
    manifest_bytes: int
    payload_bytes: int

    @property
    def end(self) -> int:
        """Where the next one may begin."""
        return self.start + self.manifest_bytes + self.payload_bytes


def put(descriptor: int, start: int, payload: Payload) -> Place:
    """Writes a payload into an open file.

    Raises:
        OSError: some of it may have been written.
    """
    manifest = json.dumps(payload.manifest).encode()
    place = Place(start, len(manifest), payload.num_bytes)
    for content in (memoryview(manifest), payload.data.contiguous().numpy().data):
        while content:
            written = os.pwrite(descriptor, content, start)
            content, start = content[written:], start + written
    return place


def get(descriptor: int, place: Place, where: Path) -> Payload:
    """Reads a payload back.

    Args:
        descriptor: of the open file in which it was put.
        place: where it lies.
        where: what to name if the disk fails.

    Raises:
        RunError: the disk fails.
    """
    manifest = bytearray(place.manifest_bytes)
    # Memory of torch's own, aligned like that of a payload that did not wait: sums must not depend on it.
    data = torch.empty(place.payload_bytes, dtype=torch.uint8)
    try:
        _read(descriptor, memoryview(manifest), place.start)
        _read(descriptor, data.numpy().data, place.start + place.manifest_bytes)
    except OSError as error:
        raise unreadable(where, error) from error
    return Payload(tuple((name, dtype, tuple(shape)) for name, dtype, shape in json.loads(manifest)), data)


def unreadable(where: Path, error: OSError) -> RunError:
    """What to tell the user when a payload cannot be read back."""
    return RunError(
        f"a reply that waited in {where} cannot be read back: {error.strerror or error}. "
        "Look at the disk's health (dmesg) and continue the run; what was saved before is intact"
    )


def _read(descriptor: int, into: memoryview, start: int) -> None:
    while into:
        length = os.preadv(descriptor, [into], start)
        if not length:
            raise OSError("the file is shorter than what was written")
        into, start = into[length:], start + length
