"""What comes back in a round: each reply is checked as it comes and folded in turn; nothing in it can stop the run."""

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgen import records, tree
from fedgen.coverage import Coverage
from fedgen.diversity import Diversity
from fedgen.errors import ClientError
from fedgen.late import Late
from fedgen.messages import Payload, Reply
from fedgen.parts import Ground, narrowed
from fedgen.turns import Stored, Turns
from fedgen.types import Metrics, Observer, Part, Plan, Record, State, Update

MAX_EXAMPLES = 2**31
"""No device holds more; sums of weights stay far from overflow."""

LARGEST_METRIC = 2.0**63
"""No number about a client's work is larger; sums of them stay finite."""


@dataclass(frozen=True)
class Sent:
    """What was noted when a request went out.

    Attributes:
        when: seconds, from any start.
        bytes_down: of all that travelled.
        base_bytes: of these, slices of the base model.
        seconds_encode: spent on packing.
        told: what the journal is told of how the client works.
        delay: rounds until the reply comes in; 0: in the round in which it was asked for.
    """

    when: float
    bytes_down: int
    base_bytes: int
    seconds_encode: float
    delay: int = 0
    told: Record = field(default_factory=dict)


class Replies:
    """Takes the replies of one round, and those to earlier rounds that come in in it.

    Attributes:
        sent: requests that wait for their reply; the sender fills it.
        lines: one for every reply that has come in and was waited for.
        warnings: what else there is to tell.
        total: of the aggregation; complete after `close`.
        diversity: of the changes; None where all weights are trained, for it holds as many again.
    """

    def __init__(
        self,
        ground: Ground,
        state: State,
        round: int,
        parts: Mapping[str, Part],
        coverage: Coverage,
        folder: Path,
        late: Late,
    ) -> None:
        self.sent: dict[str, Sent] = {}
        self.lines: list[Record] = []
        self.warnings: list[Record] = []
        self.total: Any = ground.experiment.aggregation.zero(state)
        self.diversity = None if ground.experiment.adapter.trains_base else Diversity(state)
        self._ground, self._state, self._round, self._parts = ground, state, round, dict(parts)
        self._coverage, self._late = coverage, late
        self._turns = Turns(sorted({*parts, *(line["client"] for line, _ in late.due)}), folder)
        self._by_client: dict[str, Record] = {}
        self._trained: dict[str, Part] = {}

    def take_due(self, observe: Observer) -> None:
        """Takes the replies to earlier rounds that come in now."""
        for line, payload in self._late.due:
            part = self._parts[line["client"]] = self._coverage.come_in(line)
            own = {axis: torch.tensor(units, dtype=torch.long) for axis, units in line.pop("kept", {}).items()}
            self._trained[line["client"]] = narrowed(part, own)
            self._enter(line, payload, observe)

    def take(self, reply: Reply, observe: Observer) -> None:
        """Checks a reply, tells of it, and folds it and those that waited for it if it is its turn."""
        if reply.client not in self.sent:
            # Nobody asked this one, or it has answered already: whatever it says is left aside.
            text = "a reply came that nobody waits for, and was left aside"
            self.warnings.append(records.warning(self._round, text))
            return
        sent = self.sent.pop(reply.client)
        arrived, refused, payload, seconds_wire = time.perf_counter(), None, reply.payload, 0.0
        try:
            seconds_wire = self._check(reply)
        except ClientError as error:
            refused, payload = error.reason, None
        part = self._parts[reply.client]
        told = dataclasses.replace(reply, round=self._round, metrics=_finite(reply.metrics))
        line = records.client(told, refused, arrived - sent.when, sent.bytes_down, sent.seconds_encode + seconds_wire)
        line |= {"width": part.width, "base_bytes": sent.base_bytes, **sent.told}
        line |= {"top_layers": part.top_layers} if part.top_layers < 1 else {}
        line |= {"rank": part.rank} if part.rank is not None else {}
        if not sent.delay:
            self._enter(line, payload, observe)
            return
        own = {axis: index.tolist() for axis, index in reply.kept.items()} if payload is not None else {}
        self._late.keep(line | {"round": self._round + sent.delay} | ({"kept": own} if own else {}), payload)
        self._arrive(reply.client, None)  # nobody has to wait for this one in this round

    def close(self) -> None:
        """Folds what still waits for clients that never answered."""
        for client, due in self._turns.rest():
            self._fold(client, due)
        self._turns.close()
        self.lines.sort(key=lambda line: str(line["client"]))

    def _enter(self, line: Record, payload: Payload | Stored | None, observe: Observer) -> None:
        """A reply has come in: it is told of, and folded when its turn is."""
        self.lines.append(line)
        self._by_client[line["client"]] = line
        observe(line)
        self._arrive(line["client"], payload)

    def _arrive(self, client: str, payload: Payload | Stored | None) -> None:
        for turn, due in self._turns.arrive(client, payload):
            self._fold(turn, due)

    def _fold(self, client: str, payload: Payload) -> None:
        experiment, line, part = self._ground.experiment, self._by_client[client], self._trained[client]
        plan, staleness = self._ground.returned(part, line["asked"]), self._round - line["asked"]
        tensors = experiment.wire.decode(payload, self._shapes(plan))
        update = Update(
            plan, tensors, line["num_examples"], staleness=staleness, discount=experiment.discount(staleness)
        )
        try:
            experiment.aggregation.add(self.total, update)
        except ClientError as error:
            line["refused"] = error.reason
            self.warnings.append(records.warning(self._round, f"the update of {client} was refused: {error.reason}"))
            return
        self._coverage.add(part, line["num_examples"])
        if self.diversity is not None:
            self.diversity.add(update)

    def _check(self, reply: Reply) -> float:
        """Seconds of unpacking a reply.

        Raises:
            ClientError: with the reason why this reply does not count.
        """
        if reply.payload is None:
            raise ClientError(reply.error or "failed")
        if reply.round != self._round:
            raise ClientError("stale")
        began = time.perf_counter()
        part = trained(self._ground, self._parts[reply.client], reply.kept)
        plan = self._ground.returned(part, self._round)
        try:
            tensors = self._ground.experiment.wire.decode(reply.payload, self._shapes(plan))
        except ClientError:
            raise
        except Exception as error:
            raise ClientError("malformed") from error
        check_shapes(tensors, plan, self._state)
        if type(reply.num_examples) is not int or not 1 <= reply.num_examples <= MAX_EXAMPLES:
            raise ClientError("num_examples", f"{reply.num_examples!r} is not between 1 and {MAX_EXAMPLES}")
        if not math.isfinite(tree.largest(tensors)) or _finite(reply.metrics) != reply.metrics:
            raise ClientError("non_finite")
        self._trained[reply.client] = part
        return time.perf_counter() - began

    def _shapes(self, plan: Plan) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tree.extent(self._state[name], kept)) for name, kept in plan.items()}


def _finite(metrics: Metrics) -> Metrics:
    """The numbers that a line of the journal can hold and that can be summed; a device may send any."""
    return {name: value for name, value in metrics.items() if -LARGEST_METRIC < value < LARGEST_METRIC}


def trained(ground: Ground, part: Part, own: Any) -> Part:  # noqa: ANN401 - whatever a client sends
    """What a client trained of its part, by its own word.

    Args:
        ground: what is known before the first round.
        part: what it was asked to train.
        own: units to which it says that its change is confined; it may say anything.

    Raises:
        ClientError: `kept`, if they are not ascending units of its part, or of an axis that clients return whole.
    """
    if not isinstance(own, dict):
        raise ClientError("kept", "units must come by axis")
    for axis, index in own.items():
        if axis not in ground.split:
            raise ClientError("kept", "a reply is confined to units of an axis that clients return whole")
        if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.dim() != 1:
            raise ClientError("kept", f"units of {axis} must be a row of int64")
        held = part.kept.get(axis, torch.arange(ground.axes.units[axis]))
        if not bool((index.diff() > 0).all()) or not bool(torch.isin(index, held).all()):
            raise ClientError("kept", f"units of {axis} must be ascending and of the client's part")
    return narrowed(part, own)


def check_shapes(tensors: State, plan: Plan, whole: State) -> None:
    """Compares tensors with the plan that they should follow.

    Raises:
        ClientError: `names`, `shape` or `dtype`.
    """
    if tensors.keys() != plan.keys():
        raise ClientError("names", "a reply must hold the tensors of its plan")
    for name, tensor in tensors.items():
        wanted = tree.extent(whole[name], plan[name])
        if list(tensor.shape) != wanted:
            raise ClientError("shape", f"{name} is {list(tensor.shape)}, not {wanted}")
        if tensor.dtype != whole[name].dtype:
            raise ClientError("dtype", f"{name} is {tensor.dtype}, not {whole[name].dtype}")
