"""Believes what ``axes`` says about a family only after it was seen on a small model of random weights.

A part of it must be the masked whole, in what it gives and in every gradient. Masked means that what closing
projections read from dropped units is nought, and that dropped tokens take no part in the softmax. The check takes a
tenth of a second, once for each family in a process.
"""

import copy
import functools
import json
from typing import Any

import torch
from torch import Tensor, nn

from fedgen import tree
from fedgen.errors import ModelError
from fedgen.model.axes import axes_of, layers_of
from fedgen.model.part import shrink
from fedgen.types import Axes, Kept

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "vocab_size": 29,
    "max_position_embeddings": 16,
    "max_window_layers": 4,
    "n_embd": 48,
    "n_head": 6,
    "n_layer": 4,
    "n_inner": 24,
    "n_positions": 16,
}
"""Of the small model, as far as its configuration has such fields."""

TOLERANCE = 1e-4
"""In fp32, as a share of the largest value."""


def verify(module: nn.Module) -> None:
    """Checks the family of a model.

    Raises:
        ModelError: its parts are not what they should be.
    """
    model_class: Any = type(module)
    _verify(model_class, json_of(module))


def json_of(module: nn.Module) -> str:
    """The configuration of a small model of the same family, as JSON; models of one family have one and the same."""
    config: Any = module.config
    facts: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    # A token beyond the small vocabulary would be refused, and so would none at all where there has to be one.
    tokens = {name: 0 for name, value in facts.items() if name.endswith("_token_id") and value is not None}
    facts |= tokens | {name: size for name, size in SIZES.items() if name in facts} | {"dtype": "float32"}
    types = facts.get("layer_types")
    if types:
        # Kinds of layers as they follow each other in the whole.
        facts["layer_types"] = [types[number % len(types)] for number in range(SIZES["num_hidden_layers"])]
    return json.dumps(facts, sort_keys=True)


def small(module_class: Any, text: str) -> nn.Module:  # noqa: ANN401 - a class of transformers
    """A small model of a family with random weights.

    Args:
        module_class: class of the model.
        text: its configuration as JSON.
    """
    config = module_class.config_class(**json.loads(text))
    config._attn_implementation = "eager"
    module: nn.Module = module_class(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            spread = 0.3 if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + (parameter.dim() == 1))
    return module


def masked(module: nn.Module, axes: Axes, kept: Kept) -> nn.Module:
    """A copy of the whole whose closing projections are nought where units are dropped."""
    whole = copy.deepcopy(module)
    weights = dict(whole.named_parameters())
    with torch.no_grad():
        for axis, name in axes.closings.items():
            if axis in kept:
                hole = tree.zeros({name: weights[name]})
                plan = tree.plan_of(Axes({name: axes.dims[name]}, axes.units), {axis: kept[axis]})
                tree.paste(plan, tree.cut({name: weights[name]}, plan), hole)
                weights[name].copy_(hole[name])
            layer = axes.members[name][1]
            if "layer" in kept and layer not in kept["layer"].tolist():
                for silent in (name, name.replace(".weight", ".bias")):
                    if silent in weights:
                        weights[silent].zero_()
    return whole


def differences(module: nn.Module, kept: Kept, ids: Tensor) -> dict[str, float]:
    """How far a part is from the masked whole: largest difference of the logits, of gradients, and what leaks.

    Args:
        module: the whole, in fp32.
        kept: units of the part.
        ids: token ids to run both on; of tokens that are kept.

    Returns:
        `output`, `gradient` (on what the part holds) and `outside` (gradients of the masked whole elsewhere), each as a
        share of the largest value where that is above one.
    """
    axes = axes_of(module)
    weights = {name: parameter.data for name, parameter in module.named_parameters()}
    plan = tree.plan_of(axes, kept)
    part = shrink(module, tree.cut(weights, plan), kept).requires_grad_(True)
    whole = masked(module, axes, kept).requires_grad_(True)
    tokens = kept.get("vocab")
    own = ids if tokens is None else torch.searchsorted(tokens, ids)
    outputs, gradients = [], []
    for model in (part, whole):
        logits = model(input_ids=own if model is part else ids, use_cache=False).logits
        if model is whole and tokens is not None:
            logits = logits.index_select(-1, tokens)
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), own[:, 1:].flatten()).backward()
        outputs.append(logits.detach())
        gradients.append({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()})
    held = tree.cut(gradients[1], plan)
    outside = tree.copy(gradients[1])
    tree.paste(plan, tree.scale(held, -1.0), outside)
    # The weights that were set to nought are still reached by gradients from the other side of the mask.
    closed = {name for axis, name in axes.closings.items() if axis in kept or "layer" in kept}
    closed |= {name.replace(".weight", ".bias") for name in closed}
    scale = max(1.0, tree.largest(held))
    return {
        "output": float((outputs[0] - outputs[1]).abs().max()) / max(1.0, float(outputs[1].abs().max())),
        "gradient": tree.largest(tree.subtract(gradients[0], held)) / scale,
        "outside": tree.largest({name: tensor for name, tensor in outside.items() if name not in closed}) / scale,
    }


@functools.cache
def _verify(module_class: Any, text: str) -> None:  # noqa: ANN401
    try:
        found = _differences_of_family(module_class, text)
    except ModelError:
        raise
    except Exception as error:
        # Weights that do not fit together fail in any way, and so does a class that cannot be made so small.
        raise ModelError(
            f"parts of {module_class.__name__} cannot be made: a part of a small random model of its kind does not run "
            f"({error}). What fedgen/model/axes.py says of this family is wrong, or does not apply to it; use "
            "extraction=full"
        ) from error
    # Not the largest of them: Python's maximum would pass over a NaN.
    if not all(value <= TOLERANCE for value in found.values()):
        said = ", ".join(f"{name} {value:.2g}" for name, value in found.items())
        raise ModelError(
            f"parts of {module_class.__name__} cannot be made: a part of a small random model differs from the masked "
            f"whole ({said}; at most {TOLERANCE:g} each). What fedgen/model/axes.py says of this family is wrong; use "
            "extraction=full"
        )


def _differences_of_family(module_class: Any, text: str) -> dict[str, float]:  # noqa: ANN401
    module = small(module_class, text)
    axes, generator = axes_of(module), torch.Generator().manual_seed(1)
    kept: Kept = {"layer": torch.tensor([0, 1, 3])}
    for number in range(len(layers_of(module)[1])):
        for axis in (f"ffn.{number}", f"kv.{number}"):
            # Another width in every layer.
            num_kept = max(1, axes.units[axis] * (number + 2) // 7)
            kept[axis] = torch.randperm(axes.units[axis], generator=generator)[:num_kept].sort()[0]
    ids = torch.arange(22).reshape(2, 11) % SIZES["vocab_size"]
    if "vocab" in axes.units:
        # Every second one; the first of them is the one that fills gaps, where a family has one.
        kept["vocab"] = torch.arange(0, SIZES["vocab_size"], 2)
        ids = kept["vocab"][ids % len(kept["vocab"])]
    return differences(module, kept, ids)
