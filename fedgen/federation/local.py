"""All clients in this process: as many side by side as there are cores, one thread each, over one shared base.

A client is its examples and nothing more, so a hundred cost hardly more memory than four.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fedgen.device import Holding, answer, hold
from fedgen.experiment import Experiment
from fedgen.federation.course import carry_through, shards_of
from fedgen.federation.own_process import answer_apart
from fedgen.learner import Learner
from fedgen.messages import Reply, Request
from fedgen.parts import Ground
from fedgen.run import Run
from fedgen.transport import Report
from fedgen.types import Dataset, Example, Observer
from fedgen.workers import Workers


@dataclass(frozen=True)
class Local:
    """All clients in this process, side by side.

    Attributes:
        num_workers: clients that train at once, with one thread each; null takes one per core. Changes no bit of the
            result.
        own_process: every turn of a client is a process of its own, as on a device, so that its peak memory is its own;
            each of them imports and loads everything again.
    """

    num_workers: int | None = None
    own_process: bool = False

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"num_workers is {self.num_workers}; it must be at least 1, or null for one per core")

    def run(self, experiment: Experiment, run: Run, observe: Observer) -> None:
        """Carries an experiment through, from its last checkpoint if there is one.

        Raises:
            FedgenError: data, model or run folder are unusable; the message says how.
        """

        def reach(ground: Ground, workers: Workers, dataset: Dataset) -> LocalTransport:
            return LocalTransport(ground, workers, shards_of(experiment, dataset), self.own_process)

        carry_through(experiment, run, observe, reach, num_workers=self.num_workers)


@dataclass(frozen=True)
class LocalTransport:
    """Requests are answered by the learners of this process.

    Attributes:
        ground: what clients do, and with what.
        workers: who does it.
        shards: client name → its examples.
        own_process: every turn is a process of its own.
    """

    ground: Ground
    workers: Workers
    shards: Mapping[str, Sequence[Example]]
    own_process: bool = False
    _holdings: dict[str, Holding] = field(default_factory=dict)
    _outbox: list[Iterator[Request]] = field(default_factory=list)

    def nodes(self) -> list[str]:
        """All clients, sorted."""
        return sorted(self.shards)

    def reports(self) -> dict[str, Report]:
        """Nothing: what the devices are, the fleet says."""
        return {}

    def look_again(self, why: str) -> bool:
        """Never: a fleet does not change its word."""
        return False

    def send(self, requests: Iterator[Request]) -> None:
        """Keeps the requests until replies are asked for."""
        self._outbox.append(requests)

    def receive(self) -> Iterator[Reply]:
        """Lets clients work as learners become free, and yields their replies as they finish."""
        while self._outbox:
            yield from self.workers.map(self._answer, self._outbox.pop(0))

    def _answer(self, learner: Learner, request: Request) -> Reply:
        holding = self._holdings.get(request.client)
        if holding is None:
            holding = self._holdings[request.client] = hold(learner, self.shards[request.client])
        if self.own_process:
            return answer_apart(self.ground, request, holding)
        return answer(self.ground, request, learner, holding)
