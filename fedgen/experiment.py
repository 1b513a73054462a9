"""The composition root: one field per stage, in the order in which data flows.

An experiment is a frozen value; building one downloads, opens and allocates nothing. Two experiments with equal fields
are equal, so it survives a trip through text.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from fedgen import seeds
from fedgen.learner import Base, Learner
from fedgen.seeding import Seeding
from fedgen.stages import (
    Adapter,
    Aggregation,
    Client,
    Data,
    Evaluation,
    Export,
    Extraction,
    Federation,
    Fleet,
    Generator,
    Model,
    Partition,
    Selection,
    Wire,
)
from fedgen.types import State

DISCOUNT_UNITS = 2**20
"""Discounts are whole multiples of one over this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that a run depends on.

    Attributes:
        name: goes into the run folder's name.
        seed: fixes every draw; same seed, same bytes.
        num_rounds: rounds of training.
        cohort_size: clients per round, drawn afresh each round; null takes all.
        over_selection: factor on it: so many more are asked, for drivers whose rounds end when enough have answered
            (Bonawitz et al., "Towards Federated Learning at Scale: System Design", MLSys 2019, section 2.3, take 1.3).
        evaluate_every: rounds between evaluations of the first split; the first and last evaluation take all splits.
        num_evaluated: examples per split before and after a run; null takes all.
        num_evaluated_per_round: examples of the first split that are followed round by round.
        evaluation_batch_size: examples that go through the model together.
        extraction_mode: `cut`, the device holds its part of the model and nothing else; or `window`, it holds the whole
            model frozen and trains its part of it.
        scale_parts: what a cut part's closing projections read is multiplied by units / kept units, as HeteroFL does.
        gate_margin: a part whose loss on public examples is so many nats above the whole model's is not sent as it is;
            null sends every part.
        gate_enlarges: such a part is made larger until it passes, for the device to swap; if false, it is not sent.
        staleness_power: an update that comes s rounds late weighs (1 + s)**-staleness_power as much as one in time
            (FedAsync: Xie et al., 2019, section 5.2; FedBuff: Nguyen et al., 2022, takes 0.5); 0 makes all alike.
        fleet: what devices there are.
        data: what the examples are, who owns them.
        partition: which client holds which examples.
        model: loads a model.
        adapter: what is trainable.
        extraction: which part of the model a client gets.
        client: what a client does with it.
        light_client: what it does where the planner finds no memory for that; null, and such devices decline.
        selection: which of its examples a client trains on.
        wire: state ↔ bytes.
        aggregation: many updates → next state.
        generator: writes synthetic examples with which the federation is seeded; null for a federation without a seed.
        seeding: how that is done; matters only with a generator.
        evaluation: numbers about a model.
        export: gives the model away.
        federation: the driver.
    """

    name: str = "run"
    seed: int = 0
    num_rounds: int = 5
    cohort_size: int | None = None
    over_selection: float = 1.0
    evaluate_every: int = 1
    num_evaluated: int | None = None
    num_evaluated_per_round: int = 48
    evaluation_batch_size: int = 16
    extraction_mode: Literal["cut", "window"] = "cut"
    scale_parts: bool = False
    gate_margin: float | None = None
    gate_enlarges: bool = True
    staleness_power: float = 0.5
    fleet: Fleet
    data: Data
    partition: Partition
    model: Model
    adapter: Adapter
    extraction: Extraction
    client: Client
    light_client: Client | None = None
    selection: Selection
    wire: Wire
    aggregation: Aggregation
    generator: Generator | None = None
    seeding: Seeding | None = None
    evaluation: Evaluation
    export: Export
    federation: Federation

    def __post_init__(self) -> None:
        """Refuses values outside their range, and stages that do not go together."""
        for name in (
            "num_rounds",
            "cohort_size",
            "evaluate_every",
            "num_evaluated",
            "num_evaluated_per_round",
            "evaluation_batch_size",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if not 1 <= self.over_selection < math.inf:
            raise ValueError(f"over_selection is {self.over_selection}; it multiplies cohort_size and is at least 1")
        if self.over_selection > 1 and self.cohort_size is None:
            raise ValueError(
                f"over_selection is {self.over_selection} and all clients are asked as it is; give cohort_size a number"
            )
        if self.gate_margin is not None and self.gate_margin < 0:
            raise ValueError(f"gate_margin is {self.gate_margin}; it is nats above the whole model's loss, at least 0")
        if self.staleness_power < 0:
            raise ValueError(
                f"staleness_power is {self.staleness_power}; it must be at least 0 (late updates count in full)"
            )
        if self.generator is not None and self.seeding is None:
            raise ValueError(
                "seeding is null, and there is a generator; say how it is used, or leave the generator out"
            )
        if self.extraction_mode == "window" and self.adapter.trains_base and "residual" in self.extraction.axes:
            raise ValueError(
                "extraction.axes has residual, on which embeddings and norms lie; with extraction_mode=window and "
                f"adapter={_option(self.adapter)} the window may hold ffn, kv and vocab. Choose these, or "
                "extraction_mode=cut"
            )
        if self.client.compares_losses and self.extraction_mode == "cut" and self.extraction.steps(1.0).widths:
            raise ValueError(
                f"client={_option(self.client)} compares losses of one batch, and "
                f"extraction={_option(self.extraction)} draws another width for each loss; choose client=first_order, "
                "another extraction, or extraction_mode=window"
            )
        if self.adapter.trains_base and self.export.needs_adapter:
            raise ValueError(
                f"adapter={_option(self.adapter)} trains the model's own weights, so there is no adapter to export; "
                "choose export=merged"
            )

    def base(self) -> Base:
        """Loads the model."""
        return self.model.load(self.seed)

    def learners(self, base: Base, num_learners: int) -> list[Learner]:
        """Learners over one base. They share its weights unless the adapter trains those."""
        learners = []
        for _ in range(num_learners):
            module = self.adapter.attach(base.replica(private=self.adapter.trains_base))
            learner = base.learner(module, self.adapter.parameters(module))
            learner.load(self.fixed_tensors(learner))
            learners.append(learner)
        return learners

    def initial_state(self, learner: Learner) -> State:
        """The state with which the federation starts: all of the adapter's tensors that travel."""
        return {name: t for name, t in self._tensors(learner).items() if not self.adapter.is_fixed(name)}

    def fixed_tensors(self, learner: Learner) -> State:
        """The adapter's tensors that never change, which every side makes from the seed."""
        if not any(self.adapter.is_fixed(name) for name in self.adapter.parameters(learner.module)):
            return {}
        return {name: t for name, t in self._tensors(learner).items() if self.adapter.is_fixed(name)}

    def _tensors(self, learner: Learner) -> State:
        return self.adapter.initial(learner.module, seeds.derive(self.seed, "initial"))

    def cohort(self, clients: Sequence[str], round: int) -> list[str]:
        """Clients that are asked in a round, sorted; drawn without replacement."""
        # What a product of floats has too much must not count as a client.
        wanted = None if self.cohort_size is None else math.ceil(self.cohort_size * self.over_selection - 1e-9)
        if wanted is None or wanted >= len(clients):
            return sorted(clients)
        import torch

        order = torch.randperm(len(clients), generator=seeds.derive(self.seed, "cohort", round)).tolist()
        return sorted(sorted(clients)[position] for position in order[:wanted])

    def discount(self, staleness: int) -> float:
        """What the weight of an update is multiplied by that comes so many rounds late.

        In whole units of 2**-20, and at least one of them, so that sums of such weights are exact in any order.
        """
        return max(1, round(DISCOUNT_UNITS * math.pow(1 + staleness, -self.staleness_power))) / DISCOUNT_UNITS

    def settings(self) -> dict[str, str]:
        """Every field by dotted key, stages by the name of their option."""
        found: dict[str, str] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if dataclasses.is_dataclass(value):
                found[field.name] = _option(value)
                inner: Mapping[str, object] = vars(value)
                found.update({f"{field.name}.{key}": str(item) for key, item in inner.items()})
            else:
                found[field.name] = str(value)
        return found


def _option(value: object) -> str:
    """Name of the option that a value is of: the last part of its module."""
    return type(value).__module__.rpartition(".")[2]
