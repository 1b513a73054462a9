"""What travels between a server and a device: a header of JSON, and a body of bytes.

Both ends know only this much before they trust anything. It needs nothing but the standard library, since the process
that Flower starts for every message must not import torch.
"""

import json
from dataclasses import dataclass

FORMAT = 1
"""Version of the headers; one with another number is refused."""

MAX_HEADER_BYTES = 2**23
"""A header names tensors and units, and never comes near this."""

MAX_BODY_BYTES = 2**32
"""A body is what a round sends to one device or gets back from it."""


@dataclass(frozen=True)
class Letter:
    """One message.

    Attributes:
        header: a JSON object.
        body: the bytes of a payload; empty if there is none.
    """

    header: str
    body: bytes | bytearray = b""


def failure(header: str, error: str) -> Letter:
    """The answer to a letter that could not be dealt with.

    Args:
        header: of that letter; of it only the kind, the round and the client go into the answer, where they can be
            read.
        error: a fixed word.
    """
    try:
        asked = json.loads(header)
    except (ValueError, RecursionError):
        asked = None
    asked = asked if isinstance(asked, dict) else {}
    if asked.get("kind") == "hello":
        return Letter(json.dumps({"format": FORMAT, "kind": "hello", "error": error}))
    number, client = asked.get("round"), asked.get("client")
    answer = {
        "format": FORMAT,
        "kind": "reply",
        "round": number if type(number) is int else 0,
        "client": client if isinstance(client, str) else "",
        "error": error,
    }
    return Letter(json.dumps(answer))
