"""Real devices, through a SuperLink that ``fedgen server`` runs on this machine.

Bonawitz et al., "Towards Federated Learning at Scale: System Design", MLSys 2019: more devices are asked than are
needed, and a round ends when enough of them have answered.
"""

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

from fedgen.disk import write_atomic
from fedgen.errors import RunError
from fedgen.experiment import Experiment
from fedgen.federation.shield import Control, check_version
from fedgen.federation.submission import Submission, Tail, Vanished, is_over
from fedgen.federation.terms import Terms
from fedgen.records import warning
from fedgen.run import Run
from fedgen.types import Observer

CONNECTION = "fedgen"
"""What the `config.toml` of a home calls its SuperLink."""

MAX_RESTARTS = 5
"""So often a run is submitted again whose server's part has ended without a word."""

AGAIN_S = 10.0
LOCK_S = 90.0
"""A server's part that Flower has given up notices it within this time, and lets go of the run's folder."""


@dataclass(frozen=True)
class Superlink:
    """Real devices, through the server that `fedgen server` runs on this machine.

    Attributes:
        home: folder that `fedgen provision` made.
        deadline_s: seconds that a round waits for replies once all requests are out.
        quorum: share of the requests; when so many have been answered with an update, the round ends soon.
        grace_s: so many seconds after that.
        min_clients: a round begins when so many devices can be asked.
        gather_s: before its first round a run waits so long for all devices to be there.
        patience_s: seconds to wait for `min_clients` before the run is given up; null to wait for ever.
        poll_s: seconds between two looks for replies.
    """

    home: Path
    deadline_s: float | None = 3600.0
    quorum: float = 1.0
    grace_s: float = 60.0
    min_clients: int = 1
    gather_s: float = 120.0
    patience_s: float | None = None
    poll_s: float = 0.5

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        _ = self.terms  # building them is what refuses

    @property
    def terms(self) -> Terms:
        """How long a round waits, and for whom."""
        return Terms(
            self.deadline_s,
            self.quorum,
            self.grace_s,
            self.min_clients,
            self.gather_s,
            self.patience_s,
            self.poll_s,
        )

    @property
    def lock_s(self) -> float:
        """Seconds to wait for another process that works on the run."""
        return LOCK_S

    def run(self, experiment: Experiment, run: Run, observe: Observer) -> None:
        """Carries an experiment through, from its last checkpoint if there is one.

        A run that was submitted and goes on, since only the process that watched it has ended, is followed again.

        Raises:
            FedgenError: data, model or run folder are unusable, or there is no server.
        """
        check_version()
        if is_over(run):
            return
        control = Control(self.home.absolute() / "flwr", CONNECTION)
        submission = Submission(control, run, observe, self._clients(), {})
        run_id = _going_on(control, run)
        tail = Tail(run.observed_file, again=run_id is not None)
        for number in range(MAX_RESTARTS + 1):
            if run_id is None:
                run_id = self._first(submission) if number == 0 else _again(submission, observe)
                write_atomic(_note(run), json.dumps({"run_id": run_id}) + "\n")
            try:
                submission.follow(run_id, tail, lambda: None)
            except KeyboardInterrupt:
                with contextlib.suppress(RunError):
                    control.stop(run_id)
                raise
            except Vanished as error:
                observe(warning(0, f"the server's part has ended without a word ({error}); it is submitted again"))
                run_id = None
            else:
                return
        raise RunError(
            f"the server's part of the run has ended {MAX_RESTARTS + 1} times without a word; look into its logs"
        )

    def _first(self, submission: Submission) -> str:
        try:
            return submission.submit()
        except RunError as error:
            raise RunError(f"{error}\nA run is carried out by the server: fedgen server {self.home}") from error

    def _clients(self) -> list[str]:
        """Names of all devices.

        Raises:
            RunError: there is no home, or it has no device.
        """
        file = self.home / "fleet.json"
        try:
            devices = json.loads(file.read_text(encoding="utf-8"))["devices"]
            names = sorted(str(name) for name in devices)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{self.home} is no home of a server: {error}. Make one with fedgen provision, and give its folder as "
                "federation.home"
            ) from error
        if not names:
            raise RunError(f"{file} names no device; add one: fedgen provision {self.home} --device NAME")
        return names


def _again(submission: Submission, observe: Observer) -> str:
    """Submits a run when Flower can be reached; its number."""
    told = ""
    while True:
        time.sleep(AGAIN_S)
        try:
            return submission.submit()
        except RunError as error:
            if str(error) != told:
                told = str(error)
                observe(warning(0, f"the run cannot be submitted yet: {told}"))


def _going_on(control: Control, run: Run) -> str | None:
    """Flower's number of the run if it has been submitted and has not ended."""
    try:
        run_id = str(json.loads(_note(run).read_text(encoding="utf-8"))["run_id"])
        status, _ = control.status(run_id)
    except (OSError, ValueError, KeyError, TypeError, RunError):
        return None
    return None if status.startswith("finished") else run_id


def _note(run: Run) -> Path:
    return run.path / "flower.json"
