"""The nouns that stages exchange. What a stage must do with them stands in ``stages``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

State = dict[str, Tensor]
"""Named tensors: the trainable part of a model, or a change to it."""

Index = Int[Tensor, " _"]
"""Positions kept along one dimension, in the order in which they are kept."""

Plan = dict[str, tuple[Index | None, ...]]
"""Which part of a state a client gets: tensor name → kept positions per dimension (None: all of that dimension).

A tensor that is absent from the plan is not sent.
"""

Kept = dict[str, Index]
"""Units that are kept of each axis, ascending and without repetition; an axis that is absent is kept whole."""

Scores = dict[str, Float[Tensor, " units"]]
"""How much each unit of an axis matters to the model; larger is more. Axis → one number per unit."""

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
    """Examples to learn from and to be measured on.

    Attributes:
        train: examples to learn from.
        evaluation: named splits to be measured on; the first is the one followed every round.
        description: what the data is, where it comes from and under which licence.
        public: examples that anybody may see, in no split and with no owner; importance and the transfer gate are
            measured on them.
    """

    train: tuple[Example, ...]
    evaluation: Mapping[str, tuple[Example, ...]]
    description: str = ""
    public: tuple[Example, ...] = ()


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


# --- axes, parts and updates ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dim:
    """Where the units of an axis lie along one dimension of a tensor.

    Unit u takes the positions ``start + u * span`` up to ``start + (u + 1) * span`` for every start.

    Attributes:
        axis: name of the axis.
        span: consecutive positions per unit (an attention head spans head_dim rows).
        starts: where runs of units begin; a fused query-key-value projection has three.
    """

    axis: str
    span: int = 1
    starts: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Axes:
    """Names of the dimensions of tensors, and how many units each named axis has.

    What an axis is of stands before the dot in its name: `ffn.3` is the feed-forward width of layer 3.

    Attributes:
        dims: tensor name → one Dim per dimension; None marks a dimension that is never cut.
        units: axis name → number of units.
        members: tensor name → (axis, unit) without which the tensor is not there: the layer that it belongs to.
        closings: axis name → the weight that reads it and ends it: its inputs are the units.
        input_first: weights whose first dimension is the input (GPT-2 stores them so).
        blocks: axis name → units that can only be kept together, counted from the first; absent for one.
    """

    dims: Mapping[str, tuple[Dim | None, ...]]
    units: Mapping[str, int]
    members: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    closings: Mapping[str, str] = field(default_factory=dict)
    input_first: frozenset[str] = frozenset()
    blocks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """How much of the model a client works with, and which units.

    Attributes:
        width: share of the units of every cut axis.
        kept: the units; axes of which it has everything are left out, so that of the whole model it is empty.
        missed: rounds in which the client could not be asked so far, since it was still at work; the units follow from
            it, as they do from the round.
        top_layers: share of the layers that it trains, counted from the last; it holds the others as they are.
        rank: rows of low-rank factors that it holds, the first ones; None for all.
    """

    width: float = 1.0
    kept: Kept = field(default_factory=dict)
    missed: int = 0
    top_layers: float = 1.0
    rank: int | None = None


@dataclass(frozen=True)
class Steps:
    """How the local steps of a client use the part that it holds.

    Attributes:
        widths: each step draws one of these, at most the part's own; empty if every step uses the whole part.
        distill: a step with a smaller width also learns from the answers of the whole part.
    """

    widths: tuple[float, ...] = ()
    distill: bool = False


@dataclass(frozen=True)
class Choice:
    """What an extraction chooses from: one axis, for one client, in one round.

    Attributes:
        axis: name of the axis.
        units: number of its units.
        num_kept: how many to keep.
        round: counted from 1.
        client: name of the client.
        place: position of the client among all clients, from 0.
        num_clients: number of all clients.
        seed: of the run; randomness is derived from it.
        scores: how much each unit matters; None for an extraction that does not ask.
        missed: earlier rounds in which the client could not be asked, since it was still at work. What goes through the
            units in turn counts rounds without these, or a client that misses every second round sees half of them.
    """

    axis: str
    units: int
    num_kept: int
    round: int
    client: str
    place: int = 0
    num_clients: int = 1
    seed: int = 0
    scores: Float[Tensor, " units"] | None = None
    missed: int = 0


@dataclass(frozen=True)
class Walk:
    """A change as steps along seeded directions, one after the other (`directions.replay`).

    Attributes:
        seeds: of each step's direction.
        scales: how far each step goes, in fp32.
    """

    seeds: Int[Tensor, " steps"]
    scales: Float[Tensor, " steps"]


@dataclass(frozen=True)
class Trained:
    """What comes of a client's training.

    Attributes:
        change: deltas of the learner's trainable tensors.
        metrics: numbers about the work.
        walk: the same change, to the bit, as steps along seeded directions; None if it did not come about like that.
    """

    change: State
    metrics: Metrics
    walk: Walk | None = None


@dataclass(frozen=True)
class Update:
    """A client's change, unpacked and checked: deltas of the tensors in the plan.

    Attributes:
        plan: where the changes belong.
        tensors: the changes.
        num_examples: that they come of.
        metrics: numbers about the client's work.
        staleness: rounds since the client was asked; the changes are to the state of that time.
        discount: the update's weight is multiplied by it; 1 if it is not stale.
    """

    plan: Plan
    tensors: State
    num_examples: int
    metrics: Metrics = field(default_factory=dict)
    staleness: int = 0
    discount: float = 1.0


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
