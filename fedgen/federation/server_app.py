"""The server's half of a run under Flower: the course of every run, over the grid, telling a file of all that happens.

Lines of `observed.jsonl` are what the loop tells any display, and besides these kinds: `device` (what one says of
itself), `refused` (a node that cannot take part, and why), `stale` (an answer after the end of its round), and at the
end `failed` with a message, or `over`.
"""

import contextlib
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedgen import disk
from fedgen.errors import FedgenError, RunError
from fedgen.federation import run_config
from fedgen.federation.course import carry_through
from fedgen.federation.grid_transport import GridTransport
from fedgen.federation.simulation import Simulation
from fedgen.federation.superlink import Superlink
from fedgen.journal import strict
from fedgen.parts import Ground
from fedgen.run import Run, open_run
from fedgen.types import Dataset, Observer, Record
from fedgen.workers import Workers

FAILED, OVER = "failed", "over"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carries the run through that the run config names."""
    run = Run(Path(str(context.run_config[run_config.FOLDER])))
    with disk.writing(run.observed_file), run.observed_file.open("a", encoding="utf-8") as file:
        tell = functools.partial(_tell, file)
        try:
            serve(grid, context.run_config, tell)
        except FedgenError as error:
            tell({"kind": FAILED, "message": str(error)})
            raise
        except Exception as error:
            tell({"kind": FAILED, "message": f"the server's part failed: {type(error).__name__}: {error}"})
            raise
        tell({"kind": OVER})


def serve(grid: Grid, config: run_config.Scalars, tell: Observer) -> None:
    """The whole run.

    Raises:
        FedgenError: it cannot be carried out; the message says why.
    """
    given = run_config.read(config)
    run, experiment = open_run(given.folder), given.experiment
    # Flower starts this process where its server is. Whoever may not go there told no relative path, or is told of it.
    with contextlib.suppress(OSError):
        os.chdir(given.place)
    federation = experiment.federation
    if not isinstance(federation, Simulation | Superlink):
        raise RunError("the experiment's federation is not one that runs under Flower")

    def reach(ground: Ground, workers: Workers, dataset: Dataset) -> GridTransport:
        return GridTransport(grid, ground, federation.terms, tell)

    carry_through(experiment, run, tell, reach, clients=given.clients, wait_s=federation.lock_s)


def _tell(file: IO[str], record: Mapping[str, object]) -> None:
    line: Record = strict(record)
    file.write(json.dumps(line, allow_nan=False) + "\n")
    file.flush()
