"""Whether a value from yaml fits an annotation, and the value as the annotation wants it.

Stricter than Python where a slip is likely (``true`` is no number, 1.5 no int, nan no float), and more lenient where
yaml is at fault: it has no tuples, and it reads ``1e-3`` as text.
"""

import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class Misfit(ValueError):
    """A value does not fit; the message says what was got and what is wanted."""


def fit(value: object, hint: object) -> object:
    """The value as the annotation wants it.

    >>> fit([1, 2], tuple[float, ...])
    (1.0, 2.0)
    >>> fit("1e-3", float | None)
    0.001

    Raises:
        Misfit: it does not fit.
        TypeError: the annotation is of a kind that options do not use.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _fit_any(value, arguments, hint)
    if origin is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise Misfit(f"{value!r} is not one of {', '.join(repr(choice) for choice in arguments)}")
    if origin in (tuple, list, Sequence):
        return _fit_sequence(value, origin, arguments)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise Misfit(f"{value!r} is not a mapping")
        return {fit(name, arguments[0]): fit(item, arguments[1]) for name, item in value.items()}
    return _fit_scalar(value, hint)


def _fit_any(value: object, hints: tuple[object, ...], union: object) -> object:
    for hint in hints:
        try:
            return fit(value, hint)
        except Misfit:
            continue
    raise Misfit(f"{value!r} is not {_name(union)}")


def _fit_sequence(value: object, origin: object, arguments: tuple[object, ...]) -> object:
    if not isinstance(value, list | tuple):
        raise Misfit(f"{value!r} is not a list; write [{value}]")
    if origin is tuple and Ellipsis not in arguments:
        if len(value) != len(arguments):
            raise Misfit(f"{value!r} has {len(value)} items; expected {len(arguments)}")
        return tuple(fit(item, hint) for item, hint in zip(value, arguments, strict=True))
    items = [fit(item, arguments[0]) for item in value]
    return items if origin is list else tuple(items)


def _fit_scalar(value: object, hint: object) -> object:
    if hint is None or hint is types.NoneType:
        if value is None:
            return None
        raise Misfit(f"{value!r} is not null")
    if hint is float:
        return _fit_float(value)
    if hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise Misfit(f"{value!r} is not a whole number")
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is str and isinstance(value, bool | int | float):
        raise Misfit(f"{value!r} is not text; quote it twice, once for the shell: \"'{value}'\"")
    if not isinstance(hint, type):
        raise TypeError(f"options do not use annotations like {hint}")
    if isinstance(value, hint):
        return value
    raise Misfit(f"{value!r} is not {_name(hint)}")


def _fit_float(value: object) -> float:
    number = float(value) if isinstance(value, str) and FLOAT.fullmatch(value) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise Misfit(f"{value!r} is not a number")
    if not math.isfinite(number):
        raise Misfit(f"{value!r} is not a finite number")
    return float(number)


def _name(hint: object) -> str:
    """An annotation in words.

    >>> _name(int | None)
    'a whole number or null'
    """
    words = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        types.NoneType: "null",
        Path: "a path",
    }
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_name(part) for part in typing.get_args(hint))
    return words[hint] if isinstance(hint, type) and hint in words else str(hint)
