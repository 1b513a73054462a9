"""What each stage must do: one Protocol per stage, named like it.

A stage is a folder, an option of a stage is one frozen dataclass in one file, and every one of them fulfils the
Protocol here that bears the stage's name. Building an option is free; work happens in its calls. Randomness is an
argument.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from fedgen.devices import Device, Rung
from fedgen.generating import Generator as Generator
from fedgen.learner import Base, Learner
from fedgen.messages import Payload
from fedgen.types import (
    Axes,
    Card,
    Choice,
    Dataset,
    Encoded,
    Example,
    Index,
    Kept,
    Metrics,
    Observer,
    Plan,
    Prompt,
    State,
    Steps,
    Trained,
    Update,
    Walk,
)


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

    @property
    def lightest(self) -> str:
        """Type in which its frozen weights take least memory."""

    def load(self, seed: int, kept: Kept | None = None, dtype: str | None = None) -> Base:
        """The weights, once.

        Args:
            seed: matters only to models that are drawn at random.
            kept: units of a part, whose weights alone are loaded; None for the whole.
            dtype: type in which frozen weights are held; None for the option's own.
        """

    def outline(self, seed: int, dtype: str | None = None) -> Base:
        """What `load` gives, without the weights where they are in a file: names, dimensions and tokens."""


@runtime_checkable
class Adapter(Protocol):
    """What is trainable."""

    @property
    def trains_base(self) -> bool:
        """Whether the model's own weights change, so that workers cannot share them."""

    def attach(self, module: nn.Module, names: Collection[str] | None = None) -> nn.Module:
        """Makes the module trainable in place of, or besides, its own weights.

        Args:
            module: the model, or a part of it.
            names: tensors of the state that this part has; None for all that the option gives to a whole model.
        """

    def parameters(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """Parameters of the adapter by the name that they have in a State."""

    def initial(self, module: nn.Module, generator: torch.Generator) -> State:
        """All of the adapter's tensors as a federation starts with them."""

    def is_fixed(self, name: str) -> bool:
        """Whether a tensor never changes: each side makes it from the seed, and it is in no State that travels."""

    def is_trained(self, name: str, round: int) -> bool:
        """Whether clients train a tensor in a round."""

    def axes(self, state: State, base: Axes) -> Axes:
        """Names of the dimensions of the adapter's tensors, which follow those of the weights that they adapt."""


@runtime_checkable
class Fleet(Protocol):
    """What devices there are."""

    def devices(self, clients: Sequence[str], round: int, seed: int) -> dict[str, Device]:
        """Client → what it has to work with in this round. Same arguments, same devices."""


@runtime_checkable
class Extraction(Protocol):
    """Which part of the model a client gets."""

    # An option picks units of a named axis, and never sees a tensor.
    @property
    def axes(self) -> tuple[str, ...]:
        """Kinds of the axes that are cut, such as `ffn` and `kv`; empty for none."""

    @property
    def needs_scores(self) -> bool:
        """Whether it has to be told how much each unit matters."""

    def keep(self, choice: Choice) -> Index:
        """Units of the axis that a client gets, ascending and without repetition; `num_kept` of them.

        Raises:
            ConfigError: with these numbers some units could never be picked by a rule that promises to reach all.
        """

    def steps(self, width: float) -> Steps:
        """How the local steps of a client that holds `width` use what it holds."""


@runtime_checkable
class Client(Protocol):
    """What a client does with its part."""

    @property
    def compares_losses(self) -> bool:
        """Whether a step compares losses of one batch, so that the loss must be the same function each time."""

    @property
    def needs_backward(self) -> bool:
        """Whether there is a backward pass, for which what layers compute has to be kept."""

    @property
    def num_at_once(self) -> int:
        """How many examples go through the model at once, at most."""

    @property
    def num_passes(self) -> int:
        """How often that happens in a round, if it is counted in steps."""

    @property
    def drops_gradients(self) -> bool:
        """Whether each gradient goes as soon as it is used, and does not wait for the others of its backward pass."""

    def held_bytes(self, trained_bytes: int, step_bytes: int) -> int:
        """Most that it holds beside what is trained, if examples on their way make `step_bytes`, gradients too."""

    def at(self, rung: Rung) -> "Client":
        """The same client on a rung of the planner's ladder."""

    def train(
        self, learner: Learner, examples: Sequence[Encoded], progress: float, generator: torch.Generator
    ) -> Trained:
        """Changes the learner's trainable tensors by learning from the examples; says by what, and what happened.

        Raises:
            ClientError: the result is unusable (`non_finite_loss`, say).
        """

    def trained_units(self, examples: Sequence[Encoded]) -> Kept:
        """Units that training on these examples is about, ascending; of those axes only of which it returns no others.

        Empty if it returns all of its part. Which axes there are does not depend on the examples.
        """


@runtime_checkable
class Selection(Protocol):
    """Which of its examples a client trains on."""

    @property
    def needs_scores(self) -> bool:
        """Whether the model has to say something of each example first."""

    def measure(self, learner: Learner, example: Encoded) -> float:
        """Score of an example that the client holds, by the whole model as it was loaded.

        It depends on these two alone, to the bit, so that it can be kept.
        """

    def keep(self, scores: Sequence[float], labels: Sequence[str]) -> list[int]:
        """Positions of the examples to train on, ascending; none whose score is not finite.

        Args:
            scores: one for each example; all 0 for an option that needs none.
            labels: their classes, empty where an example has none.
        """


@runtime_checkable
class Wire(Protocol):
    """State ↔ bytes."""

    def encode(self, state: State, plan: Plan | None = None, walk: Walk | None = None) -> Payload:
        """Packs a state, or what a plan keeps of it; an option may send the walk that the state is in its place."""

    def decode(self, payload: Payload, shapes: Mapping[str, tuple[int, ...]] | None = None) -> State:
        """Unpacks it.

        Args:
            payload: what came.
            shapes: of the tensors that are expected; a walk cannot be unpacked without.

        Raises:
            ClientError: manifest and bytes do not fit together (`malformed`).
        """


@runtime_checkable
class Aggregation(Protocol):
    """Many updates → next state."""

    # A running total is folded update by update, so no more than one update is held.
    def init(self, state: State) -> State:
        """The server optimiser's own state; empty if it has none."""

    def zero(self, state: State) -> Any:  # noqa: ANN401 - each option has its own kind of total
        """An empty total."""

    def add(self, total: Any, update: Update) -> None:  # noqa: ANN401
        """Folds one update into the total, in place. Updates come in the order of the clients' names.

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
