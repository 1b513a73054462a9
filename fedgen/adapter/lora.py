"""Low-rank factors beside frozen weights, through PEFT.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, section 4.1: h = W x + (alpha / r) B A x,
with A random and B zero at first. Names of the tensors are those of PEFT's files, so that a state is an adapter file.

Alternating rounds: Chen et al., "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA" (RoLoRA),
2024.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgen.errors import ModelError
from fedgen.types import Axes, Dim, State

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
        alternate: only B is trained in odd rounds and only A in even ones, so that a mean of factors is a mean of
            products (RoLoRA).
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str | tuple[str, ...] = "all-linear"
    top_layers: float = 1.0
    alternate: bool = False

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

    def attach(self, module: "nn.Module", names: Collection[str] | None = None) -> "nn.Module":
        """Puts fp32 factors beside the target layers; in a part of a model, beside those that the names say.

        Raises:
            ModelError: the model has no such layers.
        """
        return attach_factors(module, self, names)

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

    def is_fixed(self, name: str) -> bool:
        """No factor is."""
        return False

    def is_trained(self, name: str, round: int) -> bool:
        """Both factors, or the one whose turn it is."""
        return not self.alternate or (".lora_B." in name) == (round % 2 == 1)

    def axes(self, state: State, base: Axes) -> Axes:
        """A reads what its layer reads, B writes what it writes, and between them lies `rank`."""
        return factor_axes(state, base, self.rank)


def attach_factors(module: "nn.Module", lora: Lora, names: Collection[str] | None) -> "nn.Module":
    """Puts fp32 factors beside linear layers.

    Args:
        module: the model, or a part of it.
        lora: rank, scale and targets.
        names: factors to make; None for all that `lora` gives to a whole model.

    Raises:
        ModelError: the model has no such layers.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    from fedgen.adapter.factor import reading

    num_layers: int = module.config.num_hidden_layers  # type: ignore[union-attr, assignment]
    top = math.ceil(lora.top_layers * num_layers)
    targets = _linear_names(module) if isinstance(lora.targets, str) else list(lora.targets)
    layers = list(range(num_layers - top, num_layers))
    if names is not None:
        targets = sorted({adapted_layer(name) for name in names})
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT divides it by r and takes any number
        target_modules=targets,
        layers_to_transform=layers if names is None else None,
        fan_in_fan_out=any(type(child).__name__ == "Conv1D" for child in module.modules()),
        task_type="CAUSAL_LM",
    )
    try:
        adapted: nn.Module = get_peft_model(module, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ModelError(f"adapter.targets {targets} do not fit this model: {error}") from error
    for parameter in lora.parameters(adapted).values():
        parameter.data = parameter.data.to(torch.float32)
    for child in adapted.modules():
        if isinstance(child, LoraLayer):
            for name, plain in child.lora_A.items():
                child.lora_A[name] = reading(plain)
            # PEFT's fp32 copy of what a layer reads would be kept for the backward pass.
            child.cast_input_dtype_enabled = False
    return adapted.eval()


def adapted_layer(name: str) -> str:
    """The layer that a factor stands beside, by its name in the model.

    >>> adapted_layer("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight")
    'model.layers.0.mlp.up_proj'
    """
    return name.removeprefix("base_model.model.").partition(".lora_")[0]


def factor_axes(state: State, base: Axes, rank: int) -> Axes:
    """Axes of factors from those of the weights that they adapt: B A x is W x, so A reads and B writes as W does."""
    dims, members, between = {}, {}, Dim("rank")
    for name in state:
        weight = f"{adapted_layer(name)}.weight"
        named = base.dims[weight]
        outputs, inputs = named[::-1] if weight in base.input_first else named
        dims[name] = (between, inputs) if ".lora_A." in name else (outputs, between)
        if weight in base.members:
            members[name] = base.members[weight]
    return Axes(dims, {**base.units, "rank": rank}, members)


def _linear_names(module: "nn.Module") -> list[str]:
    """Last parts of the names of all linear layers but the head; GPT-2's are linear layers as well."""
    from torch import nn

    head = module.get_output_embeddings()  # type: ignore[operator]
    return sorted(
        {
            name.rpartition(".")[2]
            for name, child in module.named_modules()
            if (isinstance(child, nn.Linear) or type(child).__name__ == "Conv1D") and child is not head
        }
    )
