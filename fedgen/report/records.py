"""Reads what a run has written down: its configuration, its environment and the lines of its journal.

Only reads, and needs nothing but the folder, so a run can be looked at on another machine and while it still goes on;
``journal``, which writes these lines and continues them, shares its types with the model and brings torch along.
Whatever is not a finite number comes out as None, so that everything after this module may trust the numbers it gets.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgen.errors import RunError
from fedgen.report.text import natural

Record = dict[str, Any]
Number = int | float

CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE = "experiment.yaml", "environment.json", "metrics.jsonl"

LARGEST = 1e100
"""Beyond it a number is taken for none: sums and axes must stay finite."""

_NEEDS_ROUND = ("round", "client", "warning", "conversation", "end")


@dataclass(frozen=True)
class Records:
    """All that a run folder says.

    Attributes:
        folder: the run folder.
        config: the resolved configuration, as plain values.
        config_text: the same as it is in the file.
        environment: versions, hardware, fingerprints.
        rounds: one record per finished round, in order; round 0 is the state before training.
        clients: one record per client and round, in order of (round, client).
        warnings: in the order in which they came.
        conversations: what the model answered before and after.
        finished: the run went to its end.
        seed: with what the federation began; None if it was to have no seed.
    """

    folder: Path
    config: Mapping[str, Any]
    config_text: str
    environment: Mapping[str, Any]
    rounds: tuple[Record, ...] = ()
    clients: tuple[Record, ...] = ()
    warnings: tuple[Record, ...] = ()
    conversations: tuple[Record, ...] = ()
    finished: bool = False
    seed: Record | None = None


def read(folder: Path) -> Records:
    """Reads a run folder.

    Raises:
        RunError: the folder is not a run folder, or one of its files is damaged; names the file and the line.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder; give the folder of a run, such as one of those under runs/")
    if not (folder / CONFIG_FILE).is_file():
        raise RunError(f"{folder} is not a run folder: it holds no {CONFIG_FILE}")
    config_text = _text(folder / CONFIG_FILE)
    lines = _lines(folder / METRICS_FILE)
    rounds = {line["round"]: line for line in lines if line["kind"] == "round"}
    clients = {(line["round"], line["client"]): line for line in lines if line["kind"] == "client"}
    last = max(rounds, default=0)
    return Records(
        folder=folder,
        config=_config(folder / CONFIG_FILE, config_text),
        config_text=config_text,
        environment=_environment(folder / ENVIRONMENT_FILE),
        rounds=tuple(rounds[key] for key in sorted(rounds)),
        clients=tuple(clients[key] for key in sorted(clients, key=lambda key: (key[0], natural(key[1])))),
        warnings=tuple(line for line in lines if line["kind"] == "warning"),
        conversations=tuple(line for line in lines if line["kind"] == "conversation"),
        seed=next((line for line in lines if line["kind"] == "seed"), None),
        finished=any(line["kind"] == "end" and line["round"] >= last for line in lines),
    )


def expand(folders: Sequence[Path]) -> list[Path]:
    """The run folders among and directly inside the given ones, each once.

    Args:
        folders: run folders, and sweeps (folders of run folders).

    Raises:
        RunError: a folder is missing, or is neither a run folder nor holds one.
    """
    runs: dict[Path, Path] = {}
    for folder in folders:
        for run in _runs(folder):
            runs.setdefault(run.resolve(), run)
    if not runs:
        raise RunError("no run folder was given; name one or more, such as those under runs/")
    return list(runs.values())


def finite(value: object) -> Number | None:
    """The value if it is a number that can be drawn and added up, None if it is anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= LARGEST else None


def plain(value: object) -> Any:  # noqa: ANN401 - any value that JSON can hold
    """The value in the types of JSON; what JSON lacks, infinity and dates say, becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _runs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder; give the folder of a run or of a sweep, such as one under runs/")
    if (folder / CONFIG_FILE).is_file():
        return [folder]
    try:
        inside = [child for child in folder.iterdir() if not child.name.startswith(".")]
    except OSError as error:
        raise RunError(f"{folder} cannot be listed: {error.strerror}") from error
    runs = sorted((child for child in inside if (child / CONFIG_FILE).is_file()), key=lambda run: natural(run.name))
    if not runs:
        raise RunError(f"{folder} is neither a run folder nor a sweep: no {CONFIG_FILE} in it, nor in any folder in it")
    return runs


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing, so {path.parent} is not a whole run folder") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is damaged: byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error


def _config(path: Path, text: str) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RunError(f"{path} is not valid yaml: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise RunError(f"{path} holds {type(config).__name__}; expected a mapping, the configuration of the run")
    result: dict[str, Any] = plain(config)
    return result


def _environment(path: Path) -> dict[str, Any]:
    """The environment; empty if it was not kept, since every number of a run can be shown without it."""
    if not path.exists():
        return {}
    try:
        environment = _parse(_text(path))
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(environment, dict):
        raise RunError(f"{path} holds {type(environment).__name__}; expected an object")
    return environment


def _lines(path: Path) -> list[Record]:
    """The records of a journal. A last line without its newline was cut off by a crash and is left out."""
    *whole, _torn = _text(path).split("\n")
    return [_record(line, f"{path}, line {index}") for index, line in enumerate(whole, start=1)]


def _record(line: str, where: str) -> Record:
    try:
        record = _parse(line)
    except ValueError as error:
        raise RunError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise RunError(f"{where} is not a record: expected an object with a kind")
    kind = record["kind"]
    if kind in _NEEDS_ROUND and (not isinstance(record.get("round"), int) or isinstance(record["round"], bool)):
        raise RunError(f"{where} is not a {kind} record: round is {record.get('round')!r}, expected a whole number")
    if kind == "client" and not isinstance(record.get("client"), str):
        raise RunError(f"{where} is not a client record: client is {record.get('client')!r}, expected a name")
    return record


def _parse(text: str) -> Any:  # noqa: ANN401 - any JSON value
    """JSON with what is not a finite number as null, and no integer that a float could not hold."""
    try:
        return json.loads(
            text,
            parse_constant=lambda _: None,
            parse_float=lambda digits: finite(float(digits)),
            parse_int=lambda digits: int(digits) if len(digits) < 300 else None,
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
