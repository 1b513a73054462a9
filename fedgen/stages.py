"""What each stage must do: one Protocol per stage, named like it, and those of the model at work.

A stage is a folder, an option of a stage is one frozen dataclass in one file, and every one of them fulfils the
Protocol here that bears the stage's name. Building an option is free; work happens in its calls. Randomness is an
argument.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgen.types import (
    Axes,
    Card,
    Dataset,
    Encoded,
    Example,
    Index,
    Metrics,
    Observer,
    Payload,
    Prompt,
    Reply,
    Request,
    Score,
    State,
    Update,
)

# --- the model at work -------------------------------------------------------------------------------------------


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
        """Copies the given tensors into the trainable parameters."""

    def encode(self, examples: Sequence[Example]) -> list[Encoded | None]:
        """Token ids of each example; None where truncation leaves no answer token."""

    def loss(self, batch: Sequence[Encoded]) -> Float[Tensor, ""]:
        """Mean negative log-likelihood per answer token, differentiable."""

    def score(self, batch: Sequence[Encoded]) -> list[Score]:
        """Loss and exactness of each example from one teacher-forced pass, without gradient."""

    def generate(self, prompt: Prompt, max_new_tokens: int = 64) -> str:
        """The greedy answer."""


@runtime_checkable
class Base(Protocol):
    """A loaded model: weights that all workers share, and the tokenizer."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights' file, or of the recipe that makes them."""

    def replica(self, *, private: bool) -> nn.Module:
        """A module over the shared weights, or over a private copy of them if they are to be trained."""

    def learner(self, module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Learner:
        """Puts a module and its trainable parameters to work."""


# --- one Protocol per stage --------------------------------------------------------------------------------------


@runtime_checkable
class Data(Protocol):
    """What the examples are and who owns them."""

    def load(self, seed: int) -> Dataset:
        """The examples. Same seed, same examples."""

    def prompt(self, text: str) -> Prompt:
        """A user's text in the form in which the examples put theirs."""


@runtime_checkable
class Partition(Protocol):
    """Which client holds which examples."""

    def split(self, examples: Sequence[Example], generator: torch.Generator) -> dict[str, list[int]]:
        """Client name → positions of its examples; disjoint, names sorted."""


@runtime_checkable
class Model(Protocol):
    """Loads a model."""

    def load(self, seed: int) -> Base:
        """The weights, once. The seed matters only to models whose weights are drawn at random."""


@runtime_checkable
class Adapter(Protocol):
    """What is trainable."""

    @property
    def trains_base(self) -> bool:
        """Whether the model's own weights change, so that workers cannot share them."""

    def attach(self, module: nn.Module) -> nn.Module:
        """Makes the module trainable in place of, or besides, its own weights."""

    def parameters(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """Trainable parameters by the name that they have in a State."""

    def initial(self, module: nn.Module, generator: torch.Generator) -> State:
        """The state with which a federation starts."""

    def axes(self, state: State) -> Axes:
        """Names of the dimensions of the state's tensors."""


@runtime_checkable
class Extraction(Protocol):
    """Which part of the model a client gets.

    An option picks units of a named axis, and never sees a tensor.
    """

    def keep(self, axis: str, units: int, round: int, client: str) -> Index | None:
        """Units of the axis that this client gets in this round; None for all."""


@runtime_checkable
class Client(Protocol):
    """What a client does with its part."""

    def train(
        self, learner: Learner, examples: Sequence[Encoded], progress: float, generator: torch.Generator
    ) -> Metrics:
        """Changes the learner's trainable tensors by learning from the examples; says what happened.

        Raises:
            ClientError: the result is unusable (`non_finite_loss`, say).
        """


@runtime_checkable
class Wire(Protocol):
    """State ↔ bytes."""

    def encode(self, state: State) -> Payload:
        """Packs a state."""

    def decode(self, payload: Payload) -> State:
        """Unpacks it.

        Raises:
            ClientError: manifest and bytes do not fit together (`malformed`).
        """


@runtime_checkable
class Aggregation(Protocol):
    """Many updates → next state.

    A running total is folded update by update, so no more than one update is held.
    """

    def init(self, state: State) -> State:
        """The server optimiser's own state; empty if it has none."""

    def zero(self, state: State) -> Any:  # noqa: ANN401 - each option has its own kind of total
        """An empty total."""

    def add(self, total: Any, update: Update) -> None:  # noqa: ANN401
        """Folds one update into the total, in place. The order of the updates changes no bit of the result.

        Raises:
            ClientError: the update cannot be folded; the total is unchanged then.
        """

    def apply(self, state: State, server: State, total: Any) -> tuple[State, State]:  # noqa: ANN401
        """The next state and the next server state."""


@runtime_checkable
class Evaluation(Protocol):
    """Numbers about a model."""

    @property
    def metric(self) -> str:
        """Name of the number that is followed every round."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger number is better."""

    def measure(self, learner: Learner, examples: Sequence[Example]) -> list[Metrics]:
        """Raw numbers of each example of one batch, in order."""

    def summarise(self, rows: Sequence[Metrics]) -> Metrics:
        """Numbers of a split from the numbers of its examples."""


@runtime_checkable
class Export(Protocol):
    """Gives the model away."""

    @property
    def folder_name(self) -> str:
        """Name of the folder in the run."""

    @property
    def needs_adapter(self) -> bool:
        """Whether there must be an adapter beside the model's own weights."""

    def write(self, learner: Learner, folder: Path, card: Card) -> None:
        """Writes what the recipient needs into an empty folder; the learner holds the final state."""


@runtime_checkable
class Federation(Protocol):
    """The driver: where clients live and how requests reach them."""

    def run(self, experiment: Any, run: Any, observe: Observer) -> None:  # noqa: ANN401 - defined in higher layers
        """Carries an experiment through, from its last checkpoint if there is one.

        Args:
            experiment: a `fedgen.experiment.Experiment`.
            run: a `fedgen.run.Run`, the folder that keeps everything.
            observe: is told of each thing as it happens.
        """


@runtime_checkable
class Transport(Protocol):
    """How the round loop talks to devices."""

    def nodes(self) -> list[str]:
        """Names of the clients that can be asked now, sorted."""

    def send(self, requests: Iterator[Request]) -> None:
        """Hands requests over; the iterator is drawn on as devices become free, so that few payloads exist at once."""

    def receive(self) -> Iterator[Reply]:
        """Replies as they come, one for every request sent; every fault comes back as an error reply."""
