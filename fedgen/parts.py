"""The part of a model that a client gets: which units, which tensors, how many bytes.

All of it follows from a few numbers (strategy, seed, round, client, width), so both sides find the same part.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedgen import seeds, tree
from fedgen.bases import Bases
from fedgen.devices import Rung
from fedgen.errors import ConfigError
from fedgen.experiment import Experiment
from fedgen.learner import Base, Learner
from fedgen.naming import named_axes
from fedgen.types import Axes, Choice, Encoded, Index, Kept, Part, Plan, Scores, State, Steps


@dataclass(frozen=True)
class Ground:
    """What every side of a federation knows before its first round.

    Attributes:
        experiment: what to do.
        base: the model.
        bases: the same in the types of weights that rungs ask for.
        base_axes: names of the dimensions of its weights; no dimension has one if no part is ever made.
        axes: the same of the state's tensors and of those that never travel.
        fixed: the adapter's tensors that never change.
        clients: names of all clients, sorted.
        scores: how much each unit matters; empty unless the extraction asks.
        plans: some devices tell their memory, so that the planner decides how they work.
    """

    experiment: Experiment
    base: Base
    bases: Bases
    base_axes: Axes
    axes: Axes
    fixed: State
    clients: tuple[str, ...] = ()
    scores: Scores | None = None
    plans: bool = False

    @property
    def makes_parts(self) -> bool:
        """Whether any client may get less than the whole."""
        return bool(self.experiment.extraction.axes)

    def at(self, rung: Rung) -> "Ground":
        """The same for a client that works on a rung of the planner's ladder."""
        experiment = self.experiment
        client = experiment.light_client if rung.light else experiment.client
        assert client is not None, "a rung is light only where there is a light client"
        base = self.bases.of(rung.dtype).at(rung)
        return dataclasses.replace(self, experiment=dataclasses.replace(experiment, client=client.at(rung)), base=base)

    def part(
        self,
        client: str,
        round: int,
        width: float,
        missed: int = 0,
        top_layers: float = 1.0,
        rank: int | None = None,
    ) -> Part:
        """What a client gets in a round.

        Args:
            client: its name.
            round: counted from 1.
            width: share of the units of every cut axis; an extraction that cuts nothing gives all of the model.
            missed: earlier rounds in which it was still at work.
            top_layers: share of the layers that it trains.
            rank: rows of low-rank factors that it holds, the first ones; None for all.
        """
        kept = self._kept(client, round, width, missed) if self.makes_parts else Kept()
        if rank is not None and rank < self.axes.units["rank"]:
            kept["rank"] = torch.arange(rank) if "rank" not in kept else kept["rank"][:rank]
        return Part(width if self.makes_parts else 1.0, kept, missed if self.makes_parts else 0, top_layers, rank)

    def _kept(self, client: str, round: int, width: float, missed: int) -> Kept:
        kept, kinds = Kept(), self.experiment.extraction.axes
        for axis, units in self.axes.units.items():
            num_kept = units_of(width, units)
            if axis.partition(".")[0] in kinds and num_kept < units:
                choice = Choice(axis, units, num_kept, round, client, missed=missed)
                index = self._keep(choice)
                if len(index) < units:
                    kept[axis] = index
        return kept

    def _keep(self, wanted: Choice) -> Index:
        """Units that the extraction picks; where some are protected, those and what it picks among the others.

        So an extraction knows nothing of protection, and a part has `num_kept` units, or all protected ones if these
        are more.
        """
        axis, num_kept = wanted.axis, wanted.num_kept
        always, free = self.base.protected.get(axis), torch.arange(wanted.units)
        if always is not None:
            free = free[~torch.isin(free, always)]
            num_kept -= len(always)
            if num_kept < 1:
                return always
        scores = None if self.scores is None else self.scores.get(axis)
        scores = None if scores is None else scores[free]
        choice = dataclasses.replace(
            wanted,
            units=len(free),
            num_kept=num_kept,
            place=self.clients.index(wanted.client),
            num_clients=len(self.clients),
            seed=self.experiment.seed,
            scores=scores,
        )
        index = free[self.experiment.extraction.keep(choice)]
        return index if always is None else torch.cat([always, index]).sort().values

    def sent(self, part: Part) -> Plan:
        """What goes to the client: its part of the state, or all of it for a window.

        Raises:
            ConfigError: the model's weights are held in blocks, and the part would cut through some.
        """
        cut = part.kept if self.experiment.extraction_mode == "cut" else {}
        for axis in sorted(cut.keys() & self.base_axes.blocks.keys()):
            block = self.base_axes.blocks[axis]
            if len(cut[axis]) != len((cut[axis] // block).unique()) * block:
                raise ConfigError(
                    f"extraction picks single units of {axis}, and model.dtype=gguf is cut by blocks of {block} units. "
                    f"Choose extraction=rolling extraction.block={block}, extraction_mode=window or another dtype"
                )
        plan = tree.plan_of(self.axes, cut)
        return {name: positions for name, positions in plan.items() if name not in self.fixed}

    def returned(self, part: Part, round: int) -> Plan:
        """What comes back: what the client trains of its part in this round."""
        adapter = self.experiment.adapter
        plan = tree.plan_of(self.axes, part.kept)
        lowest = math.floor(self.axes.units.get("layer", 0) * (1 - part.top_layers) + 1e-9)
        return {
            name: positions
            for name, positions in plan.items()
            # What lies in no layer is above or below all of them; only a client that trains all layers trains it.
            if adapter.is_trained(name, round) and self.axes.members.get(name, ("", 0))[1] >= lowest
        }

    @property
    def split(self) -> frozenset[str]:
        """Axes of which clients return only what they trained; without names of dimensions there are none."""
        lying = {dim.axis for dims in self.axes.dims.values() for dim in dims if dim is not None}
        return frozenset(lying & self.experiment.client.trained_units([]).keys())

    def own_units(self, part: Part, examples: Sequence[Encoded]) -> Kept:
        """Units of a part to which a client confines what it returns, having trained on these examples."""
        split = self.split
        found = self.experiment.client.trained_units(examples) if split else {}
        return {
            axis: index[torch.isin(index, part.kept[axis])] if axis in part.kept else index
            for axis, index in found.items()
            if axis in split
        }

    def confined(self, part: Part, own: Kept, round: int) -> Plan | None:
        """Where a client's own units lie in what it has trained of its part; None if it returns all of that."""
        if not own:
            return None
        outer, inner = self.returned(part, round), self.returned(narrowed(part, own), round)
        return {
            name: tuple(
                index if whole is None or index is None else torch.searchsorted(whole, index)
                for whole, index in zip(outer[name], kept, strict=True)
            )
            for name, kept in inner.items()
        }

    def is_plain(self, part: Part, round: int) -> bool:
        """Whether a client works with the whole model and trains all that travels: any learner will do."""
        adapter, travelling = self.experiment.adapter, self.axes.dims.keys() - self.fixed.keys()
        if part.kept or part.top_layers < 1 or self.experiment.extraction.steps(part.width).widths:
            return False
        return all(adapter.is_trained(name, round) for name in travelling)

    def learner(self, part: Part, round: int, client: str) -> Learner:
        """A learner over a client's part, with the tensors that never travel in it."""
        experiment, adapter, kept = self.experiment, self.experiment.adapter, part.kept
        window = experiment.extraction_mode == "window"
        plan = tree.plan_of(self.axes, {} if window else kept)
        base = self.base if window else self.base.part(kept)
        module = adapter.attach(base.replica(private=adapter.trains_base), plan.keys())
        parameters, returned = adapter.parameters(module), self.returned(part, round)
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in returned)
            if tree.extent(parameter, plan[name]) != list(parameter.shape):
                # The model's own axes are cut already; the rank is the adapter's.
                parameter.data = parameter.data.new_zeros(tree.extent(parameter, plan[name]))
        learner = base.learner(module, parameters, returned if window else None)
        learner.load(tree.cut(self.fixed, {name: plan[name] for name in self.fixed if name in plan}))
        if experiment.scale_parts and not window:
            base.rescale(learner, self.base_axes, kept)
        steps = experiment.extraction.steps(part.width)
        return self._nested(base, learner, steps, part, round, client) if steps.widths and not window else learner

    def _nested(self, base: Base, learner: Learner, steps: Steps, part: Part, round: int, client: str) -> Learner:
        """A learner that draws one of several widths for each of its steps."""
        part_axes = base.axes
        state: State = dict(self.experiment.adapter.parameters(learner.module))
        axes = self.experiment.adapter.axes(state, part_axes)
        plans = []
        for width in steps.widths:
            kept = self.part(client, round, width, part.missed).kept
            kept = {axis: index for axis, index in kept.items() if axis not in self.base.protected}
            # Units of the part, not of the whole: where each kept one stands among those that the client holds.
            local = {a: torch.searchsorted(part.kept[a], i) if a in part.kept else i for a, i in kept.items()}
            plans.append((tree.plan_of(part_axes, local), tree.plan_of(axes, local)))
        generator = seeds.derive(self.experiment.seed, "widths", round, client)
        return base.nested(learner, plans, generator, distill=steps.distill)

    def base_bytes(self, part: Part, before: Part | None) -> int:
        """Bytes of the base's slices that a device without the checkpoint needs and does not hold yet.

        Args:
            part: what it gets now.
            before: what it got when it was last asked; None if it holds nothing.
        """
        window = self.experiment.extraction_mode == "window"
        if self.experiment.adapter.trains_base or (window and before is not None):
            return 0
        now = tree.plan_of(self.base_axes, {} if window else part.kept)
        held = {} if before is None else tree.plan_of(self.base_axes, before.kept)
        total = 0
        for name, plan in now.items():
            weight = self.base.weights[name]
            new = math.prod(tree.extent(weight, plan)) - math.prod(tree.overlap(weight, plan, held.get(name)))
            # Of a matrix in few bits an entry may be less than a byte.
            total += new * weight.nbytes // weight.numel()
        return total


def ground_of(
    experiment: Experiment,
    base: Base,
    learner: Learner,
    clients: Sequence[str],
    scores: Scores | None,
    *,
    plans: bool = False,
    dtype: str | None = None,
) -> Ground:
    """What is known before the first round.

    Args:
        experiment: what to do.
        base: the model.
        learner: over the whole of it.
        clients: names of all clients.
        scores: how much each unit matters, if the extraction asks.
        plans: the planner may ask for parts besides.
        dtype: type in which the base holds its weights; None for the experiment's own.

    Raises:
        ConfigError: an axis is to be cut that is not there.
        ModelError: parts are to be made of a model that is not known well enough.
    """
    fixed = experiment.fixed_tensors(learner)
    state = {**fixed, **experiment.initial_state(learner)}
    base_axes, axes = named_axes(experiment, base, state, plans=plans)
    bases = Bases(experiment, base, dtype)
    return Ground(experiment, base, bases, base_axes, axes, fixed, tuple(sorted(clients)), scores, plans)


def narrowed(part: Part, own: Kept) -> Part:
    """A part less the units of some axes that a client did not train."""
    return dataclasses.replace(part, kept={**part.kept, **own})


def units_of(width: float, units: int) -> int:
    """How many units of an axis a share of it is: rounded up, as HeteroFL and FedRolex do, and at least one.

    >>> units_of(0.5, 3), units_of(0.1, 30), units_of(0.01, 8)
    (2, 3, 1)
    """
    # What a product of floats has too much must not count as a unit.
    return max(1, math.ceil(width * units - 1e-9))
