"""From a composed config to an Experiment, or to every fault in it at once.

The classes are the schema: a key must be a field of the class that its node names, a value must fit the field's
annotation, and whatever a class refuses in ``__post_init__`` is a fault as well. Building is free, so all of this
happens before anything starts. Hydra's ``instantiate`` stops at the first fault, lets a float pass for an int and
runs whatever ``_target_`` names; hence this walk, which builds only what is on the allow-list.
"""

import dataclasses
import functools
import importlib
import inspect
import re
import typing
from collections.abc import Mapping

from fedgen.config.catalogue import defaults, nearest, options, stage_of
from fedgen.config.fit import Misfit, fit
from fedgen.config.schema import REQUIRED
from fedgen.errors import ConfigError
from fedgen.experiment import Experiment

ROOT = "fedgen.experiment.Experiment"
FILTERS = "fedgen.synthesis.filters.Filters"
SINGLE = {"": ROOT, "filters": FILTERS, "seeding": "fedgen.seeding.Seeding"}
"""What stands at a key of which there is one kind."""
DIRECTIVES = frozenset({"_target_", "_partial_"})
"""Keys that speak to this module and not to the class."""

THIRD_PARTY = frozenset(
    {
        "peft.LoraConfig",
        "torch.optim.Adam",
        "torch.optim.AdamW",
        "torch.optim.SGD",
        "flwr_datasets.partitioner.DirichletPartitioner",
        "flwr_datasets.partitioner.IidPartitioner",
        "flwr_datasets.partitioner.NaturalIdPartitioner",
        "flwr_datasets.partitioner.PathologicalPartitioner",
        "flwr_datasets.partitioner.ShardPartitioner",
    }
)
"""Classes from elsewhere that a config may name. Naming a class runs it, so there is no pattern here, only names."""


class _Refused(Exception):
    """A node whose faults have been noted."""


def build(config: Mapping[str, object]) -> Experiment:
    """The experiment that a plain, resolved config describes.

    Raises:
        ConfigError: the config is wrong; the message names every fault with its full key.
    """
    built = build_node(config, "")
    assert isinstance(built, Experiment)
    return built


def build_node(config: object, key: str) -> object:
    """What one node describes; ``key`` is its place (`client`, say), empty for the whole experiment.

    Raises:
        ConfigError: the node is wrong; the message names every fault with its full key.
    """
    faults: list[str] = []
    try:
        built = _build(config, key, faults)
    except _Refused:
        built = None
    if faults:
        number = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError("\n  ".join([f"the configuration has {number}:", *faults]))
    return built


def _build(node: object, key: str, faults: list[str]) -> object:
    """Builds a node after its children.

    Raises:
        _Refused: it cannot be built; why was added to the faults.
    """
    number_before = len(faults)
    if not isinstance(node, Mapping) or "_target_" not in node:
        faults.append(f"{key or 'the experiment'}: {node!r} names no class with _target_{_known_options(key)}")
        raise _Refused
    target = _resolve(str(node["_target_"]), key, faults)
    parameters = inspect.signature(target).parameters
    annotated = target if dataclasses.is_dataclass(target) else inspect.getattr_static(target, "__init__")
    hints = typing.get_type_hints(annotated)
    arguments: dict[str, object] = {}
    for name, value in node.items():
        if name not in DIRECTIVES:
            try:
                _known(name, parameters, target, key, faults)
                arguments[name] = _argument(value, hints.get(name, typing.Any), _join(key, name), faults)
            except _Refused:
                continue
    partial = node.get("_partial_", False) is True
    for name, parameter in parameters.items():
        named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if named and parameter.default is parameter.empty and name not in node and not partial:
            faults.append(f"{_join(key, name)} is missing{_known_options(name) if not key else ''}")
    if len(faults) > number_before:
        raise _Refused
    if partial:
        return functools.partial(target, **arguments)
    try:
        return target(**arguments)
    except ValueError as error:
        faults.append(_placed(str(error), key, arguments))
        raise _Refused from error


def _resolve(path: str, key: str, faults: list[str]) -> type:
    """The class that a node names.

    Raises:
        _Refused: it may not be named at this place, or does not exist.
    """
    place = _join(key, "_target_")
    if not _allowed(path, key):
        wanted = (
            f"fedgen.{stage_of(key)}.<option>.<Class>"
            if "." not in key or stage_of(key) in defaults()
            else f"one of {', '.join(sorted(THIRD_PARTY))}"
        )
        faults.append(f"{place}: {path!r} may not be named here; expected {ROOT if not key else wanted}")
        raise _Refused
    module, _, name = path.rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        missing = error.name or module
        known = "there is no such module" if path.startswith(f"{missing}.") else f"it needs the package {missing}"
        faults.append(f"{place}: cannot import {path}: {known}{_known_options(key)}")
        raise _Refused from error
    except (AttributeError, ImportError) as error:
        faults.append(f"{place}: cannot import {path}: {error}")
        raise _Refused from error
    if not inspect.isclass(target):
        faults.append(f"{place}: {path} is no class")
        raise _Refused
    return target


def _allowed(path: str, key: str) -> bool:
    """Whether a target may stand at a place: the root, an option of a stage, or a named class below an option.

    An option of one stage may hold one of another, in a field of that stage's name (`generator.model`).
    """
    if key in SINGLE:
        return path == SINGLE[key]
    if "." in key and path in THIRD_PARTY:
        return True
    match = re.fullmatch(rf"fedgen\.{re.escape(stage_of(key))}\.([a-z][a-z0-9_]*)\.([A-Z][A-Za-z0-9]*)", path)
    return match is not None and match[1].replace("_", "") == match[2].lower()


def _known(
    name: object, parameters: Mapping[str, inspect.Parameter], target: type, key: str, faults: list[str]
) -> None:
    """Refuses a key that is no parameter of the class.

    Raises:
        _Refused: it is none; that was added to the faults.
    """
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if name in parameters or (open_ended and isinstance(name, str)):
        return
    has = f"it has {', '.join(parameters)}" if parameters else "it has no keys"
    faults.append(f"{_join(key, str(name))}: {target.__name__} has no such key{nearest(str(name), parameters)}; {has}")
    raise _Refused


def _argument(value: object, hint: object, key: str, faults: list[str]) -> object:
    """The value as its annotation wants it; a nested node is built.

    Raises:
        _Refused: it does not fit; that was added to the faults.
    """
    if isinstance(value, str) and value == REQUIRED:
        faults.append(f"{key} is missing; give it a value: {key}=...")
        raise _Refused
    if (isinstance(value, Mapping) and "_target_" in value) or _is_stage(hint):
        return _build(value, key, faults)
    try:
        return fit(value, hint)
    except Misfit as error:
        faults.append(f"{key}: {error}")
        raise _Refused from error
    except TypeError:
        # Classes from elsewhere have annotations that yaml cannot be held against (callables, type variables).
        return value


def _is_stage(hint: object) -> bool:
    """Whether an annotation is a Protocol, so that only a node can fill it."""
    return inspect.isclass(hint) and typing.Protocol in hint.__bases__


def _known_options(key: str) -> str:
    try:
        return f"; options of {key}: {', '.join(options(key))}" if key else ""
    except ConfigError:
        return ""


def _placed(message: str, key: str, arguments: Mapping[str, object]) -> str:
    """A constructor's refusal under the full key: constructors name the field first, or speak of the whole."""
    first = re.match(r"\w+", message)
    if first is not None and first[0] in arguments:
        return _join(key, message)
    return f"{key}: {message}" if key else message


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
