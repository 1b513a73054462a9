"""An experiment on its way through Flower's run config, which takes flat scalars and nothing else.

Server and devices get the same one. Whatever it says, only options of fedgen are built from it (`config.check`).
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from fedgen.config.check import build
from fedgen.errors import ConfigError
from fedgen.experiment import Experiment

EXPERIMENT = "fedgen.experiment"
FOLDER = "fedgen.folder"
CLIENTS = "fedgen.clients"
PLACE = "fedgen.place"
KEYS = (EXPERIMENT, FOLDER, CLIENTS, PLACE)
"""Must be declared, each with an empty text, where a bundle is described; Flower refuses others."""

Scalars = Mapping[str, bool | int | float | str]


@dataclass(frozen=True)
class RunConfig:
    """What a run config says.

    Attributes:
        experiment: what to do.
        folder: of the run, on the server.
        clients: names of all clients, sorted; empty if the data tell them.
        place: on the server, from which relative paths of the experiment are told.
    """

    experiment: Experiment
    folder: Path
    clients: tuple[str, ...] = ()
    place: Path = Path()


def resolved(file: Path) -> dict[str, object]:
    """The plain config that an experiment.yaml holds, as a run wrote it.

    Raises:
        ConfigError: the file cannot be read, or holds no mapping.
    """
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file} holds no mapping; it should be the experiment.yaml that a run wrote")
    return {str(name): value for name, value in config.items()}


def write(config: Mapping[str, object], folder: Path, clients: Sequence[str] = ()) -> dict[str, str]:
    """A run config; relative paths in it are told from the folder in which this process is.

    Args:
        config: the experiment as plain values (`resolved`).
        folder: of the run.
        clients: names of all clients; none if the server can tell them from the data.

    Raises:
        ConfigError: the config holds what JSON cannot say.
    """
    try:
        text = json.dumps(config, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the configuration cannot travel: {error}; use plain numbers, texts and lists") from error
    names = json.dumps(sorted(clients)) if clients else ""
    return {EXPERIMENT: text, FOLDER: str(folder.absolute()), CLIENTS: names, PLACE: str(Path.cwd())}


def read(run_config: Scalars) -> RunConfig:
    """What a run config says.

    Raises:
        ConfigError: it is not one that `write` has made, or its experiment is wrong.
    """
    clients = _json(run_config, CLIENTS) if run_config.get(CLIENTS) else []
    if not isinstance(clients, list) or not all(isinstance(name, str) and name for name in clients):
        raise ConfigError(f"{CLIENTS} is no list of names")
    folder, place = (Path(str(run_config.get(key, ""))) for key in (FOLDER, PLACE))
    return RunConfig(experiment_of(run_config), folder, tuple(sorted(clients)), place)


def experiment_of(run_config: Scalars, data: str = "") -> Experiment:
    """The experiment that a run config describes.

    Args:
        run_config: as Flower hands it out.
        data: a device's own values of keys of its data stage, as `key=value` with spaces between.

    Raises:
        ConfigError: there is none, or it is wrong.
    """
    config = _json(run_config, EXPERIMENT)
    if not isinstance(config, dict):
        raise ConfigError(f"{EXPERIMENT} holds no experiment")
    own, stage = _own(data), config.get("data")
    if not own or not isinstance(stage, dict):
        return build(config)
    try:
        return build({**config, "data": {**stage, **own}})
    except ConfigError as error:
        build(config)
        raise ConfigError(
            f"this device reads data of its own ({data}), which those of the experiment are not: {error}. "
            "Let the experiment have data=jsonl, or start the device without --data"
        ) from error


def _own(data: str) -> dict[str, object]:
    """A device's own values.

    >>> _own("path=/data eval_fraction=0.2")
    {'path': '/data', 'eval_fraction': 0.2}
    """
    try:
        pairs = [word.partition("=") for word in shlex.split(data)]
        values: dict[str, object] = {key: yaml.safe_load(value) for key, _, value in pairs}
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"the device's data are {data!r}; write key=value, with spaces between") from error
    if not all(key.isidentifier() and not key.startswith("_") and sign for key, sign, _ in pairs):
        raise ConfigError(f"the device's data are {data!r}; write key=value, with spaces between")
    return values


def _json(run_config: Scalars, key: str) -> object:
    try:
        found: object = json.loads(str(run_config[key]))
    except KeyError:
        raise ConfigError(f"the run config has no {key}; the run was not started by fedgen") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{key} is no JSON: {error}") from error
    return found
