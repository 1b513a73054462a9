"""Tiny models with random weights, one of each family of which parts can be made, and what is known of them by hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fedgen.types import Kept

VOCAB, LAYERS, HEAD, FFN = 29, 4, 4, 10
IDS = torch.arange(22).reshape(2, 11) * 5 % VOCAB
"""Two rows of tokens."""

LLAMA_LIKE = {
    "vocab_size": VOCAB,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def random_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draws every weight, norms around one and biases too, so that none is without effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            # Matrices keep the size of what goes through them, so that rounding is not blown up on the way.
            spread = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.2
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + (parameter.dim() == 1))
    return module.eval().requires_grad_(False)


def llama(**changes: Any) -> nn.Module:
    """As SmolLM2: nine query heads on three key-value heads, and the head tied to the embedding."""
    sizes = {"hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    return random_weights(LlamaForCausalLM(LlamaConfig(**{**LLAMA_LIKE, **sizes, **changes})))


def mistral(**changes: Any) -> nn.Module:
    """Its own head, and a window that is shorter than a row of tokens."""
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": HEAD}
    return random_weights(MistralForCausalLM(MistralConfig(**{**LLAMA_LIKE, **sizes, "sliding_window": 4, **changes})))


def qwen2(**changes: Any) -> nn.Module:
    """Biases on queries, keys and values, and windows in every second layer."""
    sizes = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3, "tie_word_embeddings": False}
    kinds = {
        "sliding_window": 4,
        "use_sliding_window": True,
        "layer_types": ["full_attention", "sliding_attention"] * (LAYERS // 2),
    }
    return random_weights(Qwen2ForCausalLM(Qwen2Config(**{**LLAMA_LIKE, **sizes, **kinds, **changes})))


def qwen3(**changes: Any) -> nn.Module:
    """Norms inside of heads, and heads that together are wider than the model."""
    sizes = {"hidden_size": 20, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": HEAD}
    return random_weights(Qwen3ForCausalLM(Qwen3Config(**{**LLAMA_LIKE, **sizes, **changes})))


def gpt2(**changes: Any) -> nn.Module:
    """Projections with the inputs first, three of them in one tensor; biases everywhere."""
    sizes = {"n_embd": 12, "n_head": 3, "n_inner": FFN, "n_layer": LAYERS, "n_positions": 64, "vocab_size": VOCAB}
    others = {"attn_implementation": "eager", "bos_token_id": None, "eos_token_id": None}
    return random_weights(GPT2LMHeadModel(GPT2Config(**{**sizes, **others, **changes})))


@dataclass(frozen=True)
class Family:
    """What is known by hand of a tiny model.

    Attributes:
        make: makes it.
        groups: number of key-value heads.
        queries: query heads on each of them.
        layers: what the names of its layers begin with.
        attention: the closing projection of attention, by its name in a layer.
        feed_forward: that of the feed-forward part.
    """

    make: Callable[..., nn.Module]
    groups: int
    queries: int
    layers: str = "model.layers."
    attention: str = "self_attn.o_proj"
    feed_forward: str = "mlp.down_proj"


FAMILIES = {
    "llama": Family(llama, 3, 3),
    "mistral": Family(mistral, 2, 2),
    "qwen2": Family(qwen2, 3, 2),
    "qwen3": Family(qwen3, 3, 2),
    "gpt2": Family(gpt2, 3, 1, "transformer.h.", "attn.c_proj", "mlp.c_proj"),
}


def some_of(units: int) -> st.SearchStrategy[torch.Tensor]:
    """Some units of an axis, ascending."""
    return st.sets(st.integers(0, units - 1), min_size=1).map(lambda found: torch.tensor(sorted(found)))


@st.composite
def kept_of(draw: st.DrawFn, family: Family, kinds: Sequence[str] = ("ffn", "kv", "layer")) -> Kept:
    """Units of every axis of a family's tiny model, or all of it where an axis is left out."""
    units = {f"{kind}.{n}": size for n in range(LAYERS) for kind, size in (("ffn", FFN), ("kv", family.groups))}
    chosen = {axis: size for axis, size in {**units, "layer": LAYERS}.items() if axis.partition(".")[0] in kinds}
    kept = {axis: draw(st.none() | some_of(size), label=axis) for axis, size in chosen.items()}
    return {axis: index for axis, index in kept.items() if index is not None}


def unequal(family: Family) -> Kept:
    """A part with another width in every layer, and without the third."""
    kept = {"layer": torch.tensor([0, 1, 3])}
    for n in range(LAYERS):
        kept[f"ffn.{n}"] = torch.arange(n, FFN, n + 2)
        kept[f"kv.{n}"] = torch.tensor([[0, 1], [1], [0], [0, family.groups - 1]][n])
    return kept


def inputs_by_hand(family: Family, kept: Kept, n: int) -> dict[str, list[int]]:
    """Inputs of the two closing projections of a layer that are kept; of a dropped layer, none."""
    if "layer" in kept and n not in kept["layer"].tolist():
        return {family.attention: [], family.feed_forward: []}
    groups = kept[f"kv.{n}"].tolist() if f"kv.{n}" in kept else list(range(family.groups))
    ffn = kept[f"ffn.{n}"].tolist() if f"ffn.{n}" in kept else list(range(FFN))
    return {family.attention: rows(groups, family.queries * HEAD), family.feed_forward: ffn}


def rows(units: Sequence[int], span: int, start: int = 0) -> list[int]:
    """Positions of units that each take so many in a row."""
    return [start + unit * span + place for unit in units for place in range(span)]


def mask(family: Family, module: nn.Module, kept: Kept) -> None:
    """Lets closing projections read noughts from dropped units, and dropped layers add nothing; by hooks."""

    def read_less(inputs: list[int]) -> Callable[..., tuple[torch.Tensor]]:
        def hook(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            seen = torch.zeros(given[0].shape[-1])
            seen[inputs] = 1
            return (given[0] * seen,)

        return hook

    for n in range(LAYERS):
        for closing, inputs in inputs_by_hand(family, kept, n).items():
            projection = module.get_submodule(f"{family.layers}{n}.{closing}")
            projection.register_forward_pre_hook(read_less(inputs))
            if not inputs:
                projection.register_forward_hook(lambda _, given, out: torch.zeros_like(out))
