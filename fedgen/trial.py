"""The trial of a seed: it is accepted only if it hurts nobody, by public examples and by the word of clients.

Two questions are asked on public examples. Is the loss not higher? And is the right answer likelier after its own
prompt than after another's, by more than before? The second is there since a model that was taught answers with
mixed-up labels says them with less loss than one that never saw any, and has unlearnt to look at what is asked.

Clients of the first round are then asked for the loss of both states on examples of their own, without any training:
the mean must not rise, and that of the worst tenth of them by a margin at most.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedgen.asking import Asking, taking_part, wanted_parts
from fedgen.coverage import Coverage
from fedgen.gate import Gate
from fedgen.learner import Learner
from fedgen.planner import Planner
from fedgen.transport import Transport
from fedgen.tuning import mean_loss, scores_of
from fedgen.types import Encoded, Example, Observer, Record, State

ROUND = 1
"""Clients get the parts of this round, which is the first in which they are asked to train."""


@dataclass(frozen=True)
class Trial:
    """Asks whether a state is a better start than another.

    Attributes:
        gate: decides which parts may be sent.
        transport: reaches the clients.
        planner: decides how devices work that tell their memory; None if none does.
        public: examples that nobody has trained on.
        observe: is told of each thing as it happens.
    """

    gate: Gate
    transport: Transport
    planner: Planner | None
    public: Sequence[Example]
    observe: Observer

    def judge(self, before: State, after: State) -> Record:
        """What was measured of both states, and why the second is refused; it is accepted if there is no reason."""
        seeding = self.gate.ground.experiment.seeding
        assert seeding is not None, "a trial is held for a seeding"
        told: Record = {}
        reasons = list[str]()
        if self.public:
            told["public"] = {"before": self._public(before), "after": self._public(after)}
            reasons += doubts_of_public(told["public"], seeding.min_gain)
        # What public examples speak against costs clients nothing.
        if seeding.asks_clients and not reasons:
            told["clients"] = self._clients(before, after)
            reasons += doubts_of_clients(told["clients"], seeding.margin)
        if not told.get("public") and not told.get("clients", {}).get("num_clients"):
            reasons.append("there is nobody to ask: the data has no public examples, and no client has measured it")
        return {"accepted": not reasons, "reasons": reasons, **told}

    def _public(self, state: State) -> Record:
        """Loss and contrast."""
        experiment = self.gate.ground.experiment

        def encode(learner: Learner) -> list[tuple[Encoded, Encoded | None]]:
            own, other = learner.encode(self.public), learner.encode(swapped(self.public))
            return [(a, b) for a, b in zip(own, other or [None] * len(own), strict=True) if a is not None]

        pairs = self.gate.workers.borrow(encode)
        if not pairs:
            return {}
        size, told = experiment.evaluation_batch_size, Record()
        told["loss"] = mean_loss(scores_of(self.gate.workers, state, [own for own, _ in pairs], size))
        others = [other for _, other in pairs if other is not None]
        if len(others) == len(pairs):
            told["contrast"] = mean_loss(scores_of(self.gate.workers, state, others, size)) - told["loss"]
        return told

    def _clients(self, before: State, after: State) -> Record:
        """Losses of the clients that have measured both states."""
        ground, coverage = self.gate.ground, Coverage(self.gate.ground)
        devices, _ = taking_part(ground, self.planner, self.transport, ROUND)
        asked = {client: devices[client] for client in ground.experiment.cohort(sorted(devices), ROUND)}
        wanted, plans = wanted_parts(ground, self.planner, asked, ROUND, coverage.missed)
        parts, _ = self.gate.admit(wanted, before, ROUND, plans.keys())
        bytes_down, found = 0, dict[str, dict[str, float]]()
        for name, state in (("before", before), ("after", after)):
            asking = Asking(parts, asked, plans, coverage, {}, self._num_asked)
            found[name], num_bytes = self._ask(asking, state)
            bytes_down += num_bytes
            # Nobody who could not say what it was before needs to say what it is after.
            parts = {client: part for client, part in parts.items() if client in found[name]}
        return {"bytes_down": bytes_down, **compared(found["before"], found["after"])}

    @property
    def _num_asked(self) -> int:
        seeding = self.gate.ground.experiment.seeding
        return 0 if seeding is None else seeding.num_asked

    def _ask(self, asking: Asking, state: State) -> tuple[dict[str, float], int]:
        """Client → its loss, of those that gave one, and the bytes that were sent."""
        self.observe({"kind": "asking", "clients": sorted(asking.parts)})
        found = dict[str, float]()
        self.transport.send(asking.requests(self.gate.ground, state, ROUND))
        for reply in self.transport.receive():
            loss = reply.metrics.get("loss", math.nan)
            if reply.client in asking.sent and not reply.error and math.isfinite(loss):
                found[reply.client] = loss
        return found, sum(sent.bytes_down for sent in asking.sent.values())


def swapped(examples: Sequence[Example]) -> list[Example]:
    """Each answer with the prompt of the next example that has another answer; empty if all answers are the same."""
    found = []
    for place, example in enumerate(examples):
        others = (examples[(place + step) % len(examples)] for step in range(1, len(examples)))
        other = next((other for other in others if other.completion != example.completion), None)
        if other is None:
            return []
        found.append(Example(other.prompt, example.completion))
    return found


def compared(before: Mapping[str, float], after: Mapping[str, float]) -> Record:
    """Losses of clients that have measured both states: how many there are, means, and the rise in the worst tenth."""
    both = sorted(before.keys() & after.keys())
    if not both:
        return {"num_clients": 0}
    rises = sorted((after[client] - before[client] for client in both), reverse=True)
    worst = rises[: math.ceil(len(rises) / 10)]
    return {
        "num_clients": len(both),
        "before": sum(before[client] for client in both) / len(both),
        "after": sum(after[client] for client in both) / len(both),
        "worst_rise": sum(worst) / len(worst),
    }


def doubts_of_public(told: Mapping[str, Record], min_gain: float) -> list[str]:
    """What public examples have against a seed."""
    before, after = told["before"], told["after"]
    if not before:
        return ["no public example has an answer that fits into the model's length"]
    reasons = []
    if not after["loss"] <= before["loss"]:
        reasons.append(f"loss on public examples rose from {before['loss']:.3f} to {after['loss']:.3f}")
    if "contrast" in after and not after["contrast"] >= before["contrast"] + min_gain:
        reasons.append(
            "on public examples the right answer was likelier after its own prompt than after another's by "
            f"{before['contrast']:.3f} nats per token, and is now by {after['contrast']:.3f}; at least "
            f"{min_gain:.3f} more are asked for"
        )
    return reasons


def doubts_of_clients(told: Record, margin: float) -> list[str]:
    """What clients have against a seed; nothing if none has measured it."""
    if not told["num_clients"]:
        return []
    reasons = []
    if not told["after"] <= told["before"]:
        reasons.append(f"the clients' mean loss rose from {told['before']:.3f} to {told['after']:.3f}")
    if not told["worst_rise"] <= margin:
        reasons.append(
            f"in the worst tenth of the clients the loss rose by {told['worst_rise']:.3f}, and {margin:.3f} is allowed"
        )
    return reasons
