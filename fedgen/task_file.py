"""Reads a task from a yaml file, or says all that is wrong with it at once."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path

from fedgen.errors import ConfigError
from fedgen.task import Task
from fedgen.task_faults import faults_of
from fedgen.task_parts import Channel, Form, Label, Slot

STAND_IN = Slot(values={"?": "?"})
"""Takes the place of a slot that could not be read, so that what refers to it is no fault as well."""


def read_task(file: Path) -> Task:
    """The task in a file.

    Raises:
        ConfigError: the file cannot be read, or describes no task; the message names every fault with its key.
    """
    import yaml

    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the task {file}: {error}") from error
    return build_task(config, str(file))


def build_task(config: object, place: str) -> Task:
    """The task that plain values describe.

    Args:
        config: what yaml made of a task file.
        place: where it comes from, for the message.

    Raises:
        ConfigError: it is no task; the message names every fault with its key.
    """
    faults: list[str] = []
    task = None
    if isinstance(config, Mapping):
        task = _task({str(key): value for key, value in config.items()}, faults)
    else:
        faults.append(f"it holds {type(config).__name__}; expected keys such as name, kind, description and labels")
    if task is None or faults:
        number = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError("\n  ".join([f"the task {place} has {number}:", *faults]))
    return task


def _task(config: dict[str, object], faults: list[str]) -> Task | None:
    config = dict(config)
    parts: dict[str, dict[str, object]] = {
        "slots": {k: _slot(v, f"slots.{k}", faults) or STAND_IN for k, v in _items(config, "slots", faults)},
        "channels": {k: _part(Channel, v, f"channels.{k}", faults) for k, v in _items(config, "channels", faults)},
        "labels": {k: _label(v, f"labels.{k}", faults) for k, v in _items(config, "labels", faults)},
    }
    unread = [f"{name}: it is empty" for name, read in parts.items() if read and None in read.values()]
    unread += [f"{fault.partition(':')[0]}: it is empty" for fault in faults]
    parts = {name: {key: part for key, part in read.items() if part is not None} for name, read in parts.items()}
    fields = _fields(Task, config, "", faults, known=parts)
    task, late = None, []
    try:
        if fields is None:
            kind = "sensor" if config.get("kind") == "sensor" else "commands"
            late = faults_of(kind, **parts)  # type: ignore[arg-type]
        else:
            task = Task(**fields, **parts)  # type: ignore[arg-type]  # fields have been held against their annotations
    except ValueError as error:
        late = str(error).splitlines()
    # That none of them could be read has been said, each with its reason.
    faults += [fault for fault in late if not fault.startswith(tuple(unread))]
    return task


def _items(config: dict[str, object], key: str, faults: list[str]) -> list[tuple[str, object]]:
    value = config.pop(key, {})
    if isinstance(value, Mapping):
        return [(str(name), part) for name, part in value.items()]
    faults.append(f"{key}: {value!r} is no mapping; write a name and a colon before each of them")
    return []


def _slot(value: object, key: str, faults: list[str]) -> Slot | None:
    before = len(faults)
    if isinstance(value, Mapping) and isinstance(value.get("values"), list):
        words = _fit(value["values"], tuple[str, ...], f"{key}.values", faults)
        assert isinstance(words, tuple)
        value = {**value, "values": {word: word for word in words}}
    slot = _part(Slot, value, key, faults)
    return slot if len(faults) == before else None


def _label(value: object, key: str, faults: list[str]) -> Label | None:
    if not isinstance(value, Mapping):
        return _part(Label, value, key, faults)
    config = {str(name): part for name, part in value.items()}
    listed = config.pop("forms", ())
    if not isinstance(listed, list | tuple):
        faults.append(f"{key}.forms: {listed!r} is no list; write each form with a dash before it")
        return None
    forms = [_part(Form, form, f"{key}.forms.{number}", faults) for number, form in enumerate(listed)]
    fields = _fields(Label, config, key, faults, known={"forms": forms} if forms else {})
    good = tuple(form for form in forms if form is not None)
    if fields is None or not good:
        return None
    return Label(forms=good, **fields)  # type: ignore[arg-type]


T = typing.TypeVar("T", Slot, Channel, Form, Label)


def _part(cls: type[T], value: object, key: str, faults: list[str]) -> T | None:
    """A slot, channel or form, all of whose fields are plain values; None if a fault was found."""
    if not isinstance(value, Mapping):
        faults.append(f"{key}: {value!r} is no mapping; it has {', '.join(f.name for f in dataclasses.fields(cls))}")
        return None
    fields = _fields(cls, {str(name): part for name, part in value.items()}, key, faults, known={})
    return None if fields is None else cls(**fields)  # type: ignore[arg-type]


def _fields(
    cls: type, config: Mapping[str, object], key: str, faults: list[str], known: Mapping[str, object]
) -> dict[str, object] | None:
    """The values that fit a class's fields; None if one without default is not among them.

    Whatever does not fit is noted, so nothing that is made of the rest leaves this module.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    found = {}
    for name, value in config.items():
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            faults.append(f"{_join(key, name)}: there is no such key{meant}; there are {', '.join(names)}")
        else:
            before = len(faults)
            fitted = _fit(value, hints[name], _join(key, name), faults)
            if fitted is not None and (fitted or len(faults) == before):
                found[name] = fitted
    complete = True
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in found and field.name not in known:
            complete = False
            if field.name not in config:
                faults.append(f"{_join(key, field.name)}: it is missing")
    return found if complete else None


def _fit(value: object, hint: object, key: str, faults: list[str]) -> object:
    """The value as an annotation wants it; None, and a fault noted, if it does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _fit(value, arguments[0], key, faults)
    if origin is typing.Literal:
        if value in arguments:
            return value
        faults.append(f"{key}: {value!r}; expected {' or '.join(map(str, arguments))}")
        return None
    if origin is tuple:
        if not isinstance(value, list | tuple):
            faults.append(f"{key}: {value!r} is no list; write [{value}]")
            return None
        items = [_fit(item, arguments[0], f"{key}.{number}", faults) for number, item in enumerate(value)]
        return tuple(item for item in items if item is not None)
    if origin is not None:
        if not isinstance(value, Mapping):
            faults.append(f"{key}: {value!r} is no mapping")
            return None
        fitted = {_fit(k, str, key, faults): _fit(v, arguments[1], f"{key}.{k}", faults) for k, v in value.items()}
        return {name: item for name, item in fitted.items() if name is not None and item is not None}
    return _fit_scalar(value, hint, key, faults)


def _fit_scalar(value: object, hint: object, key: str, faults: list[str]) -> object:
    if hint is str:
        if isinstance(value, str):
            return value
        spelt = f"yaml reads it as {value!r}" if isinstance(value, bool) else f"{value!r} is no text"
        faults.append(f"{key}: {spelt}; write the word in quotes")
        return None
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole or (hint is float and isinstance(value, float)):
        return float(value) if hint is float else value  # type: ignore[arg-type]
    faults.append(f"{key}: {value!r} is no {'number' if hint is float else 'whole number'}")
    return None


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
