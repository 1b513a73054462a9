"""The model at work, as stages see it: the loaded base, and a learner for each worker."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgen.devices import Rung
from fedgen.types import Axes, Encoded, Example, Index, Kept, Plan, Prompt, Score, Scores, State


@runtime_checkable
class Learner(Protocol):
    """A model with its adapter on, ready to be trained, measured and talked to. One per worker; not thread-safe."""

    @property
    def module(self) -> nn.Module:
        """The module itself: stock transformers, with PEFT on it if the adapter says so."""

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401 - transformers has no public base type for all of its tokenizers
        """The tokenizer, as transformers made it."""

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Trainable parameters by the name that they have in a State."""

    def state(self) -> State:
        """A copy of the trainable tensors."""

    def load(self, state: State) -> None:
        """Copies the given tensors into the model; some of them may not be trained."""

    def encode(self, examples: Sequence[Example]) -> list[Encoded | None]:
        """Token ids of each example; None where truncation leaves no answer token, or a token is not held."""

    def holds(self, encoded: Encoded) -> bool:
        """Whether the model has all tokens of an example, so that it can learn from it and be measured on it.

        Ids of tokens are the tokenizer's everywhere, whatever part of the vocabulary a model has.
        """

    def loss(self, batch: Sequence[Encoded], among: Index | None = None) -> Float[Tensor, ""]:
        """Mean negative log-likelihood per answer token, differentiable.

        Args:
            batch: examples.
            among: tokens that take part in the softmax, ascending; the answers are of these. None for all.
        """

    def score(self, batch: Sequence[Encoded]) -> list[Score]:
        """Loss and exactness of each example from one teacher-forced pass, without gradient."""

    def generate(self, prompt: Prompt, max_new_tokens: int = 64) -> str:
        """The greedy answer."""

    def importance(self, batch: Sequence[Encoded]) -> Scores:
        """How much each unit of every inner axis matters to this batch, and how often each token is in it."""


@runtime_checkable
class Base(Protocol):
    """A loaded model: weights that all workers share, and the tokenizer."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights' file, or of the recipe that makes them."""

    @property
    def max_length(self) -> int:
        """Longest example in tokens."""

    def at(self, rung: Rung) -> "Base":
        """The same weights, worked with as a rung of the planner's ladder says; itself if that changes nothing."""

    @property
    def axes(self) -> Axes:
        """Names of the dimensions of all weights.

        Raises:
            ModelError: the model is of a family whose parts are not known to be right.
        """

    @property
    def protected(self) -> Kept:
        """Units that every part keeps, by axis: tokens without which no text begins or ends.

        Every step of a client uses all that the client holds of such an axis, whatever the width of the step.
        """

    @property
    def weights(self) -> State:
        """All weights by name, shared; tied weights once."""

    def rescale(self, learner: Learner, axes: Axes, kept: Kept) -> None:
        """Multiplies what a part's closing projections read by units / kept units."""

    def part(self, kept: Kept) -> "Base":
        """A smaller model that consists of the kept units; tensors keep the names that they have in the whole."""

    def replica(self, *, private: bool) -> nn.Module:
        """A module over the shared weights, or over a private copy of them if they are to be trained."""

    def learner(self, module: nn.Module, parameters: Mapping[str, nn.Parameter], window: Plan | None = None) -> Learner:
        """Puts a module and the parameters that a State names to work.

        Those that need a gradient are trained; if a window is given, just those positions of them.
        """

    def nested(
        self, learner: Learner, plans: Sequence[tuple[Plan, Plan]], generator: torch.Generator, *, distill: bool
    ) -> Learner:
        """A learner that draws one of several narrower widths for every loss (positions of weights and of state)."""
