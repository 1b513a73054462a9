"""How much each unit of a model matters to some text: what it carries times what is made of it.

A unit of an inner axis is worth mean |activation| × norm of the weights that read it (the score of Wanda for a whole
unit: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024). Weights alone
mislead: on a pretrained model they are worse than chance. A layer is worth 1 - cos(what goes in, what comes out): Men
et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024.

A token is worth how often it occurs (``TextLearner.importance``). The text is one that anybody may see, so which tokens
a part holds tells nothing about its client. By a client's own words none of its examples would be left out, and the
server would know the words; it is not done. Of tokens that never occur the first come first, which byte-pair encodings
have merged first because they are frequent.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from fedgen.model.axes import axes_of, layers_of
from fedgen.types import Scores


def measure_importance(model: nn.Module, run: Callable[[], Tensor], counted: Bool[Tensor, "rows length"]) -> Scores:
    """Scores of every inner axis and of the layers, from one forward pass.

    Args:
        model: a causal language model, with or without an adapter on.
        run: sends the text through it.
        counted: which tokens of the text count.

    Returns:
        Axis → one number per unit, in fp32; larger matters more.
    """
    axes = axes_of(model)
    activity: dict[str, Tensor] = {}
    turned: dict[str, Tensor] = {}

    def note_input(axis: str, inputs: Tensor) -> None:
        activity[axis] = inputs.detach()[counted].float().abs().mean(0)

    def note_turn(number: str, before: Tensor, after: Tensor) -> None:
        came, went = before.detach()[counted].float(), after.detach()[counted].float()
        turned[number] = 1 - torch.nn.functional.cosine_similarity(came, went, dim=-1).mean()

    hooks = []
    for axis, weight in axes.closings.items():
        closing = model.get_submodule(weight.removesuffix(".weight"))
        hooks.append(closing.register_forward_pre_hook(lambda _, x, axis=axis: note_input(axis, x[0])))
    for number, layer in layers_of(model)[1]:
        hooks.append(
            layer.register_forward_hook(
                lambda _, x, out, number=str(number): note_turn(
                    number, x[0], out if isinstance(out, Tensor) else out[0]
                )
            )
        )
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    scores: Scores = {"layer": torch.stack([turned[number] for number in sorted(turned, key=int)])}
    for axis, weight in axes.closings.items():
        closing_layer: Any = model.get_submodule(weight.removesuffix(".weight"))
        outputs = 1 if weight in axes.input_first else 0
        worth = activity[axis] * closing_layer.weight.detach().float().norm(dim=outputs)
        scores[axis] = worth.view(axes.units[axis], -1).sum(1)
    return scores
