"""What a device keeps between rounds, and how it answers: the same turn as in one process, to the bit."""

import dataclasses
import functools
import logging
import time
from collections.abc import Mapping, Sequence

from fedgen import seeds
from fedgen.bases import holds_all, opened
from fedgen.device import Holding, answer, hold
from fedgen.devices import Rung
from fedgen.errors import ClientError, ConfigError, DataError, ModelError
from fedgen.experiment import Experiment
from fedgen.federation import reading, run_config
from fedgen.federation.condition import condition, forget_peak
from fedgen.federation.letter import Letter, failure
from fedgen.federation.packing import Report, open_request, pack_reply, pack_report
from fedgen.lean import free_early, give_back
from fedgen.learner import Base, Learner
from fedgen.messages import Reply, Request
from fedgen.parts import Ground, ground_of
from fedgen.types import Example, Part

_log = logging.getLogger("fedgen")


class Desk:
    """A client's place of work. Nothing is loaded before somebody asks.

    Args:
        experiment: what to do.
        client: who works here; empty if the clients of a simulation take turns.
        num_threads: of the processor; another number may change the last bits of a result.
    """

    def __init__(self, experiment: Experiment, client: str = "", num_threads: int = 1) -> None:
        self._experiment, self._client, self._num_threads = experiment, client, num_threads
        self._loaded: tuple[tuple[str | None, bool], Base, Learner] | None = None
        self._grounds: dict[bool, Ground] = {}
        self._shards: Mapping[str, Sequence[Example]] | None = None
        self._holdings: dict[str, Holding] = {}

    def hello(self, partition: int = 0) -> Report:
        """What the device tells of itself, with the model that it has.

        Args:
            partition: whose turn it is in a simulation: a position among the names of the clients.

        Raises:
            FedgenError: data or model are unusable.
        """
        client = self._client
        if not client:
            names = sorted(self._split())
            if not 0 <= partition < len(names):
                raise DataError(f"there are {len(names)} clients; a node is to be number {partition}")
            client = names[partition]
        if self._loaded is None:
            # Who has not been asked yet holds nothing of the model in memory.
            self._load(Rung(), whole=False)
        return self.report(client)

    def report(self, client: str) -> Report:
        """How the device is now, and the model that it has loaded."""
        base = {} if self._loaded is None else {"base": self._loaded[1].fingerprint}
        return {**condition(client), **base}

    def answer(self, request: Request, clients: Sequence[str]) -> Reply:
        """Does what a request asks.

        Args:
            request: what the server asks.
            clients: names of all clients; those of others may be empty.

        Raises:
            ClientError: the request is for somebody else.
            FedgenError: data or model are unusable.
        """
        if self._client and request.client != self._client:
            raise ClientError("other_client", "the request is for another client than the one that works here")
        forget_peak()
        base, learner = self._load(request.rung, whole=holds_all(self._experiment, request.part))
        holding = self._holding(request.client, learner)
        if (plans := self._plans(request, clients)) not in self._grounds:
            dtype = request.rung.dtype
            self._grounds[plans] = ground_of(self._experiment, base, learner, (), None, plans=plans, dtype=dtype)
        ground = dataclasses.replace(self._grounds[plans], clients=tuple(clients))
        return answer(ground, request, learner, holding)

    def _plans(self, request: Request, clients: Sequence[str]) -> bool:
        """Whether the server names dimensions for its planner's sake alone, so that they need names here too."""
        if self._experiment.extraction.axes:
            return False
        if request.rung != Rung() or request.part.kept or request.part != Part():
            return True
        devices = self._experiment.fleet.devices(clients, request.round, self._experiment.seed)
        return any(device.memory_bytes is not None for device in devices.values())

    def _load(self, rung: Rung, *, whole: bool) -> tuple[Base, Learner]:
        """The model in the type that a rung wants. There is never room for two: the one before goes first."""
        import torch

        torch.set_num_threads(self._num_threads)
        free_early(tight=rung.tight)
        if self._loaded is None or self._loaded[0] != (rung.dtype, whole):
            self._loaded = None
            self._grounds.clear()
            base, learner = opened(self._experiment, rung.dtype, whole=whole)
            give_back()
            self._loaded = ((rung.dtype, whole), base, learner)
        return self._loaded[1:]

    def _holding(self, client: str, learner: Learner) -> Holding:
        if client not in self._holdings:
            shards = self._split()
            if client not in shards:
                raise DataError(
                    f"the data hold nothing of {client}; they are of {', '.join(sorted(shards)) or 'nobody'}"
                )
            self._holdings[client] = hold(learner, shards[client])
            if self._client:
                # From now on the client's own examples, as it works with them, are all that is needed.
                self._shards = None
        return self._holdings[client]

    def _split(self) -> Mapping[str, Sequence[Example]]:
        if self._shards is None:
            experiment = self._experiment
            examples = experiment.data.load(experiment.seed).train
            split = experiment.partition.split(examples, seeds.derive(experiment.seed, "partition"))
            self._shards = {client: [examples[position] for position in found] for client, found in split.items()}
        return self._shards


@dataclasses.dataclass(frozen=True)
class Place:
    """Where letters are answered.

    Attributes:
        experiment: the run config's entry of that name.
        client: who works here; empty if the clients of a simulation take turns.
        data: the device's own values of keys of its data stage.
        num_threads: of the processor.
        partition: whose turn it is in a simulation.
    """

    experiment: str
    client: str = ""
    data: str = ""
    num_threads: int = 1
    partition: int = 0


def deal(letter: Letter, place: Place) -> Letter:
    """The answer to a letter. Whatever happens there is one, and of a fault it has one word."""
    began = time.perf_counter()
    try:
        desk = _desk(dataclasses.replace(place, partition=0))
        if _is_hello(letter):
            report = desk.hello(place.partition)
            return pack_report({**report, "seconds_to_answer": time.perf_counter() - began})
        request, clients = open_request(letter)
        reply = desk.answer(request, clients)
        report = desk.report(request.client)
        return pack_reply(reply, {**report, "seconds_to_answer": time.perf_counter() - began})
    except Exception as error:
        # What went wrong is for the device's own log.
        reason = _reason(error)
        _log.exception("a message was answered with %s", reason)
        return failure(letter.header, reason)


@functools.lru_cache(maxsize=1)
def _desk(place: Place) -> Desk:
    """The desk of the last run; that of the run before goes."""
    experiment = run_config.experiment_of({run_config.EXPERIMENT: place.experiment}, place.data)
    return Desk(experiment, place.client, place.num_threads)


def _is_hello(letter: Letter) -> bool:
    try:
        return reading.opened(letter).get("kind") == "hello"
    except (ValueError, RecursionError):
        return False


def _reason(error: Exception) -> str:
    if isinstance(error, ClientError):
        return error.reason
    words = {ConfigError: "config", DataError: "no_data", ModelError: "no_model"}
    return next((word for kind, word in words.items() if isinstance(error, kind)), "failed")
