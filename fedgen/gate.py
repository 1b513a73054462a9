"""The transfer gate: what a part of the model is worth before anybody trains it.

A part that begins far above the whole model's loss learns how to live without the rest, and what it learns does not
help the whole. So the loss of every distinct part is measured on public examples before it is sent; one that is worse
than the margin allows is made larger, or is not sent. Of a part without some of the tokens those examples count that
it can say; if there are none, it does not pass.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from fedgen import tree
from fedgen.errors import DataError
from fedgen.experiment import Experiment
from fedgen.learner import Base, Learner
from fedgen.parts import Ground, ground_of
from fedgen.types import Dataset, Encoded, Kept, Part, Record, Score, Scores, State
from fedgen.workers import Workers

GROWTH = 1.25
"""A part that does not pass grows by a quarter at a time."""

HARMLESS = 1.0
"""Nats that a part may begin above the whole model and still help it."""

UNSAID = "no public example can be said with the tokens that it holds"
"""Why there is no loss of a part."""

_Units = tuple[tuple[str, tuple[int, ...]], ...]
"""The kept units of a part, as a key."""


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

    def admit(
        self, wanted: Mapping[str, Part], state: State, round: int, full: Collection[str] = ()
    ) -> tuple[dict[str, Part], Record]:
        """The parts that may be sent, by client, and what there is to tell of it.

        Args:
            wanted: client → the part that it would get.
            state: what the parts are cut from.
            round: counted from 1.
            full: clients that cannot hold more than that; their parts are not made larger.
        """
        margin = self.ground.experiment.gate_margin
        if margin is None or not wanted or not _measures(self.ground.experiment):
            return dict(wanted), {}
        known: dict[_Units, list[Score | None]] = {}
        first = losses = self._losses({"": Part(), **wanted}, state, round, known)
        base_loss = losses[""]
        limit = base_loss + margin
        admitted, pending, told = dict[str, Part](), dict(wanted), list[Record]()
        while pending:
            # The whole is what others are measured against; it passes even if its own loss is not a number.
            passed = {client: part for client, part in pending.items() if not part.kept or losses[client] <= limit}
            admitted |= passed
            if not self.ground.experiment.gate_enlarges:
                break
            failed = {c: part for c, part in pending.items() if c not in passed and c not in full}
            pending = {c: self._larger(c, part, round) for c, part in failed.items()}
            losses = self._losses(pending, state, round, known)
        for width in sorted({part.width for part in wanted.values()}, reverse=True):
            told += _tell(width, wanted, admitted, first)
        return admitted, {"limit": limit, "base_loss": base_loss, "plans": told}

    def warn_of_residual(self, state: State) -> list[str]:
        """What cutting the residual stream does to this model, measured beforehand; nothing if it does no harm.

        A model that starts from nothing can be cut there, a pretrained one is destroyed.
        """
        ground = self.ground
        if "residual" not in ground.experiment.extraction.axes or not self.public:
            return []
        devices = ground.experiment.fleet.devices(ground.clients, 1, ground.experiment.seed)
        widths = {client: device.width for client, device in devices.items() if 0 < device.width < 1}
        if not widths:
            return []
        client, width = max(widths.items(), key=lambda found: found[1])
        parts = {"": Part(), client: ground.part(client, 1, width)}
        losses = self._losses(parts, state, 1, {})
        if losses[client] - losses[""] <= HARMLESS:
            return []
        return [
            f"cutting the residual stream harms this model: a part of width {width:g} begins with a loss of "
            f"{losses[client]:.2f} nats per token, the whole model with {losses['']:.2f}; cut inner axes instead "
            "(extraction.axes=[ffn,kv])"
        ]

    def _larger(self, client: str, part: Part, round: int) -> Part:
        """The next larger part: at least one unit more of some axis."""
        width = part.width
        while True:
            width = min(1.0, width * GROWTH)
            larger = self.ground.part(client, round, width, part.missed)
            if width == 1.0 or any(len(larger.kept.get(a, ())) != len(index) for a, index in part.kept.items()):
                return larger

    def _losses(
        self, parts: Mapping[str, Part], state: State, round: int, known: dict[_Units, list[Score | None]]
    ) -> dict[str, float]:
        """Client → mean loss per answer token of its part; measures those that are not known yet, and notes them.

        The whole is known, or among the parts.
        """
        keys = {client: _key(part.kept) for client, part in parts.items()}
        new = {keys[client]: (client, part) for client, part in parts.items() if keys[client] not in known}

        def job(learner: Learner, item: tuple[_Units, tuple[str, Part]]) -> tuple[_Units, list[Score | None]]:
            key, (client, part) = item
            if part.kept:
                learner = self.ground.learner(part, round, client)
            learner.load(tree.cut(state, self.ground.sent(part)))
            return key, [score for batch in self.public for score in _scores(learner, batch)]

        known.update(self.workers.map(job, new.items()))
        whole = known[_key({})]
        return {client: _loss(known[key], whole) for client, key in keys.items()}


def prepare(
    experiment: Experiment,
    base: Base,
    workers: Workers,
    dataset: Dataset,
    clients: Sequence[str],
    *,
    plans: bool = False,
) -> Gate:
    """What is known before the first round, with the gate that decides by it.

    Args:
        experiment: what to do.
        base: the model.
        workers: measure.
        dataset: has the public examples.
        clients: names of all clients.
        plans: devices may be planned for, whatever the fleet says.

    Raises:
        DataError: something has to be measured on public examples, and there are none.
    """
    public: list[list[Encoded]] = []
    needed = experiment.extraction.needs_scores or _measures(experiment)
    if needed or "residual" in experiment.extraction.axes:
        size = experiment.evaluation_batch_size
        encoded = [e for e in workers.borrow(lambda learner: learner.encode(dataset.public)) if e is not None]
        public = [encoded[start : start + size] for start in range(0, len(encoded), size)]
        if needed and not public:
            raise DataError(
                "extraction or transfer gate has to measure the model on public examples, and the data has none; "
                "give some with data.public or data.num_public (keys: fedgen options data.<option>)"
            )

    def know(learner: Learner) -> Ground:
        learner.load(experiment.initial_state(learner))
        scores = scores_of(learner, public) if experiment.extraction.needs_scores else None
        devices = experiment.fleet.devices(clients, 1, experiment.seed).values()
        told = plans or any(device.memory_bytes is not None for device in devices)
        return ground_of(experiment, base, learner, clients, scores, plans=told)

    return Gate(workers.borrow(know), workers, public)


def scores_of(learner: Learner, batches: Sequence[Sequence[Encoded]]) -> Scores:
    """How much each unit of the model that a learner holds matters to some examples: the mean over batches."""
    found = [learner.importance(batch) for batch in batches]
    return {axis: torch.stack([scores[axis] for scores in found]).mean(0) for axis in found[0]}


def _measures(experiment: Experiment) -> bool:
    """Whether there is anything to measure: a window leaves the function of the model as it is."""
    cuts = bool(experiment.extraction.axes) and experiment.extraction_mode == "cut"
    return cuts and experiment.gate_margin is not None


def _scores(learner: Learner, batch: Sequence[Encoded]) -> list[Score | None]:
    """Of each example; None for those that a part cannot say."""
    held = [learner.holds(encoded) for encoded in batch]
    said = [encoded for encoded, is_held in zip(batch, held, strict=True) if is_held]
    scores = iter(learner.score(said) if said else ())
    return [next(scores) if is_held else None for is_held in held]


def _loss(scores: Sequence[Score | None], whole: Sequence[Score | None]) -> float:
    """Mean loss per answer token of a part; infinite if it can say nothing.

    What it cannot say may be harder or easier than the rest. So it is what the part has above the whole on what it can
    say, on top of the whole's loss on everything.
    """
    pairs = [(own, other) for own, other in zip(scores, whole, strict=True) if own is not None and other is not None]
    if not pairs:
        return math.inf
    num_tokens = sum(own.num_tokens for own, _ in pairs)
    loss = sum(own.nll for own, _ in pairs) / num_tokens
    if len(pairs) == len(whole):
        return loss
    return loss - sum(other.nll for _, other in pairs) / num_tokens + _loss(whole, whole)


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
    told = [
        {
            "width": width,
            "loss": sum(losses[client] for client in clients) / len(clients),
            "clients": len(clients),
            "decision": decision,
            "to": to,
        }
        for (decision, to), clients in sorted(decisions.items(), key=str)
    ]
    return [line | ({"reason": UNSAID} if line["loss"] == math.inf else {}) for line in told]


def _key(kept: Kept) -> _Units:
    return tuple((axis, tuple(kept[axis].tolist())) for axis in sorted(kept))
