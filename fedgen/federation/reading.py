"""A letter's header, value by value: whatever has another type or size than it should raises a ValueError."""

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from fedgen.federation.letter import FORMAT, MAX_BODY_BYTES, MAX_HEADER_BYTES, Letter

MAX_NAME_LENGTH = 256
MAX_TEXT_LENGTH = 128

WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""Names of numbers and reasons of failures."""

NUMBER = (int, float)

T = TypeVar("T")


def opened(letter: Letter, kind: str | None = None) -> dict[str, Any]:
    """The header of a letter; of one kind, if that is given."""
    if len(letter.header) > MAX_HEADER_BYTES or len(letter.body) > MAX_BODY_BYTES:
        raise ValueError("it is too large")
    found = json.loads(letter.header)
    if not isinstance(found, dict):
        raise ValueError("its header is no object")
    if found.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    if found.get("kind") != kind and kind is not None:
        raise ValueError(f"it is no {kind}")
    return found


def typed(header: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """A value of exactly one type."""
    value = header[key]
    if type(value) is not kind:
        raise ValueError(f"{key} is of another type than it should be")
    return value


def whole(header: Mapping[str, Any], key: str, least: int, most: int) -> int:
    """A whole number within bounds."""
    value = typed(header, key, int)
    if not least <= value <= most:
        raise ValueError(f"{key} is not between {least} and {most}")
    return value


def share(header: Mapping[str, Any], key: str) -> float:
    """A number from 0 to 1."""
    value = header[key]
    if type(value) not in NUMBER or not 0 <= value <= 1:
        raise ValueError(f"{key} is not between 0 and 1")
    return float(value)


def text(header: Mapping[str, Any], key: str, most: int = MAX_TEXT_LENGTH) -> str:
    """A text that is not too long."""
    value = typed(header, key, str)
    if len(value) > most:
        raise ValueError(f"{key} is too long")
    return value


def name(header: Mapping[str, Any], key: str) -> str:
    """A name, which is not empty."""
    value = text(header, key, MAX_NAME_LENGTH)
    if not value:
        raise ValueError(f"{key} is empty")
    return value
