"""All of the model's own weights are trained, in fp32. What is sent is as large as the model."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgen.types import Axes, State

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Full:
    """All weights of the model."""

    @property
    def trains_base(self) -> bool:
        """True: every worker needs its own copy of the weights."""
        return True

    def attach(self, module: "nn.Module", names: Collection[str] | None = None) -> "nn.Module":
        """Unfreezes everything."""
        return module.requires_grad_(True)

    def parameters(self, module: "nn.Module") -> "dict[str, nn.Parameter]":
        """All weights by their own names; tied weights once."""
        return dict(module.named_parameters())

    def initial(self, module: "nn.Module", generator: "torch.Generator") -> State:
        """The weights as they were loaded."""
        return {name: p.detach().clone() for name, p in self.parameters(module).items()}

    def is_fixed(self, name: str) -> bool:
        """No weight is."""
        return False

    def is_trained(self, name: str, round: int) -> bool:
        """Every weight, in every round."""
        return True

    def axes(self, state: State, base: Axes) -> Axes:
        """Those of the model."""
        return base
