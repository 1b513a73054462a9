"""``fedgen train``: Hydra composes the config, ``check`` builds the experiment, ``runs`` carries it out.

Hydra parses overrides and its own flags, and drives sweeps with whatever sweeper and launcher is configured. It
writes nothing: a run's folder is fedgen's own. A sweep is one folder with one run folder per job, named after what
sets the job apart.
"""

import itertools
import json
import math
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import Container, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedgen import report
from fedgen.cli import source
from fedgen.cli.explain import explain
from fedgen.errors import FedgenError, RunError

USER_ERROR = 2
DEFECT = 1
FAILED_JOBS = "failed.jsonl"
"""File in a sweep's folder with one line per job that failed: it works with any launcher, in this process or not."""


MAX_NAME_LENGTH = 100
"""Characters of a run folder's name; with the date before it, file systems have room to spare."""


def train(arguments: Sequence[str]) -> int:
    """Trains once, or sweeps, or prints what Hydra's own flags ask for.

    Raises:
        FedgenError: the configuration is wrong, or the experiment cannot be carried out.
    """
    source.register()
    if _is_sweep(arguments):
        return _sweep(arguments)
    composed: list[Container] = []
    # Hydra only composes: the run comes after its call, so that it frames neither errors nor tracebacks.
    _compose(arguments, composed.append)
    for config in composed:
        _run(config, _root(), None)
    return 0


def compose(overrides: Sequence[str], root: str = "experiment") -> dict[str, object]:
    """The resolved config that overrides make of the defaults, as plain values; `check.build` takes it.

    Args:
        overrides: as they are typed.
        root: file of `configs/` that holds the defaults.

    Raises:
        ConfigError: an override cannot be read, or names what does not exist.
    """
    source.register()
    try:
        with hydra.initialize(config_path=None, version_base="1.3"):
            return _plain(hydra.compose(root, list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error


def _plain(composed: Container) -> dict[str, object]:
    """A composed config as plain values.

    Raises:
        ConfigError: a reference to another key leads nowhere.
    """
    try:
        config = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def _root() -> Path:
    return Path(os.environ.get("FEDGEN_RUNS") or "runs")


def _is_override(argument: str) -> bool:
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def _is_sweep(arguments: Sequence[str]) -> bool:
    return bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(arguments))


def _compose(arguments: Sequence[str], task: Callable[[Container], object]) -> None:
    """Hands the arguments to Hydra, which calls the task with each composed config.

    Raises:
        ConfigError: Hydra cannot compose a config from them.
    """
    # Hydra's parser wants all overrides in one piece; people type `model=tiny -m seed=1,2`.
    ordered = sorted(arguments, key=lambda argument: not _is_override(argument))
    with _as_command_line(ordered):
        try:
            hydra.main(config_path=None, config_name="experiment", version_base="1.3")(_named(task))()
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            # ValueError is what Hydra says to flags that exclude each other.
            raise explain(error) from error


def _named(task: Callable[[Container], object]) -> Callable[[Container], object]:
    """The task as a function of this module: Hydra asks for a module and a name, and a method of a list has neither."""

    def run(composed: Container) -> object:
        return task(composed)

    return run


@contextmanager
def _as_command_line(arguments: Sequence[str]) -> Iterator[None]:
    """Lets Hydra see the arguments as the process's own, and raise its errors instead of printing them and exiting."""
    before, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["fedgen train", *arguments], "1"
    try:
        yield
    finally:
        sys.argv = before
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _run(composed: Container, root: Path, name: str | None) -> Path:
    """One run from a composed config; its folder."""
    config = _plain(composed)
    # Imports torch, so only when a run is about to start.
    from fedgen.cli import runs
    from fedgen.config import check

    experiment = check.build(config)
    text = OmegaConf.to_yaml(composed, resolve=True)
    path: Path = runs.start(experiment, text, root, name or experiment.name).path
    return path


def _sweep(arguments: Sequence[str]) -> int:
    """Runs every job of a sweep, then compares them; a job that fails does not stop the others."""
    folder, fixed_keys = _sweep_folder(arguments)
    directory = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    exclude = f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed_keys)}]"
    try:
        _compose([*arguments, exclude, f"hydra.sweep.dir='{directory}'"], _job)
    finally:
        # Hydra's own record of the sweep; every run has its own. A sweep that was refused leaves nothing.
        (folder / "multirun.yaml").unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    if not folder.exists():
        return 0
    if any((child / "experiment.yaml").exists() for child in folder.iterdir()):
        from fedgen.cli import reports

        reports.show([folder], None)
        print(f"See it again: fedgen report {shlex.quote(str(folder))}")
    file = folder / FAILED_JOBS
    failed = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    if not failed:
        return 0
    names = "; ".join(job["job"] for job in failed)
    print(f"fedgen: {len(failed)} of the jobs failed ({names}); why: {file}", file=sys.stderr)
    return DEFECT if any(job["code"] == DEFECT for job in failed) else USER_ERROR


def _sweep_folder(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """A new folder for a sweep, and the keys that are the same in all of its jobs.

    Raises:
        ConfigError: the overrides cannot be read or composed.
        RunError: the folder cannot be made.
    """
    try:
        overrides = OverridesParser.create().parse_overrides([a for a in arguments if _is_override(a)])
    except HydraException as error:
        raise explain(error) from error
    fixed = [override for override in overrides if not override.is_sweep_override()]
    composed = compose([str(override.input_line) for override in fixed])
    stem = _file_name(f"{datetime.now():%Y-%m-%dT%H%M}-{composed.get('name')}")
    for number in itertools.count(1):
        folder = _root() / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"cannot make {folder}: {error.strerror}; set FEDGEN_RUNS to a folder for runs") from error
        return folder, [override.key_or_group for override in fixed]
    raise AssertionError("count has no end")


def _job(composed: Container) -> float:
    """One job of a sweep; the followed number at its end, for sweepers that search by it (nan if it failed)."""
    settings = HydraConfig.get()
    folder = Path(settings.sweep.dir)
    name = _file_name(settings.job.override_dirname) or f"job-{settings.job.num}"
    print(f"\njob {settings.job.num}: {name}", flush=True)
    try:
        after = report.summarise(_run(composed, folder, name))["after"]
    except FedgenError as error:
        print(f"fedgen: {error}", file=sys.stderr)
        _note_failure(folder, {"job": name, "code": USER_ERROR, "message": str(error)})
    except Exception as error:
        # A defect: its traceback is shown, and the other jobs still get their turn.
        traceback.print_exc()
        _note_failure(folder, {"job": name, "code": DEFECT, "message": f"{type(error).__name__}: {error}"})
    else:
        return float(after["value"]) if after else math.nan
    return math.nan


def _note_failure(folder: Path, failure: Mapping[str, object]) -> None:
    with (folder / FAILED_JOBS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(failure) + "\n")


def _file_name(text: str) -> str:
    """Text as a run folder may be named.

    >>> _file_name("client.learning_rate=0.001,data.path=my/a b")
    'client.learning_rate=0.001,data.path=my-a-b'
    """
    return re.sub(r"[^A-Za-z0-9_.=,+-]+", "-", text).lstrip("_.=,+-")[:MAX_NAME_LENGTH]
