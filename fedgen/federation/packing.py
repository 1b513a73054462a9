"""Requests and replies as letters, and back, with everything checked that comes from the other end.

Neither end trusts the other: nothing is evaluated, sizes are bounded, and whatever is not as it should be is
`malformed`. Units are written as bits, so that they cannot come back out of order or twice.
"""

import base64
import binascii
import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedgen.config.fit import fit
from fedgen.devices import Rung
from fedgen.errors import ClientError
from fedgen.federation import reading
from fedgen.federation.letter import FORMAT, Letter
from fedgen.messages import Payload, Reply, Request
from fedgen.types import Index, Kept, Part

Report = dict[str, int | float | str]
"""What a device tells of itself; every entry is optional."""

MAX_CLIENTS = 2**20
MAX_UNITS = 2**22
"""Of one axis; the largest vocabularies have 2**18."""

MAX_ENTRIES = 2**16
"""Tensors of a manifest, axes of a part."""

MAX_NUMBERS = 64
"""Numbers about a client's work, entries of a report."""


def pack_hello() -> Letter:
    """Asks a device to tell of itself."""
    return Letter(_dump({"format": FORMAT, "kind": "hello"}))


def pack_report(report: Mapping[str, int | float | str]) -> Letter:
    """The answer to a hello."""
    return Letter(_dump({"format": FORMAT, "kind": "hello", "report": dict(report)}))


def pack_request(request: Request, clients: Sequence[str]) -> Letter:
    """A request as it travels.

    Args:
        request: what is asked.
        clients: names of all clients, sorted. The device learns how many there are and its place among them, never
            their names.
    """
    described, body = _described(request.payload)
    part = request.part
    header = {
        "format": FORMAT,
        "kind": "request",
        "round": request.round,
        "client": request.client,
        "place": clients.index(request.client),
        "num_clients": len(clients),
        "progress": request.progress,
        "part": {
            "width": part.width,
            "kept": _bits(part.kept),
            "missed": part.missed,
            "top_layers": part.top_layers,
            "rank": part.rank,
        },
        "rung": dataclasses.asdict(request.rung),
        "base": request.base,
        "num_measured": request.num_measured,
        "payload": described,
    }
    return Letter(_dump(header), body)


def open_request(letter: Letter) -> tuple[Request, tuple[str, ...]]:
    """The request in a letter, and as many clients as there are: all nameless but the one that is asked.

    Raises:
        ClientError: `malformed`, if anything in it is not as it should be.
    """
    try:
        header = reading.opened(letter, "request")
        client, number = reading.name(header, "client"), reading.whole(header, "num_clients", 1, MAX_CLIENTS)
        place = reading.whole(header, "place", 0, number - 1)
        part = reading.typed(header, "part", dict)
        rank = None if part["rank"] is None else reading.whole(part, "rank", 1, MAX_UNITS)
        request = Request(
            reading.whole(header, "round", 1, 2**31),
            client,
            reading.share(header, "progress"),
            Part(
                reading.share(part, "width"),
                _kept(part["kept"]),
                reading.whole(part, "missed", 0, 2**31),
                reading.share(part, "top_layers"),
                rank,
            ),
            _payload(reading.typed(header, "payload", dict), letter.body),
            reading.text(header, "base"),
            _rung(reading.typed(header, "rung", dict)),
            reading.whole(header, "num_measured", 0, 2**31),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ClientError("malformed", f"a request cannot be read: {error}") from error
    return request, ("",) * place + (client,) + ("",) * (number - place - 1)


def pack_reply(reply: Reply, report: Mapping[str, int | float | str] | None = None) -> Letter:
    """A reply as it travels.

    Args:
        reply: what a client answers.
        report: what the device tells of itself.
    """
    described, body = (None, b"") if reply.payload is None else _described(reply.payload)
    header = {
        "format": FORMAT,
        "kind": "reply",
        "round": reply.round,
        "client": reply.client,
        "payload": described,
        "num_examples": reply.num_examples,
        "metrics": reply.metrics,
        "error": reply.error,
        "kept": _bits(reply.kept),
        "report": dict(report or {}),
    }
    return Letter(_dump(header), body)


def open_reply(letter: Letter) -> Reply:
    """The reply in a letter. Whether it answers what was asked is not known here.

    Raises:
        ClientError: `malformed`, if anything in it is not as it should be.
    """
    try:
        header = reading.opened(letter, "reply")
        described, error = header.get("payload"), header.get("error", "")
        if error != "" and not (isinstance(error, str) and reading.WORD.fullmatch(error)):
            raise ValueError("an error must be one word")
        if described is None and letter.body:
            raise ValueError("there are bytes that nothing describes")
        return Reply(
            reading.whole(header, "round", 0, 2**31),
            reading.text(header, "client", reading.MAX_NAME_LENGTH),
            None if described is None else _payload(described, letter.body),
            reading.whole(header, "num_examples", -(2**63), 2**63) if "num_examples" in header else 0,
            _metrics(header.get("metrics", {})),
            error,
            _kept(header.get("kept", {})),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ClientError("malformed", f"a reply cannot be read: {error}") from error


def open_report(letter: Letter) -> Report:
    """What a device tells of itself in the answer to a hello, or in a reply.

    Raises:
        ClientError: `malformed`; or the word with which a device answers a hello that it cannot deal with.
    """
    try:
        header = reading.opened(letter)
        found = header.get("report", {})
        word = header.get("error", "") if header["kind"] == "hello" else ""
        if not isinstance(found, dict) or len(found) > MAX_NUMBERS:
            raise ValueError("a report must be an object with few entries")
        for name, value in found.items():
            if not reading.WORD.fullmatch(name) or not _is_plain(value):
                raise ValueError("a report holds plain numbers and short texts under plain names")
        if word and not reading.WORD.fullmatch(word):
            raise ValueError("an error must be one word")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ClientError("malformed", f"a report cannot be read: {error}") from error
    if word:
        raise ClientError(word)
    return dict(found)


def _dump(header: Mapping[str, Any]) -> str:
    return json.dumps(header, separators=(",", ":"))


def _described(payload: Payload) -> tuple[dict[str, Any], bytes]:
    """What a header says of a payload, and its bytes."""
    body = payload.data.contiguous().numpy().tobytes()
    manifest = [[name, dtype, list(shape)] for name, dtype, shape in payload.manifest]
    return {"manifest": manifest, "num_bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}, body


def _payload(described: Any, body: bytes | bytearray) -> Payload:  # noqa: ANN401 - whatever JSON holds
    if not isinstance(described, dict) or described["num_bytes"] != len(body):
        raise ValueError("the header tells of another number of bytes than there are")
    if described["sha256"] != hashlib.sha256(body).hexdigest():
        raise ValueError("the bytes are not those of which the header tells")
    entries = reading.typed(described, "manifest", list)
    if len(entries) > MAX_ENTRIES:
        raise ValueError("a manifest has too many entries")
    # A tensor must be able to change what it looks at; bytes cannot be changed.
    buffer = body if isinstance(body, bytearray) else bytearray(body)
    data = torch.frombuffer(buffer, dtype=torch.uint8) if buffer else torch.empty(0, dtype=torch.uint8)
    return Payload(tuple(_entry(entry) for entry in entries), data)


def _entry(entry: Any) -> tuple[str, str, tuple[int, ...]]:  # noqa: ANN401
    name, dtype, shape = entry
    if not isinstance(name, str) or not isinstance(dtype, str) or not isinstance(shape, list) or len(shape) > 8:
        raise ValueError("an entry of a manifest is a name, a type and a shape")
    if not all(type(size) is int and 0 <= size < 2**48 for size in shape):
        raise ValueError("a shape consists of whole numbers")
    return name, dtype, tuple(shape)


def _bits(kept: Kept) -> dict[str, str]:
    """Axis → one bit for each unit up to the last that is kept, the first in the lowest bit of the first byte."""
    return {axis: base64.b64encode(_bits_of(index)).decode() for axis, index in kept.items()}


def _bits_of(index: Index) -> bytes:
    if not len(index):
        return b""
    flags = torch.zeros(-(-(int(index[-1]) + 1) // 8), 8, dtype=torch.uint8)
    flags.view(-1)[index] = 1
    return (flags << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8).numpy().tobytes()


def _kept(found: Any) -> Kept:  # noqa: ANN401
    if not isinstance(found, dict) or len(found) > MAX_ENTRIES:
        raise ValueError("units must come by axis")
    return {axis: _index(text) for axis, text in found.items()}


def _index(text: Any) -> Tensor:  # noqa: ANN401
    if not isinstance(text, str) or len(text) > MAX_UNITS // 6 + 4:
        raise ValueError("units are bits, and not so many")
    try:
        packed = bytearray(base64.b64decode(text, validate=True))
    except binascii.Error as error:
        raise ValueError("units are bits in base 64") from error
    if not packed:
        return torch.empty(0, dtype=torch.int64)
    flags = torch.frombuffer(packed, dtype=torch.uint8)[:, None] >> torch.arange(8, dtype=torch.uint8)
    return (flags & 1).flatten().nonzero().flatten()


def _rung(found: dict[str, Any]) -> Rung:
    hints = typing.get_type_hints(Rung)
    if found.keys() != hints.keys():
        raise ValueError("a rung has other entries than it should")
    values: dict[str, Any] = {name: fit(value, hints[name]) for name, value in found.items()}
    return Rung(**values)


def _metrics(found: Any) -> dict[str, float]:  # noqa: ANN401
    if not isinstance(found, dict) or len(found) > MAX_NUMBERS:
        raise ValueError("numbers must come by name, and not so many")
    for name, value in found.items():
        # One that is not finite is refused where all replies are, whichever way they came.
        if not reading.WORD.fullmatch(name) or type(value) not in reading.NUMBER:
            raise ValueError("a number has a plain name and a plain value")
    return {name: float(value) for name, value in found.items()}


def _is_plain(value: Any) -> bool:  # noqa: ANN401
    if isinstance(value, str):
        # What cannot be printed could steer the terminal that shows it.
        return len(value) <= reading.MAX_TEXT_LENGTH and value.isprintable()
    return type(value) in reading.NUMBER and -(2**63) < value < 2**63
