"""Weighted mean of the clients' changes, with an optional server step size and momentum.

FedAvg: McMahan et al., AISTATS 2017, Algorithm 1 (weights n_k / n). Server momentum (FedAvgM): Hsu et al., "Measuring
the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019, section 4.3.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fedgen import tree
from fedgen.errors import ClientError
from fedgen.types import State, Update

LARGEST_SUM = 2.0**26
"""Bound on the sum of weight × magnitude, with which no fixed-point sum overflows int64 (2**26 · 2**36 = 2**62)."""


@dataclass(frozen=True)
class Total:
    """A running weighted sum.

    Attributes:
        sums: sum of weight × change, in fixed point.
        weight: sum of weights; exact, since each is a whole number of examples times a discount of few bits.
        magnitude: sum of weight × largest entry, a bound on every entry of the sums.
    """

    sums: State
    weight: Float[Tensor, ""]
    magnitude: Float[Tensor, ""]


@dataclass(frozen=True)
class Mean:
    """Weighted mean of the changes (FedAvg).

    Attributes:
        weighting: each client counts by its number of examples, or all count alike.
        learning_rate: server step size; 1 adds the mean as it is.
        momentum: server momentum; 0 keeps no state on the server.
    """

    weighting: Literal["num_examples", "uniform"] = "num_examples"
    learning_rate: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be positive (1 adds the mean as it is)")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be at least 0 and below 1")

    def init(self, state: State) -> State:
        """The momentum buffer; empty without momentum."""
        return tree.zeros(state) if self.momentum else {}

    def zero(self, state: State) -> Total:
        """An empty total."""
        sums = {name: torch.zeros(t.shape, dtype=torch.int64) for name, t in state.items()}
        return Total(sums, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))

    def add(self, total: Total, update: Update) -> None:
        """Folds one update into the total, in place.

        Raises:
            ClientError: `too_large`, if the sum could overflow; the total is unchanged then.
        """
        count = update.num_examples if self.weighting == "num_examples" else 1
        weight = count * update.discount
        magnitude = total.magnitude + weight * tree.largest(update.tensors)
        if float(magnitude) > LARGEST_SUM:
            raise ClientError("too_large", f"weighted changes add up to {float(magnitude):.3g}, over {LARGEST_SUM:.3g}")
        tree.paste(update.plan, tree.fixed_point(update.tensors, count, update.discount), total.sums)
        total.weight.add_(weight)
        total.magnitude.copy_(magnitude)

    def apply(self, state: State, server: State, total: Total) -> tuple[State, State]:
        """``state + learning_rate * mean``, or with the momentum buffer in place of the mean.

        With no update at all, both states stay as they are.
        """
        weight = float(total.weight)
        if weight == 0:
            return state, server
        mean = tree.floating_point(total.sums, weight)
        if self.momentum:
            server = {
                name: (self.momentum * server[name].double() + mean[name]).to(server[name].dtype) for name in mean
            }
            mean = {name: t.double() for name, t in server.items()}
        step = self.learning_rate
        return {name: (t.double() + step * mean[name]).to(t.dtype) for name, t in state.items()}, server
