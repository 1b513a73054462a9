"""The nouns that stages exchange, and the Protocol of each stage.

A stage is a folder, an option of a stage is one frozen dataclass in one file, and every one of them fulfils the Protocol
here that bears the stage's name. Building an option is free; work happens in its calls. Randomness is an argument.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

State = dict[str, Tensor]
"""Named tensors: the trainable part of a model, or a change to it."""

Index = Int[Tensor, " _"]
"""Positions kept along one dimension, in the order in which they are kept."""

Plan = dict[str, tuple[Index | None, ...]]
"""Which part of a state a client gets: tensor name → kept positions per dimension (None: all of that dimension).

A tensor that is absent from the plan is not sent.
"""

Metrics = dict[str, float]

Record = dict[str, Any]
"""One thing that happened in a run, as plain JSON: a line of the journal, or news for a display. `kind` says which."""

Observer = Callable[[Record], None]


# --- examples ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]
"""Plain text, used as it is, or turns that go through the model's own chat template."""


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to learn: given the prompt, answer with the completion.

    Attributes:
        prompt: what the model sees; carries no loss.
        completion: the answer; the end-of-turn token is added by the model.
        owner: who holds it (a home, a device, a file); empty when nobody does.
        label: its class, for partitioners that skew labels (an intent, say); empty when it has none.
        alternatives: other answers that are right as well.
    """

    prompt: Prompt
    completion: str
    owner: str = ""
    label: str = ""
    alternatives: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What a person typed: the plain prompt, or the last turn of the conversation."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1].content


@dataclass(frozen=True)
class Dataset:
    """Examples to learn from and named splits to be measured on; the first split is the one followed every round."""

    train: tuple[Example, ...]
    evaluation: Mapping[str, tuple[Example, ...]]
    description: str = ""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as token ids.

    Attributes:
        ids: prompt followed by answer.
        num_prompt: how many of them are prompt; the rest carry the loss.
    """

    ids: tuple[int, ...]
    num_prompt: int


@dataclass(frozen=True, slots=True)
class Score:
    """What one teacher-forced pass says about one example.

    Attributes:
        nll: summed negative log-likelihood of the answer tokens, in nats.
        num_tokens: number of answer tokens.
        exact: every answer token is the model's first choice, that is, greedy decoding gives this very answer.
    """

    nll: float
    num_tokens: int
    exact: bool


# --- axes, updates and the wire ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axes:
    """Names of the dimensions of every trainable tensor, and how many units each named axis has.

    Attributes:
        dims: tensor name → one axis name per dimension; None marks a dimension that is never cut.
        units: axis name → number of units. A unit may span several positions (an attention head spans head_dim rows).
    """

    dims: Mapping[str, tuple[str | None, ...]]
    units: Mapping[str, int]


@dataclass(frozen=True)
class Payload:
    """What crosses the wire: one packed array and the manifest that says what lies in it, in order.

    Attributes:
        manifest: (tensor name, dtype name, shape) of each tensor.
        data: the bytes.
    """

    manifest: tuple[tuple[str, str, tuple[int, ...]], ...]
    data: UInt8[Tensor, "payload_bytes"]

    @property
    def num_bytes(self) -> int:
        """Bytes that travel for the tensors."""
        return self.data.numel()


@dataclass(frozen=True)
class Request:
    """What the server asks of one client in one round.

    Attributes:
        round: counted from 1.
        client: name of the client.
        progress: how much of the run is over, from 0 in the first round to 1 in the last.
        plan: which part of the state the payload holds.
        payload: that part.
    """

    round: int
    client: str
    progress: float
    plan: Plan
    payload: Payload


@dataclass(frozen=True)
class Reply:
    """What comes back. Either a payload with the change, or an error in a word.

    Attributes:
        round: the round of the request that it answers.
        client: name of the client.
        payload: the change to the tensors of the request (deltas, not weights); None when the client failed.
        num_examples: weight of the change.
        metrics: numbers about the client's work (loss, seconds, bytes of memory).
        error: why there is no payload; a fixed word, never text from the device.
    """

    round: int
    client: str
    payload: Payload | None = None
    num_examples: int = 0
    metrics: Metrics = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Update:
    """A client's change, unpacked and checked: deltas of the tensors in the plan."""

    plan: Plan
    tensors: State
    num_examples: int
    metrics: Metrics = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """What a model card tells of a run.

    Attributes:
        name: name of the run.
        base: where the base model came from, as in `model.source`.
        description: what the data is.
        settings: federation settings by dotted key.
        results: split → metric → (before, after).
    """

    name: str
    base: str
    description: str
    settings: Mapping[str, str]
    results: Mapping[str, Mapping[str, tuple[float, float]]]


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
    """Which part of the model a client gets: picks units of an axis and never sees a tensor."""

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
    """Many updates → next state. A running total is folded update by update, so no more than one is held."""

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
