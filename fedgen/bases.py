"""The model as devices hold it: in several types of weights, or no more of it than the part that they work with."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from fedgen.devices import Rung
from fedgen.errors import ModelError
from fedgen.experiment import Experiment
from fedgen.learner import Base, Learner
from fedgen.types import Axes, Kept, Part, Plan, State


class Bases:
    """The model in each type of weights that somebody asks for; each is loaded once, when it is first asked for.

    Args:
        experiment: has the model.
        base: the model as it is loaded already.
        dtype: type of its weights; None for that of the experiment.

    Attributes:
        lightest: type in which the weights take least memory.
    """

    def __init__(self, experiment: Experiment, base: Base, dtype: str | None = None) -> None:
        self.lightest = experiment.model.lightest
        self._experiment = experiment
        self._loaded: dict[str | None, Base] = {None: base, dtype: base}
        self._refused: set[str] = set()
        self._lock = threading.Lock()

    def of(self, dtype: str | None) -> Base:
        """The model with its frozen weights in a type; None for that of the experiment.

        Raises:
            ModelError: it cannot be loaded so.
        """
        with self._lock:
            if dtype not in self._loaded:
                self._loaded[dtype] = self._experiment.model.load(self._experiment.seed, dtype=dtype)
            return self._loaded[dtype]

    def has(self, dtype: str) -> bool:
        """Whether it can be loaded so; found out once."""
        try:
            return dtype not in self._refused and self.of(dtype) is not None
        except ModelError:
            self._refused.add(dtype)
            return False


@dataclass(frozen=True)
class Unread:
    """A model of which a device reads its part and nothing else; whoever wants all of it has it read then.

    Attributes:
        experiment: has the model.
        outline: the model without its weights.
        dtype: type of its weights; None for that of the experiment.
        rung: how the device works with them.
    """

    experiment: Experiment
    outline: Base
    dtype: str | None = None
    rung: Rung = field(default_factory=Rung)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights' file."""
        return self.outline.fingerprint

    @property
    def max_length(self) -> int:
        """Longest example in tokens."""
        return self.outline.max_length

    @property
    def axes(self) -> Axes:
        """Names of the dimensions of all weights."""
        return self.outline.axes

    @property
    def protected(self) -> Kept:
        """Units that every part keeps, by axis."""
        return self.outline.protected

    @property
    def weights(self) -> State:
        """All weights by name."""
        return self.part({}).weights

    def at(self, rung: Rung) -> "Unread":
        """The same, worked with as a rung of the planner's ladder says."""
        return replace(self, rung=rung, outline=self.outline.at(rung))

    def part(self, kept: Kept) -> Base:
        """A smaller model that consists of the kept units, read from the file."""
        return self.experiment.model.load(self.experiment.seed, kept, self.dtype).at(self.rung)

    def rescale(self, learner: Learner, axes: Axes, kept: Kept) -> None:
        """Multiplies what a part's closing projections read by units / kept units."""
        self.outline.rescale(learner, axes, kept)

    def replica(self, *, private: bool) -> nn.Module:
        """A module over all weights."""
        return self.part({}).replica(private=private)

    def learner(self, module: nn.Module, parameters: Mapping[str, nn.Parameter], window: Plan | None = None) -> Learner:
        """Puts a module and the parameters that a State names to work."""
        return self.outline.learner(module, parameters, window)

    def nested(
        self, learner: Learner, plans: Sequence[tuple[Plan, Plan]], generator: torch.Generator, *, distill: bool
    ) -> Learner:
        """A learner that draws one of several narrower widths for every loss."""
        return self.outline.nested(learner, plans, generator, distill=distill)


def holds_all(experiment: Experiment, part: Part) -> bool:
    """Whether a device that works with a part has all of the model's weights in its memory."""
    kinds = {axis.partition(".")[0] for axis in part.kept}
    return experiment.extraction_mode == "window" or not kinds & set(experiment.extraction.axes) - {"rank"}


def opened(experiment: Experiment, dtype: str | None, *, whole: bool) -> tuple[Base, Learner]:
    """The model as a device opens it, and a learner over it that knows names, shapes and tokens; trains if it is whole.

    Args:
        experiment: what to do.
        dtype: type of the frozen weights; None for that of the experiment.
        whole: the device holds all weights, and not just a part that it reads when it is asked.

    Raises:
        ModelError: the model cannot be found or read.
    """
    if whole:
        base = experiment.model.load(experiment.seed, dtype=dtype)
        [learner] = experiment.learners(base, 1)
        return base, learner
    outline = experiment.model.outline(experiment.seed, dtype)
    [learner] = experiment.learners(outline, 1)
    return Unread(experiment, outline, dtype), learner
