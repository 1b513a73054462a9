"""The transfer gate: what a part of the model is worth before anybody trains it.

A part that begins far above the whole model's loss learns how to live without the rest, and what it learns does not
help the whole. So the loss of every distinct part is measured on public examples before it is sent; one that is worse
than the margin allows is made larger, or is not sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedgen import tree
from fedgen.errors import DataError
from fedgen.experiment import Experiment
from fedgen.learner import Base, Learner
from fedgen.parts import Ground, ground_of, scores_of
from fedgen.types import Dataset, Encoded, Kept, Part, Record, State
from fedgen.workers import Workers

GROWTH = 1.25
"""A part that does not pass grows by a quarter at a time."""


@dataclass(frozen=True)
class Gate:
    """Decides which parts are sent.

    Attributes:
        ground: what is known before the first round.
        workers: measure.
        public: batches of examples that anybody may see.
    """

    ground: Ground
    workers: Workers
    public: Sequence[Sequence[Encoded]]

    def admit(self, wanted: Mapping[str, Part], state: State, round: int) -> tuple[dict[str, Part], Record]:
        """The parts that may be sent, by client, and what there is to tell of it.

        Args:
            wanted: client → the part that it would get.
            state: what the parts are cut from.
            round: counted from 1.
        """
        margin = self.ground.experiment.gate_margin
        if margin is None or not self.ground.makes_parts or self.ground.experiment.extraction_mode == "window":
            # A window leaves the function of the model as it is.
            return dict(wanted), {}
        base_loss = self._losses({"": Part()}, state, round)[""]
        limit = base_loss + margin
        admitted, pending, told = dict[str, Part](), dict(wanted), list[Record]()
        first: dict[str, float] = {}
        while pending:
            losses = self._losses(pending, state, round)
            for client, loss in losses.items():
                first.setdefault(client, loss)
            passed = {client: pending[client] for client, loss in losses.items() if loss <= limit}
            admitted |= passed
            pending = {client: part for client, part in pending.items() if client not in passed}
            if not self.ground.experiment.gate_enlarges:
                break
            pending = {client: self._larger(client, part, round) for client, part in pending.items()}
        for width in sorted({part.width for part in wanted.values()}, reverse=True):
            told += _tell(width, wanted, admitted, first)
        return admitted, {"limit": limit, "base_loss": base_loss, "plans": told}

    def _larger(self, client: str, part: Part, round: int) -> Part:
        """The next larger part: at least one unit more of some axis."""
        width = part.width
        while True:
            width = min(1.0, width * GROWTH)
            larger = self.ground.part(client, round, width)
            if width == 1.0 or any(len(larger.kept.get(a, ())) != len(index) for a, index in part.kept.items()):
                return larger

    def _losses(self, parts: Mapping[str, Part], state: State, round: int) -> dict[str, float]:
        """Client → mean loss per answer token of its part, of each distinct part once."""
        keys = {client: _key(part.kept) for client, part in parts.items()}
        distinct = {keys[client]: (client, part) for client, part in parts.items()}

        def job(learner: Learner, item: tuple[Any, tuple[str, Part]]) -> tuple[Any, float]:
            key, (client, part) = item
            if part.kept:
                learner = self.ground.learner(part, round, client)
            learner.load(tree.cut(state, self.ground.sent(part)))
            scores = [score for batch in self.public for score in learner.score(batch)]
            return key, sum(score.nll for score in scores) / sum(score.num_tokens for score in scores)

        found = dict(self.workers.map(job, distinct.items()))
        return {client: found[key] for client, key in keys.items()}


def prepare(experiment: Experiment, base: Base, workers: Workers, dataset: Dataset, clients: Sequence[str]) -> Gate:
    """What is known before the first round, with the gate that decides by it.

    Raises:
        DataError: something has to be measured on public examples, and there are none.
    """
    public: list[list[Encoded]] = []
    if experiment.extraction.needs_scores or experiment.gate_margin is not None:
        size = experiment.evaluation_batch_size
        encoded = [e for e in workers.borrow(lambda learner: learner.encode(dataset.public)) if e is not None]
        public = [encoded[start : start + size] for start in range(0, len(encoded), size)]
        if not public:
            raise DataError(
                "extraction or transfer gate has to measure the model on public examples, and the data has none; "
                "give some with data.public or data.num_public (keys: fedgen options data.<option>)"
            )

    def know(learner: Learner) -> Ground:
        learner.load(experiment.initial_state(learner))
        scores = scores_of(learner, public) if experiment.extraction.needs_scores else None
        return ground_of(experiment, base, learner, clients, scores)

    return Gate(workers.borrow(know), workers, public)


def _tell(
    width: float, wanted: Mapping[str, Part], admitted: Mapping[str, Part], losses: Mapping[str, float]
) -> list[Record]:
    """One line for every decision about the parts of a width."""
    decisions: dict[tuple[str, float | None], list[str]] = {}
    for client, part in wanted.items():
        if part.width == width:
            got = admitted.get(client)
            decision = "refused" if got is None else "kept" if got.width == width else "enlarged"
            decisions.setdefault((decision, got.width if got and decision == "enlarged" else None), []).append(client)
    return [
        {
            "width": width,
            "loss": sum(losses[client] for client in clients) / len(clients),
            "clients": len(clients),
            "decision": decision,
            "to": to,
        }
        for (decision, to), clients in sorted(decisions.items(), key=str)
    ]


def _key(kept: Kept) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((axis, tuple(kept[axis].tolist())) for axis in sorted(kept))
