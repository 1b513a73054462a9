"""Makes a smaller model of the kept units of a larger one: stock modules, shrunk, with the cut weights in them.

Not through a smaller configuration: transformers refuses some shapes that are valid (a hidden width that heads do not
divide), and widths may differ from layer to layer. Modules are copied, the weights that are cut are replaced on the way
and the others are shared, so that making a part costs the bytes of what it cuts. Layers keep the numbers that they have
in the whole, so every tensor has one name everywhere.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fedgen.errors import ModelError
from fedgen.model.axes import layers_of
from fedgen.types import Axes, Index, Kept, State


def shrink(module: nn.Module, tensors: State, kept: Kept) -> nn.Module:
    """A copy of a model with smaller weights; the original stays as it is.

    Args:
        module: the whole model; may be on the meta device.
        tensors: the part's weights by name; those that are absent belong to dropped layers.
        kept: which units they are made of; `layer` drops layers, and `vocab` tokens, which are then known by where they
            stand among the kept ones.

    Returns:
        A module of the same class, frozen and in evaluation mode. Tied weights stay tied.
    """
    memo: dict[int, Any] = {id(buffer): buffer for buffer in module.buffers()}
    for name, parameter in module.named_parameters():
        memo[id(parameter)] = nn.Parameter(tensors[name], requires_grad=False) if name in tensors else parameter
    part = copy.deepcopy(module, memo)
    if "layer" in kept:
        _drop_layers(part, kept["layer"].tolist())
    if "vocab" in kept:
        _rename_tokens(part, kept["vocab"])
    tell_sizes(part)
    return part.requires_grad_(False).eval()


def skeleton(make: Callable[[], nn.Module]) -> nn.Module:
    """A module without weights, but with the tables of its rotary positions, which no file holds.

    Args:
        make: builds the module.

    Raises:
        ModelError: it has other tables that cannot be rebuilt.
    """
    with torch.device("meta"):
        module = make()
    config: Any = module.config
    for path, child in list(module.named_modules()):
        if any(buffer.is_meta for buffer in child.buffers(recurse=False)):
            parent = module.get_submodule(path.rpartition(".")[0])
            rotary: Any = type(child)
            if "config" not in rotary.__init__.__code__.co_varnames:
                raise ModelError(
                    f"{path} of {type(module).__name__} has a table that no file holds; use the whole model"
                )
            parent.register_module(path.rpartition(".")[2], rotary(config=config))
    return module.eval()


def rescale(part: nn.Module, axes: Axes, kept: Kept) -> None:
    """Multiplies what closing projections read by units / kept units, as inverted dropout does.

    The scaler with which HeteroFL trains (Diao et al., ICLR 2021, section 3.2), on inner axes: an activation, never a
    part of weights that are sent back.

    Args:
        part: the small model, with its adapter on.
        axes: of the whole model.
        kept: which units the part is made of.
    """
    for axis, weight in axes.closings.items():
        path = weight.removesuffix(".weight")
        if axis in kept and any(name == path for name, _ in part.named_modules()):
            factor = axes.units[axis] / len(kept[axis])
            part.get_submodule(path).register_forward_pre_hook(lambda _, inputs, by=factor: (inputs[0] * by,))


def tell_sizes(part: nn.Module) -> None:
    """Corrects the sizes that modules remember beside their weights."""
    for module in part.modules():
        child: Any = module
        match type(module).__name__:
            case "Linear" | "Factor":
                child.out_features, child.in_features = child.weight.shape
            case "Conv1D":
                child.nx, child.nf = child.weight.shape
            case "Embedding":
                child.num_embeddings, child.embedding_dim = child.weight.shape
            case "LayerNorm":
                child.normalized_shape = tuple(child.weight.shape)
            case "GPT2Attention":
                child.embed_dim = child.split_size = child.c_proj.weight.shape[0]
                child.num_heads = child.split_size // child.head_dim


def _drop_layers(part: nn.Module, numbers: list[int]) -> None:
    """Removes all other layers; the rest keep their numbers as names, and count on for the cache of keys and values."""
    prefix, layers = layers_of(part)
    listed = part.get_submodule(prefix.removesuffix("."))
    for number, _ in layers:
        if number not in numbers:
            del listed._modules[str(number)]
    config: Any = part.config
    for place, number in enumerate(numbers):
        for child in listed.get_submodule(str(number)).modules():
            if "layer_idx" in vars(child):
                child.layer_idx = place  # type: ignore[assignment]
    types = config.to_dict().get("layer_types")
    if types is not None:
        config.layer_types = [types[number] for number in numbers]
    config.num_hidden_layers = len(numbers)


def _rename_tokens(part: nn.Module, tokens: Index) -> None:
    """Tells a part how many tokens it has, and which of them is the one that fills gaps and is never learned."""
    config: Any = part.config
    config.vocab_size = len(tokens)
    embedding: Any = part.get_input_embeddings()  # type: ignore[operator]
    if embedding.padding_idx is not None:
        found = (tokens == embedding.padding_idx).nonzero().view(-1).tolist()
        embedding.padding_idx = found[0] if found else None
