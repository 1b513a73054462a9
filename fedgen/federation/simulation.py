"""All clients in processes of Ray's, through Flower's simulation: on this machine, or on a Ray cluster.

Beutel et al., "Flower: A Friendly Federated Learning Framework", 2020, section 4.4 (Virtual Client Engine). The same
apps run here and in a deployment.
"""

import importlib.util
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedgen.errors import RunError
from fedgen.experiment import Experiment
from fedgen.federation.course import one_thread_each, shards_of
from fedgen.federation.shield import Control, check_version, quiet_environment
from fedgen.federation.submission import Submission, Tail, Vanished, is_over
from fedgen.federation.terms import Terms
from fedgen.ports import free_port
from fedgen.run import Run
from fedgen.types import Observer

CONNECTION = "fedgen"
START_S = 90.0
"""A SuperLink that is not up after this time has failed."""

GATHER_S, PATIENCE_S = 600.0, 5.0
"""Virtual clients are there once their processes have imported everything; one that is refused then is not mended."""

LOCK_S = 10.0
"""What a run that was killed has left is ended within this time."""

LOG_LINES = 15


@dataclass(frozen=True)
class Simulation:
    """All clients in processes of Ray's, through Flower, as many at once as there are cores.

    Attributes:
        num_cpus: cores that Ray may use; null takes all.
        client_cpus: cores that a client takes, whole ones; so many fewer work at once.
        client_gpus: share of a GPU that a client takes.
        ray_address: of a Ray cluster that runs already (`host:port`, or `auto`); null starts one on this machine.
        deadline_s: seconds that a round waits for replies; null to wait for all of them.
        quorum: share of the requests; when so many have been answered with an update, the round ends soon.
        grace_s: so many seconds after that.
    """

    num_cpus: int | None = None
    client_cpus: int = 1
    client_gpus: float = 0.0
    ray_address: str | None = None
    deadline_s: float | None = None
    quorum: float = 1.0
    grace_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if self.client_cpus < 1:
            raise ValueError(f"client_cpus is {self.client_cpus}; it must be at least 1")
        if self.num_cpus is not None and self.num_cpus < self.client_cpus:
            raise ValueError(f"num_cpus is {self.num_cpus}, and a client takes client_cpus={self.client_cpus}")
        if self.num_cpus is not None and self.ray_address is not None:
            raise ValueError(f"num_cpus is {self.num_cpus}; a cluster that runs already has the cores that it has")
        if not self.client_gpus >= 0:
            raise ValueError(f"client_gpus is {self.client_gpus}; it must be at least 0")
        _ = self.terms  # building them is what refuses the others

    @property
    def terms(self) -> Terms:
        """How long a round waits, and for whom."""
        return Terms(
            deadline_s=self.deadline_s,
            quorum=self.quorum,
            grace_s=self.grace_s,
            gather_s=GATHER_S,
            patience_s=PATIENCE_S,
            poll_s=0.05,
        )

    @property
    def lock_s(self) -> float:
        """Seconds to wait for another process that works on the run."""
        return LOCK_S

    def run(self, experiment: Experiment, run: Run, observe: Observer) -> None:
        """Carries an experiment through, from its last checkpoint if there is one.

        Raises:
            FedgenError: data, model or run folder are unusable, or Flower does not do what it should.
        """
        check_version()
        if importlib.util.find_spec("ray") is None:
            raise RunError("Ray is not installed; pip install 'fedgen[simulation]'")
        if is_over(run):
            return
        one_thread_each()
        # Before anything is started: what is wrong with the data is told at once.
        clients = sorted(shards_of(experiment, experiment.data.load(experiment.seed)))
        log = run.path / "flower.log"
        with self._superlink(log) as (control, process):
            submission = Submission(control, run, observe, clients, self._size(len(clients)))
            tail = Tail(run.observed_file)

            def check() -> None:
                if process.poll() is not None:
                    raise Vanished(f"the SuperLink has ended with status {process.returncode}")

            try:
                submission.follow(submission.submit(), tail, check)
            except Vanished as error:
                raise RunError(
                    f"the simulation ended without a word ({error}); the end of its log:\n{_end_of(log)}"
                ) from error

    def _size(self, num_clients: int) -> dict[str, int | float | bool]:
        size: dict[str, int | float | bool] = {
            "num-supernodes": num_clients,
            "client-resources-num-cpus": self.client_cpus,
            "client-resources-num-gpus": self.client_gpus,
        }
        return size if self.num_cpus is None else size | {"init-args-num-cpus": self.num_cpus}

    @contextmanager
    def _superlink(self, log: Path) -> Iterator[tuple[Control, subprocess.Popen[bytes]]]:
        """A SuperLink of one's own while the block lasts; nothing that it started is left after it."""
        home = Path(tempfile.mkdtemp(prefix="fedgen-"))
        address = f"127.0.0.1:{free_port()}"
        connection = f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\n'
        (home / "config.toml").write_text(f'{connection}address = "{address}"\ninsecure = true\n')
        (home / "ray").mkdir()
        host, _, port = address.partition(":")
        command = [sys.executable, "-m", "fedgen.federation.leash", str(home), "flower-superlink", "--insecure"]
        command += ["--simulation", "--isolation", "subprocess", "--host", host, "--port", port]
        environment = quiet_environment(home) | {"RAY_TMPDIR": str(home / "ray")}
        if self.ray_address is not None:
            environment["RAY_ADDRESS"] = self.ray_address
        with log.open("wb") as output:
            # A session of its own: an interrupt from the keyboard is for this process, which then lets go of the leash.
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
        try:
            _await(address, process, log)
            yield Control(home, CONNECTION), process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def _await(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until a SuperLink answers.

    Raises:
        RunError: it does not.
    """
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{address}/health", timeout=5):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.1)
    raise RunError(f"Flower's SuperLink did not start; the end of its log:\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-LOG_LINES:])
