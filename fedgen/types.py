"""The nouns that stages exchange. What a stage must do with them stands in ``stages``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Int, UInt8
from torch import Tensor

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
    data: UInt8[Tensor, " payload_bytes"]

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
