"""A loaded decoder-only language model: weights that all workers share, and what is made of them."""

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from fedgen import tree
from fedgen.devices import Rung
from fedgen.errors import ModelError
from fedgen.learner import Learner
from fedgen.model import selfcheck
from fedgen.model.axes import axes_of
from fedgen.model.loss import CHUNK_TOKENS
from fedgen.model.nested import NestedLearner, narrow
from fedgen.model.part import rescale, shrink
from fedgen.model.quantised import Quantised
from fedgen.model.text import TextLearner
from fedgen.model.window import open_windows
from fedgen.types import Axes, Encoded, Index, Kept, Plan, State


@dataclass(frozen=True)
class TextBase:
    """Weights that all workers share.

    Attributes:
        module: the loaded model, frozen and in evaluation mode; never run itself, its replicas are.
        tokenizer: its tokenizer.
        fingerprint: SHA-256 of the weights, or of what they are made from.
        max_length: longest example in tokens; the rest is cut off.
        checkpointing: layers are recomputed in the backward pass.
        chunk_tokens: rows of logits that exist at once; None for all.
        tokens: those that it has a row for, ascending; None for all of the tokenizer's.
    """

    module: nn.Module
    tokenizer: Any
    fingerprint: str
    max_length: int
    checkpointing: bool = False
    chunk_tokens: int | None = CHUNK_TOKENS
    tokens: Index | None = None

    def at(self, rung: Rung) -> "TextBase":
        """The same weights, worked with as a rung of the planner's ladder says; itself if that changes nothing."""
        checkpointing = self.checkpointing if rung.checkpointing is None else rung.checkpointing
        chunk_tokens = self.chunk_tokens if rung.chunk_tokens is None else rung.chunk_tokens
        if (checkpointing, chunk_tokens) == (self.checkpointing, self.chunk_tokens):
            return self
        return replace(self, checkpointing=checkpointing, chunk_tokens=chunk_tokens)

    @property
    def axes(self) -> Axes:
        """Names of the dimensions of all weights.

        Raises:
            ModelError: parts of this family are not known to be right.
        """
        axes = axes_of(self.module)
        selfcheck.verify(self.module)
        return replace(axes, blocks=blocks_of(self.weights, axes))

    @functools.cached_property
    def protected(self) -> Kept:
        """The tokens that every part keeps: special ones, and those of a conversation in which nothing is said.

        Without them no prompt begins and no answer ends.
        """
        tokens = {self.tokenizer.eos_token_id, *self.tokenizer.all_special_ids}
        tokens |= {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        if self.tokenizer.chat_template:
            silence = [{"role": "user", "content": ""}]
            tokens |= {*self.tokenizer.apply_chat_template(silence, add_generation_prompt=True, return_dict=False)}
        units = torch.tensor(sorted(tokens))
        return {"vocab": units if self.tokens is None else torch.isin(self.tokens, units).nonzero().view(-1)}

    @property
    def weights(self) -> State:
        """All weights by name, shared; tied weights once."""
        return {name: parameter.data for name, parameter in self.module.named_parameters()}

    def part(self, kept: Kept) -> "TextBase":
        """A smaller model of the kept units; what is not cut is shared."""
        if not kept:
            return self
        part = tree.cut(self.weights, tree.plan_of(axes_of(self.module), kept))
        # Products want rows that lie close together.
        tensors = {name: tensor.contiguous() for name, tensor in part.items()}
        tokens = self.tokens
        if "vocab" in kept:
            tokens = kept["vocab"] if tokens is None else tokens[kept["vocab"]]
        return replace(self, module=shrink(self.module, tensors, kept), tokens=tokens)

    def rescale(self, learner: Learner, axes: Axes, kept: Kept) -> None:
        """Multiplies what a part's closing projections read by units / kept units, for as long as the learner lives."""
        assert isinstance(learner, TextLearner)
        rescale(learner.plain(), axes, kept)

    def nested(
        self, learner: Learner, plans: Sequence[tuple[Plan, Plan]], generator: torch.Generator, *, distill: bool
    ) -> NestedLearner:
        """A learner that draws a width for every loss.

        Args:
            learner: over all that a client holds; one of this class.
            plans: for every narrower width, positions of the part's weights and of its adapter's tensors.
            generator: draws the widths.
            distill: the narrower ones learn from the widest besides.
        """
        assert isinstance(learner, TextLearner)
        return NestedLearner(learner, tuple(narrow(learner, *pair) for pair in plans), distill, generator)

    def replica(self, *, private: bool) -> nn.Module:
        """Modules of its own over the shared tensors, or over an fp32 copy of them if they are to be trained.

        Raises:
            ModelError: they are to be trained, and are held in few bits.
        """
        if private and any(isinstance(parameter, Quantised) for parameter in self.module.parameters()):
            raise ModelError(
                "the model's own weights cannot be trained where they are held in few bits (model.dtype=int8 or gguf): "
                "a step is smaller than the distance between two numbers. Choose an adapter beside them, such as "
                "adapter=lora, or model.dtype=float32 or bfloat16"
            )
        own: dict[int, Any] = {id(tensor): tensor for tensor in (*self.module.parameters(), *self.module.buffers())}
        if private:
            # Straight into fp32: a copy in the type of the base would be there beside.
            own = {key: _own(tensor) for key, tensor in own.items()}
        return copy.deepcopy(self.module, own)

    def learner(
        self, module: nn.Module, parameters: Mapping[str, nn.Parameter], window: Plan | None = None
    ) -> "TextLearner":
        """Puts a module with its adapter to work.

        Args:
            module: a replica with the adapter on.
            parameters: the adapter's parameters by name; those that need a gradient are trained.
            window: positions of them that are trained while the rest stays frozen; None trains all.

        Raises:
            ModelError: no window of such a tensor can be trained.
        """
        trained, loaded = dict(parameters), {name: parameter.data for name, parameter in parameters.items()}
        if window is not None:
            trained, loaded = open_windows(module, parameters, window)
        trained = {name: parameter for name, parameter in trained.items() if parameter.requires_grad}
        ways = (self.max_length, self.checkpointing, self.chunk_tokens, self.tokens)
        return TextLearner(module, self.tokenizer, trained, loaded, *ways)


def _own(tensor: Tensor) -> Tensor:
    """An fp32 copy; numbers that are not real stay of their type."""
    copied = tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
    return nn.Parameter(copied, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


def blocks_of(weights: State, axes: Axes) -> dict[str, int]:
    """Units that can only be kept together of each axis that is cut in the columns of a matrix in few bits."""
    found: dict[str, int] = {}
    for name, weight in weights.items():
        if isinstance(weight, Quantised):
            columns = axes.dims[name][0 if weight.transposed else 1]
            if columns is not None and weight.rows.grain > 1:
                units = weight.rows.grain // math.gcd(weight.rows.grain, columns.span)
                found[columns.axis] = math.lcm(units, found.get(columns.axis, 1))
    return {axis: block for axis, block in found.items() if block > 1}


def check_family(learner: TextLearner) -> None:
    """Compares packed examples with plain forward passes, once per model.

    Guards against families whose logits are more than ``head(hidden)`` (soft-capping, scaling, a bias) or whose
    attention does not take the mask of a packed row.

    Raises:
        ModelError: the numbers differ.
    """
    tokens = torch.arange(len(learner.tokenizer)) if learner.tokens is None else learner.tokens
    places = [torch.tensor([(7 + 3 * n + k * k) % len(tokens) for k in range(6 + n)]) for n in range(2)]
    samples = [Encoded(tuple(tokens[place].tolist()), 3) for place in places]
    ours = learner.score(samples)
    for place, sample, score in zip(places, samples, ours, strict=True):
        ids: Int[Tensor, "1 length"] = place[None]
        with torch.no_grad():
            logits = learner.module(input_ids=ids, use_cache=False).logits[0].float()
        plain = torch.nn.functional.cross_entropy(
            logits[sample.num_prompt - 1 : -1], ids[0, sample.num_prompt :], reduction="sum"
        )
        if abs(float(plain) - score.nll) > 0.02 * abs(float(plain)) + 0.02:
            kind = type(learner.module).__name__
            raise ModelError(
                f"{kind} is not supported: packed examples give a loss of {score.nll:.4f}, a plain forward pass gives "
                f"{float(plain):.4f}. Its logits are more than a linear head on the last hidden state, or its attention"
                " ignores a four-dimensional mask"
            )
