"""The planner: on which rung of a ladder a device works so that it fits, and what that takes.

Rungs are tried from the one that changes nothing to the one that costs most quality; the first that fits is taken. How
much a rung takes is not fitted to measurements: a step is carried out without numbers (``footprint``), and to it comes
what was measured once, a process that has imported all and done nothing.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from fedgen import tree
from fedgen.bases import holds_all
from fedgen.devices import Device, Rung
from fedgen.footprint import Footprint, footprint, hole_bytes
from fedgen.lean import LARGE_BYTES, TIGHT_BYTES
from fedgen.learner import Learner
from fedgen.parts import Ground
from fedgen.stages import Client
from fedgen.types import Encoded, Example, Part, State

PROCESS_BYTES = 290_000_000
"""Resident memory of a device's process that has imported what it uses and holds no model yet."""

AT_WORK_BYTES = 35_000_000
"""What comes as soon as it works: code of libraries that is read when it first runs, their buffers."""

MODULE_BYTES = 5_500
"""Python's objects for each module of the model; adapters have ten modules for each matrix."""

TOKEN_BYTES = 365
"""What a tokenizer takes for each token that it knows."""

MARGIN = 0.08
LOOSE_MARGIN = 0.15
"""Share of a device's memory that no plan counts on; more where the allocator leaves holes, which nobody foretells."""

HOT_C = 80.0
"""A Raspberry Pi slows down from here, and from 85 °C to a crawl."""

TOO_HOT_C = 85.0
SHORTEST = 32
"""Tokens; shorter examples are not worth cutting off."""

LOW_BATTERY = 0.3
EMPTY_BATTERY = 0.1


@dataclass(frozen=True)
class Step:
    """A rung with the part that goes with it.

    Attributes:
        rung: how the device works.
        width: share of the units of every cut axis that it holds.
        top_layers: share of the layers that it trains, counted from the last.
        rank: rows of low-rank factors that it holds; None for all.
        saves: what it does to take less than the step before, and what that costs.
    """

    rung: Rung
    width: float = 1.0
    top_layers: float = 1.0
    rank: int | None = None
    saves: str = ""


@dataclass(frozen=True)
class Forecast:
    """What a step of the ladder takes on a device, per round.

    Attributes:
        step: the step.
        peak_bytes: largest resident memory of the device's process.
        weight_bytes: of that, frozen weights.
        step_bytes: of that, what a training step makes on the way.
        seconds: of training; None if the device was never measured.
        down_bytes: of the request's tensors.
        up_bytes: of the reply's.
    """

    step: Step
    peak_bytes: int
    weight_bytes: int
    step_bytes: int
    seconds: float | None
    down_bytes: int
    up_bytes: int

    @property
    def needed_bytes(self) -> int:
        """What a device has to have: the peak, and a margin for what nobody foretells."""
        return math.ceil(self.peak_bytes / (1 - (MARGIN if self.step.rung.tight else LOOSE_MARGIN)))


@dataclass(frozen=True)
class Planner:
    """Chooses for devices that tell their memory.

    Attributes:
        ground: what is known before the first round.
        state: tensors of the size of those that travel.
        length: longest example that is expected, in tokens; devices cut off the rest.
    """

    ground: Ground
    state: State
    length: int
    _known: dict[Step, tuple[Footprint, int, int]] = field(default_factory=dict)

    def choose(self, device: Device) -> Forecast | None:
        """The first step of the ladder that fits on the device as it is now; None if it has to decline."""
        assert device.memory_bytes is not None, "nothing is planned for a device that does not tell its memory"
        if why_not(device):
            return None
        for step in self.ladder():
            # Half the layers to train is about half the arithmetic of the backward pass.
            if not needs_rest(device) or step.top_layers < 1 or step.rung.light:
                found = self.forecast(step, device)
                if found.needed_bytes <= device.memory_bytes:
                    return found
        return None

    def declined(self, devices: Mapping[str, Device]) -> dict[str, str]:
        """Client → why it does nothing, of those that tell their memory: `too_hot`, `battery` or `memory`."""
        told = {client: device for client, device in devices.items() if device.memory_bytes is not None}
        return {c: why_not(device) or "memory" for c, device in told.items() if self.choose(device) is None}

    def why_none(self, devices: Iterable[Device], reasons: Iterable[str]) -> str:
        """What to say when nobody takes part."""
        largest = max(device.memory_bytes or 0 for device in devices)
        least = min((self.forecast(step, Device()) for step in self.ladder()), key=lambda found: found.needed_bytes)
        needed = math.ceil(least.needed_bytes / 1e6)
        return (
            f"every device declines ({', '.join(sorted(set(reasons)))}): the largest may use {largest / 1e6:.0f} MB, "
            f"and the smallest way to train this model ({least.step.rung.name}) needs {needed} MB. Take a smaller "
            "model, or devices with more memory; fedgen plan shows every way"
        )

    def forecast(self, step: Step, device: Device) -> Forecast:
        """What a step takes on a device."""
        found, down_bytes, up_bytes = self._measure(step)
        client = self.ground.at(step.rung).experiment.client
        process = PROCESS_BYTES + AT_WORK_BYTES + MODULE_BYTES * found.num_modules + TOKEN_BYTES * found.num_tokens
        # What was received stays until the turn is over. When the reply is packed, the change is there twice.
        at_work = max(client.held_bytes(found.trained_bytes, found.step_bytes), 2 * up_bytes)
        tensors = found.weight_bytes + found.trained_bytes + down_bytes + at_work
        peak = process + tensors + hole_bytes(found, client, tight=step.rung.tight)
        seconds = None
        if device.step_seconds is not None:
            first, _, _ = self._measure(next(self.ladder()))
            pieces = client.num_passes * found.step_flops / first.step_flops
            seconds = device.step_seconds * pieces
        return Forecast(step, peak, found.weight_bytes, found.step_bytes, seconds, down_bytes, up_bytes)

    def reference_seconds(self) -> float:
        """Seconds that this machine takes for one piece of a step as configured; the median of three."""
        learner, batch, client = self._piece(next(self.ladder()))
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            with torch.set_grad_enabled(client.needs_backward):
                loss = learner.loss(batch)
                if client.needs_backward:
                    torch.autograd.grad(loss, list(learner.parameters().values()), allow_unused=True)
            seconds.append(time.perf_counter() - began)
        return sorted(seconds)[1]

    def ladder(self) -> Iterator[Step]:
        """The steps, from the experiment as it is to the one that gives up most. Each goes on from the one before."""
        experiment, units = self.ground.experiment, self.ground.axes.units
        rung = Rung("as configured", max_length=self.length)
        yield Step(rung, saves="nothing is changed")
        rung = replace(rung, name="checkpointing", checkpointing=True)
        yield Step(rung, saves="layers are computed twice, and not kept; about a third slower")
        rung = replace(rung, name="one at a time", micro_batch=1)
        yield Step(rung, saves="one example goes through the model at once; slower, the same gradient")
        rung = replace(rung, name="small chunks", chunk_tokens=32)
        yield Step(rung, saves="fewer logits at once")
        lightest = self.ground.bases.lightest
        # What is trained is held in fp32; and not all families can be loaded in few bits.
        if not experiment.adapter.trains_base and self.ground.bases.has(lightest):
            rung = replace(rung, name=f"{lightest} weights", dtype=lightest)
            yield Step(rung, saves="frozen weights are held in fewer bits; slower")
        rung = replace(rung, name="tight", tight=True)
        yield Step(rung, saves="freed memory goes back at once; up to twice as slow")
        held = Step(rung)
        if self.length >= 2 * SHORTEST:
            rung = replace(rung, name="half length", max_length=self.length // 2)
            yield Step(rung, saves="examples are cut off at half the length")
        step = Step(rung)
        if "layer" in units:
            step = replace(step, rung=replace(step.rung, name="top half"), top_layers=0.5)
            yield replace(step, saves="the lower half of the layers is not trained and keeps nothing")
        if units.get("rank", 1) > 1:
            step = replace(step, rung=replace(step.rung, name="half rank"), rank=units["rank"] // 2)
            yield replace(step, saves="half of the factors' rows")
        if experiment.extraction.axes and experiment.extraction_mode == "cut":
            for width in (0.75, 0.5, 0.25):
                narrow = replace(step, rung=replace(step.rung, name=f"width {width:g}"), width=width)
                yield replace(narrow, saves="holds a part of the model, which begins worse than the whole")
        # A light client compares losses, which drawn widths make those of different models.
        draws = experiment.extraction_mode == "cut" and bool(experiment.extraction.steps(1.0).widths)
        if experiment.light_client is not None and not draws:
            rung = replace(held.rung, name="zeroth order", checkpointing=False, light=True)
            yield replace(held, rung=rung, saves="no backward pass at all; learns far less per step")

    def part(self, client: str, round: int, step: Step, missed: int = 0) -> Part:
        """What a client on a step of the ladder gets in a round; `missed` are rounds in which it was still at work."""
        return self.ground.part(client, round, step.width, missed, step.top_layers, step.rank)

    def _beside_bytes(self, step: Step) -> int:
        """Weights that a device holds and does not work with.

        It trains a copy, or has another learner for its part; or its part was made of a whole that no file has.
        """
        own, part = self.ground.at(step.rung), self.part(self.ground.clients[0], 1, step)
        loaded = self.ground.bases.of(step.rung.dtype)
        if not holds_all(own.experiment, part):
            outline = own.experiment.model.outline(own.experiment.seed, step.rung.dtype)
            return sum(weight.nbytes for weight in outline.weights.values() if not weight.is_meta)
        found = tree.num_bytes(loaded.weights) if own.experiment.adapter.trains_base else 0
        is_idle = own.base is not loaded or not own.is_plain(part, 1)
        return found + (tree.num_bytes(self.state) if is_idle else 0)

    def _piece(self, step: Step) -> tuple[Learner, list[Encoded], Client]:
        """What goes through the model at once on a step of the ladder, and who lets it."""
        ground, client = self.ground.at(step.rung), self.ground.clients[0]
        part = self.part(client, 1, step)
        learner = ground.learner(part, 1, client)
        length = min(step.rung.max_length or self.length, self.length)
        # Examples that share no beginning are the largest. A part can only say tokens that it holds.
        starts = range(ground.experiment.client.num_at_once)
        batch = [Encoded(tuple(range(k, k + length)), 1) for k in starts]
        if "vocab" in part.kept:
            held = part.kept["vocab"].tolist()
            batch = [Encoded(tuple(held[k % len(held)] for k in one.ids), 1) for one in batch]
        return learner, batch, ground.experiment.client

    def _measure(self, step: Step) -> tuple[Footprint, int, int]:
        """Footprint of a step's piece, bytes that go down, bytes that come up."""
        # What a step is called, and when freed memory goes back, changes no tensor.
        step = replace(step, rung=replace(step.rung, name="", tight=False), saves="")
        if step not in self._known:
            learner, batch, client = self._piece(step)
            part = self.part(self.ground.clients[0], 1, step)
            down, up = self.ground.sent(part), self.ground.returned(part, 1)
            sizes = [
                sum(4 * math.prod(tree.extent(self.state[name], plan[name])) for name in plan) for plan in (down, up)
            ]
            ways = {"backward": client.needs_backward, "drops": client.drops_gradients}
            found = footprint(learner, batch, **ways, limits=(LARGE_BYTES, TIGHT_BYTES))
            found = replace(found, weight_bytes=found.weight_bytes + self._beside_bytes(step))
            self._known[step] = found, sizes[0], sizes[1]
        return self._known[step]


def planner_of(ground: Ground, learner: Learner, public: Sequence[Example]) -> Planner | None:
    """A planner for an experiment; None if no device tells its memory.

    Args:
        ground: what is known before the first round.
        learner: over the whole model.
        public: examples that anybody may see; a quarter longer than the longest of them is the longest expected. If
            there are none, examples may be as long as the model takes them.
    """
    if not ground.plans:
        return None
    lengths = [len(encoded.ids) for encoded in learner.encode(public) if encoded is not None]
    longest = ground.base.max_length
    length = min(longest, math.ceil(1.25 * max(lengths))) if lengths else longest
    return Planner(ground, ground.experiment.initial_state(learner), length)


def why_not(device: Device) -> str:
    """Why a device should do nothing in this round, in a word; empty if it may work."""
    if device.temperature_c is not None and device.temperature_c >= TOO_HOT_C:
        return "too_hot"
    if device.battery is not None and device.battery < EMPTY_BATTERY:
        return "battery"
    return ""


def needs_rest(device: Device) -> bool:
    """Whether a device should work less than it could in this round."""
    hot = device.temperature_c is not None and device.temperature_c >= HOT_C
    return hot or (device.battery is not None and device.battery < LOW_BATTERY)
