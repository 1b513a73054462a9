"""The life of a run: started, resumed, exported, talked to. No Hydra here: a run folder says all there is.

What needs torch is imported once the folder has been looked at, so that a mistyped path is answered at once.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedgen import report
from fedgen import run as folders
from fedgen.cli.progress import Progress
from fedgen.config.catalogue import nearest, options, shipped
from fedgen.disk import replace_folder
from fedgen.errors import ConfigError, FedgenError, RunError
from fedgen.run import Run

if TYPE_CHECKING:
    from fedgen.experiment import Experiment

INTERRUPTED = 130


def start(experiment: "Experiment", text: str, root: Path, name: str) -> Run:
    """Makes a run folder and carries the experiment through in it.

    Args:
        experiment: what to do.
        text: the resolved config that describes it, as yaml.
        root: folder in which the run folder is made.
        name: goes into the run folder's name.

    Raises:
        FedgenError: the experiment cannot be carried out; a folder in which nothing has happened yet is removed again.
    """
    environment = json.dumps(folders.environment(), indent=2) + "\n"
    run = folders.create(root, name, {"experiment.yaml": text, "environment.json": environment})
    try:
        _drive(experiment, run)
    except FedgenError:
        if not any(run.checkpoints.iterdir()):
            shutil.rmtree(run.path)
        raise
    return run


def resume(path: Path) -> int:
    """Goes on with a run from its newest valid checkpoint; a run that is over only gets its report again.

    Raises:
        FedgenError: it is no run folder, or cannot be continued.
    """
    run = folders.open_run(path)
    _drive(_experiment(run), run)
    return 0


def export(path: Path, option: str | None, target: Path | None) -> int:
    """Writes the tuned model as one of the options of export says.

    Raises:
        FedgenError: there is nothing to export, the option is unknown, or the target is in use.
    """
    run = folders.open_run(path)
    experiment = _experiment(run)
    if option is not None:
        experiment = _with_export(experiment, option)
    folder = target or run.path / experiment.export.folder_name
    if target is not None and target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise RunError(f"{target} exists and is no empty folder; name another with --to, nothing was written")
    from fedgen.federation.course import finished
    from fedgen.journal import read
    from fedgen.rounds import card_of

    with _quietly():
        learner, newest = finished(experiment, run)
        card = card_of(experiment, read(run.metrics_file), str(newest.facts["description"]))
        with replace_folder(folder) as fresh:
            experiment.export.write(learner, fresh, card)
    print(folder)
    return 0


def generate(path: Path, text: str, max_new_tokens: int) -> int:
    """Prints the tuned model's greedy answer.

    Raises:
        FedgenError: it is no run folder, or has no state yet.
    """
    run = folders.open_run(path)
    experiment = _experiment(run)
    from fedgen.federation.course import finished

    with _quietly():
        learner, _ = finished(experiment, run)
        answer = learner.generate(experiment.data.prompt(text), max_new_tokens)
    print(answer)
    return 0


def _drive(experiment: "Experiment", run: Run) -> None:
    """Carries a run to its end with a display, and writes its report whatever happens."""
    again = f"fedgen resume {shlex.quote(str(run.path))}"
    try:
        with Progress() as progress:
            experiment.federation.run(experiment, run, progress.observe)
            page = report.write(run.path)
            progress.finish(report.summarise(run.path))
    except KeyboardInterrupt:
        print(f"\nfedgen: interrupted. Go on where it was: {again}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # At once: clients in the middle of a turn may need minutes more, and a run can be killed at any moment anyway.
        os._exit(INTERRUPTED)
    except FedgenError as error:
        if any(run.checkpoints.iterdir()):
            raise type(error)(f"{error}\nWhat was done so far is kept; go on with: {again}") from error
        raise
    folder = shlex.quote(str(run.path))
    print(f"\nLook at it   {page}")
    print(f'Talk to it   fedgen generate {folder} "..."')
    print(f"Give it away fedgen export {folder} --to FOLDER")


def _experiment(run: Run) -> "Experiment":
    from fedgen.cli.load import load

    return load(run.experiment_file)


def _with_export(experiment: "Experiment", option: str) -> "Experiment":
    """The experiment with another option of export.

    Raises:
        ConfigError: there is no such option, or it does not go with the adapter.
    """
    from omegaconf import OmegaConf

    from fedgen.config.check import build_node
    from fedgen.stages import Export

    known = options("export")
    if option not in known:
        raise ConfigError(f"export has no option {option!r}{nearest(option, known)}; it has {', '.join(known)}")
    node = OmegaConf.to_container(OmegaConf.load(shipped("configs") / "export" / f"{option}.yaml"))
    built = build_node(node, "export")
    assert isinstance(built, Export)
    try:
        return dataclasses.replace(experiment, export=built)
    except ValueError as error:
        raise ConfigError(str(error)) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Sends what libraries print to stderr, so that stdout holds the answer alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
