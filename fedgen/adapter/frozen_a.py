"""Low-rank factors of which only B is trained; A is drawn from the seed, the same everywhere, and never sent.

Sun et al., "Improving LoRA in Privacy-preserving Federated Learning" (FFA-LoRA), ICLR 2024, section 4: with A fixed the
model is linear in B, so the mean of the clients' factors is the factor of the mean, and of the two factors one travels.
The same freezing saves the activations that A's gradient would need: Zhang et al., "LoRA-FA", 2023, section 3.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgen.adapter.lora import Lora
from fedgen.types import Axes, State

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class FrozenA:
    """Low-rank factors beside frozen weights, of which only B is trained (FFA-LoRA).

    Attributes:
        rank: number of rows of A and of columns of B.
        alpha: the update is scaled by alpha / rank.
        targets: names of the linear layers to adapt (q_proj, v_proj, …), or `all-linear`.
        top_layers: share of the layers that are adapted, counted from the last.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str | tuple[str, ...] = "all-linear"
    top_layers: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        self._lora()

    @property
    def trains_base(self) -> bool:
        """False: workers share the frozen weights."""
        return False

    def attach(self, module: "nn.Module", names: Collection[str] | None = None) -> "nn.Module":
        """Puts fp32 factors beside the target layers, and lets only B have a gradient.

        Raises:
            ModelError: the model has no such layers.
        """
        adapted = self._lora().attach(module, names)
        for name, parameter in self.parameters(adapted).items():
            parameter.requires_grad_(not self.is_fixed(name))
        return adapted

    def parameters(self, module: "nn.Module") -> "dict[str, nn.Parameter]":
        """Both factors, named as in PEFT's files."""
        return self._lora().parameters(module)

    def initial(self, module: "nn.Module", generator: "torch.Generator") -> State:
        """A drawn as for LoRA, B zero."""
        return self._lora().initial(module, generator)

    def is_fixed(self, name: str) -> bool:
        """A is."""
        return ".lora_A." in name

    def is_trained(self, name: str, round: int) -> bool:
        """B is, in every round."""
        return not self.is_fixed(name)

    def axes(self, state: State, base: Axes) -> Axes:
        """Those of LoRA's factors."""
        return self._lora().axes(state, base)

    def _lora(self) -> Lora:
        return Lora(self.rank, self.alpha, self.targets, self.top_layers)
