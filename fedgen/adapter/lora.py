"""Low-rank factors beside frozen weights, through PEFT.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, section 4.1: h = W x + (alpha / r) B A x,
with A random and B zero at first. Names of the tensors are those of PEFT's files, so that a state is an adapter file.
"""

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgen.errors import ModelError
from fedgen.types import Axes, State

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Lora:
    """Low-rank factors beside frozen weights (LoRA).

    Attributes:
        rank: number of rows of A and of columns of B.
        alpha: the update is scaled by alpha / rank.
        targets: names of the linear layers to adapt (q_proj, v_proj, …), or `all-linear`.
        top_layers: share of the layers that are adapted, counted from the last. Nothing is kept for the backward pass
            of the layers below, so that a step is faster and smaller.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str | tuple[str, ...] = "all-linear"
    top_layers: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; it must be at least 1")
        if self.alpha <= 0:
            raise ValueError(f"alpha is {self.alpha}; it must be positive")
        if not 0 < self.top_layers <= 1:
            raise ValueError(f"top_layers is {self.top_layers}; it is a share, above 0 and at most 1")
        if isinstance(self.targets, str) and self.targets != "all-linear":
            raise ValueError(f"targets is {self.targets!r}; give `all-linear` or a list such as [q_proj,v_proj]")

    @property
    def trains_base(self) -> bool:
        """False: workers share the frozen weights."""
        return False

    def attach(self, module: "nn.Module") -> "nn.Module":
        """Puts fp32 factors beside the target layers.

        Raises:
            ModelError: the model has no such layers.
        """
        import torch
        from peft import LoraConfig, get_peft_model

        num_layers: int = module.config.num_hidden_layers  # type: ignore[union-attr, assignment]
        top = math.ceil(self.top_layers * num_layers)
        targets = self._linear_names(module) if isinstance(self.targets, str) else list(self.targets)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT divides it by r and takes any number
            target_modules=targets,
            layers_to_transform=list(range(num_layers - top, num_layers)),
            task_type="CAUSAL_LM",
        )
        try:
            with warnings.catch_warnings():
                # peft 0.21 reads an attribute that transformers 5.23 has renamed; nothing that a user could change.
                warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing.*")
                adapted: nn.Module = get_peft_model(module, config, autocast_adapter_dtype=False)
        except ValueError as error:
            raise ModelError(f"adapter.targets {targets} do not fit this model: {error}") from error
        for parameter in self.parameters(adapted).values():
            parameter.data = parameter.data.to(torch.float32)
        return adapted.eval()

    def parameters(self, module: "nn.Module") -> "dict[str, nn.Parameter]":
        """The factors, named as in PEFT's files."""
        return {name.replace(".default.", "."): p for name, p in module.named_parameters() if ".lora_" in name}

    def initial(self, module: "nn.Module", generator: "torch.Generator") -> State:
        """A drawn uniformly as PEFT does (Kaiming with a = sqrt(5), that is, within ± 1 / sqrt(width)), B zero."""
        import torch

        state = {}
        for name, parameter in self.parameters(module).items():
            tensor = torch.zeros(parameter.shape)
            if ".lora_A." in name:
                bound = 1.0 / math.sqrt(parameter.shape[1])
                tensor.uniform_(-bound, bound, generator=generator)
            state[name] = tensor
        return state

    def axes(self, state: State) -> Axes:
        """One axis, `rank`: rows of A and columns of B."""
        dims = {name: ("rank", None) if ".lora_A." in name else (None, "rank") for name in state}
        return Axes(dims, {"rank": self.rank})

    @staticmethod
    def _linear_names(module: "nn.Module") -> list[str]:
        """Last parts of the names of all linear layers but the head."""
        from torch import nn

        head = module.get_output_embeddings()  # type: ignore[operator]
        return sorted(
            {n.rpartition(".")[2] for n, m in module.named_modules() if isinstance(m, nn.Linear) and m is not head}
        )
