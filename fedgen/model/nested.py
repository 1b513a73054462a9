"""A learner whose every step uses a width of its own: narrower models that share the weights of the one it holds.

Ordered dropout: Horváth et al., "FjORD: Fair and Accurate Federated Learning under heterogeneous targets with Ordered
Dropout", NeurIPS 2021, sections 3 and 3.2 (self-distillation). The narrower models hold views and no weights of their
own, so a width costs its modules and nothing else.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgen import tree
from fedgen.dryrun import in_numbers, is_dry
from fedgen.model.loss import mean_loss, restrict
from fedgen.model.part import tell_sizes
from fedgen.model.text import TextLearner
from fedgen.types import Encoded, Example, Index, Plan, Prompt, Score, Scores, State


@dataclass(frozen=True)
class Narrower:
    """A model that takes some units of another.

    Attributes:
        learner: the narrower model at work; its weights are put in before each use.
        views: (its module, name there, the weight of the wider model, positions of it per dimension).
    """

    learner: TextLearner
    views: tuple[tuple[nn.Module, str, Tensor, tuple[Index | None, ...]], ...]

    def refresh(self) -> TextLearner:
        """Puts in the wider model's weights as they are now; gradients flow back to them."""
        for module, name, weight, kept in self.views:
            view = weight
            for dim, index in enumerate(kept):
                if index is not None:
                    # The first units lie together: a view of them costs nothing.
                    with in_numbers():
                        first, last = int(index[0]), int(index[-1])
                    together = last - first + 1 == len(index)
                    view = view.narrow(dim, first, len(index)) if together else view.index_select(dim, index)
            setattr(module, name, view)
        tell_sizes(self.learner.module)
        return self.learner


@dataclass(frozen=True)
class NestedLearner:
    """A learner that draws a width for every loss.

    Attributes:
        widest: what the client holds.
        drawn: the models to draw from, ascending in width; the widest among them has no views.
        distill: the narrower one learns from the widest besides (FjORD, equation 3, with temperature 1).
        generator: draws the widths.
    """

    widest: TextLearner
    drawn: tuple[Narrower, ...]
    distill: bool
    generator: torch.Generator

    def loss(self, batch: Sequence[Encoded], among: Index | None = None) -> Float[Tensor, ""]:
        """Loss of the model of a drawn width; with distillation, that of the widest and of the drawn one together."""
        drawn = self.drawn[self._draw()]
        learner = drawn.refresh()
        if not self.distill or not drawn.views:
            return learner.loss(batch, among)
        packed, among = self.widest.packed(batch), self.widest.places(among)
        taught, (head, targets) = self.widest.hidden(packed), restrict(self.widest.head(), packed.targets, among)
        wanted = (taught @ head.T).detach().float().softmax(1)
        given = (learner.hidden(packed) @ restrict(learner.head(), targets, among)[0].T).float()
        own = mean_loss(taught, head, targets, self.widest.chunk_tokens)
        return own + nn.functional.cross_entropy(given, wanted)

    def _draw(self) -> int:
        """Which of the models a step uses; where no number can be drawn, the one whose step takes most memory."""
        if not is_dry():
            return int(torch.randint(len(self.drawn), (), generator=self.generator))
        narrower = [number for number, one in enumerate(self.drawn) if one.views]
        # The widest is computed beside the one that learns from it.
        return narrower[-1] if self.distill and narrower else len(self.drawn) - 1

    @property
    def module(self) -> nn.Module:
        """That of the widest."""
        return self.widest.module

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401 - transformers has no public base type for all of its tokenizers
        """That of the widest."""
        return self.widest.tokenizer

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Those of the widest; all narrower ones are views of them."""
        return self.widest.parameters()

    def state(self) -> State:
        """That of the widest."""
        return self.widest.state()

    def load(self, state: State) -> None:
        """Into the widest."""
        self.widest.load(state)

    def encode(self, examples: Sequence[Example]) -> list[Encoded | None]:
        """As the widest does."""
        return self.widest.encode(examples)

    def holds(self, encoded: Encoded) -> bool:
        """As the widest does."""
        return self.widest.holds(encoded)

    def score(self, batch: Sequence[Encoded]) -> list[Score]:
        """Of the widest."""
        return self.widest.score(batch)

    def generate(self, prompt: Prompt, max_new_tokens: int = 64) -> str:
        """Of the widest."""
        return self.widest.generate(prompt, max_new_tokens)

    def importance(self, batch: Sequence[Encoded]) -> Scores:
        """Of the widest."""
        return self.widest.importance(batch)


def narrow(learner: TextLearner, base_plan: Plan, plan: Plan) -> Narrower:
    """A narrower model of a wider one.

    Args:
        learner: the wider model.
        base_plan: positions of each of its weights, by the name of the weight.
        plan: the same for the tensors of its adapter.
    """
    memo: dict[int, Any] = {id(buffer): buffer for buffer in learner.module.buffers()}
    memo |= {id(parameter): parameter for parameter in learner.module.parameters()}
    module = copy.deepcopy(learner.module, memo)
    # A tensor of the adapter is known by where its numbers lie: PEFT has names of its own for them.
    adapted = {learner.tensors[name].data_ptr(): kept for name, kept in plan.items()}
    # By the first of its names, under which a tied weight stands in the plan.
    weights = {
        id(parameter): name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        for name, parameter in learner.module.named_parameters()
    }
    views = []
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            kept = adapted.get(parameter.data_ptr()) or base_plan.get(weights[id(parameter)])
            # Of the widest the plan may name all positions, one by one; it is no view then.
            if kept is not None and tree.extent(parameter, kept) != list(parameter.shape):
                # Only where a module has no parameter does it take a tensor that is a view of one.
                del child._parameters[name]
                views.append((child, name, parameter, kept))
    return Narrower(replace(learner, module=module), tuple(views))
