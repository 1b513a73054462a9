"""Local training from losses alone: no gradient, no activations to keep, memory of inference.

MeZO: Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023, Algorithm 1, with several
directions per step as in its n-SPSA (Definition 1). Directions hold +1 and -1 in place of normal numbers, which can be
drawn alike on every processor, so that the change can be told as seeds and scalars (FedKSeed: Qin et al., ICML 2024).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedgen import tree
from fedgen.client.batches import batches
from fedgen.devices import Rung
from fedgen.directions import Space, space_of
from fedgen.errors import ClientError
from fedgen.learner import Learner
from fedgen.types import Encoded, Kept, State, Trained, Walk

MAX_SEED = 2**31
"""Seeds of directions are below it, so that one takes four bytes."""


@dataclass(frozen=True)
class ZerothOrder:
    """Local training from pairs of losses, without gradients (MeZO).

    Attributes:
        learning_rate: step size in the first round; the default suits factors of LoRA, all weights take far less.
        final_learning_rate: fraction of it in the last round, with a straight line between.
        num_steps: steps per round, whatever the number of examples.
        num_epochs: passes over the local examples per round; counts instead of num_steps if given.
        batch_size: examples per step; a client with fewer takes all it has.
        epsilon: how far to either side of the parameters the two losses of a direction are taken; with weights in
            bfloat16, differences over less than 0.01 drown in rounding.
        num_perturbations: directions per step, two forward passes each; the step is their mean.
        max_slope: the slope of the loss along a direction, about as large as the gradient, is clipped to this
            magnitude; null does not clip, and bears a fraction of the learning rate.
    """

    learning_rate: float = 4e-3
    final_learning_rate: float = 0.2
    num_steps: int = 64
    num_epochs: float | None = None
    batch_size: int = 4
    epsilon: float = 2e-2
    num_perturbations: int = 1
    max_slope: float | None = 1.0

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        for name in ("learning_rate", "epsilon"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; it must be positive")
        if self.final_learning_rate < 0:
            raise ValueError(f"final_learning_rate is {self.final_learning_rate}; it is a fraction and at least 0")
        for name in ("num_steps", "batch_size", "num_perturbations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("num_epochs", "max_slope"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be positive, or null")

    @property
    def compares_losses(self) -> bool:
        """True: a step is made of the difference of two losses."""
        return True

    @property
    def needs_backward(self) -> bool:
        """False: there are only forward passes."""
        return False

    @property
    def num_at_once(self) -> int:
        """Examples of a step: a loss is that of all of them."""
        return self.batch_size

    @property
    def num_passes(self) -> int:
        """Two for every direction of every step."""
        return 2 * self.num_perturbations * self.num_steps

    @property
    def drops_gradients(self) -> bool:
        """False: there are none."""
        return False

    def held_bytes(self, trained_bytes: int, step_bytes: int) -> int:
        """What was trained as it came and the change; besides, a direction or what the model makes, never both."""
        return 2 * trained_bytes + max(trained_bytes, step_bytes)

    def at(self, rung: Rung) -> "ZerothOrder":
        """The same: a rung has nothing that it could save."""
        return self

    def trained_units(self, examples: Sequence[Encoded]) -> Kept:
        """None: a direction goes through all of what is trained."""
        return {}

    def train(
        self, learner: Learner, examples: Sequence[Encoded], progress: float, generator: torch.Generator
    ) -> Trained:
        """Trains on shuffled passes over the examples. The parameters end as what they were plus the change.

        Returns:
            The change, the walk that it is, and as metrics loss: mean of all losses that were taken; num_steps;
            num_tokens: tokens of the batches; train_bytes: memory of the change and of a copy of what is trained.

        Raises:
            ClientError: `no_examples`, `not_float32` when a parameter is of a type that loses small steps, or
                `non_finite_loss` when a loss is NaN or infinite.
        """
        if not examples:
            raise ClientError("no_examples")
        parameters = learner.parameters()
        if other := sorted({str(p.dtype) for p in parameters.values()} - {"torch.float32"}):
            raise ClientError("not_float32", f"{', '.join(other)} loses a step of epsilon; train tensors in float32")
        rate = self.learning_rate * (1.0 + (self.final_learning_rate - 1.0) * progress)
        seeds, scales, losses, num_tokens = list[int](), list[float](), list[float](), 0
        with torch.no_grad():
            place = _place(learner)
            for batch in batches(examples, self.batch_size, self.num_steps, self.num_epochs, generator):
                drawn = torch.randint(MAX_SEED, (self.num_perturbations,), generator=generator).tolist()
                pairs = [self._losses(learner, batch, place, seed) for seed in drawn]
                # In fp32, as the walk tells them: whoever replays it takes the very same steps.
                steps = torch.tensor([-rate * self._slope(*pair) / len(pairs) for pair in pairs]).tolist()
                for seed, scale in zip(drawn, steps, strict=True):
                    place.space.step(place.array, seed, scale)
                seeds += drawn
                scales += steps
                losses += [loss for pair in pairs for loss in pair]
                num_tokens += sum(len(encoded.ids) for encoded in batch)
            place.put()
        metrics = {
            "loss": sum(losses) / len(losses),
            "num_steps": len(seeds) / self.num_perturbations,
            "num_tokens": float(num_tokens),
            "train_bytes": 2.0 * tree.num_bytes(place.start),
        }
        return Trained(place.change, metrics, Walk(torch.tensor(seeds), torch.tensor(scales)))

    def _losses(self, learner: Learner, batch: Sequence[Encoded], place: "_Place", seed: int) -> tuple[float, float]:
        """The losses epsilon before and behind the place along a direction."""
        found = []
        for epsilon in (self.epsilon, -self.epsilon):
            place.put(seed, epsilon)
            found.append(learner.loss(batch).item())
        if not all(math.isfinite(loss) for loss in found):
            raise ClientError("non_finite_loss", f"losses {found}")
        return found[0], found[1]

    def _slope(self, ahead: float, behind: float) -> float:
        """The slope of the loss along a direction, clipped (Algorithm 1: projected_grad)."""
        slope = (ahead - behind) / (2.0 * self.epsilon)
        return slope if self.max_slope is None else max(-self.max_slope, min(slope, self.max_slope))


@dataclass(frozen=True)
class _Place:
    """Where a client has come to: the parameters as they were received, and the change since.

    To step to and fro, as in Algorithm 1, would leave roundings in the parameters. What is kept in place of that is two
    copies of what is trained, a third less than a gradient and the two moments of Adam.

    Attributes:
        parameters: of the learner.
        start: what they were.
        space: of their names and shapes.
        array: the change, end to end.
        change: the same, tensor by tensor.
    """

    parameters: Mapping[str, nn.Parameter]
    start: State
    space: Space
    array: Tensor
    change: State

    def put(self, seed: int = 0, epsilon: float = 0.0) -> None:
        """Sets the parameters to the place, or to what lies some way along a direction from it."""
        # Drawn anew each time: while the model runs, no direction is in memory.
        signs = self.space.draw(seed) if epsilon else {}
        for name, parameter in self.parameters.items():
            torch.add(self.start[name], self.change[name], out=parameter)
            if epsilon:
                parameter.add_(signs[name], alpha=epsilon)


def _place(learner: Learner) -> _Place:
    start = learner.state()
    space = space_of({name: tuple(tensor.shape) for name, tensor in start.items()})
    array = space.zeros()
    return _Place(learner.parameters(), start, space, array, space.views(array))
