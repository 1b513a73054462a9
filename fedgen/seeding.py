"""How a federation is seeded: the adapter is tuned on synthetic examples before the first round.

GPT-FL: Zhang et al., "GPT-FL: Generative Pre-trained Model-Assisted Federated Learning", 2023, arXiv 2306.02210, stages
3 and 4: a model is trained centrally on what a generator wrote, and plain federated learning starts from there. Here
the model is pretrained already, so what is tuned is the adapter, and a gate asks whether that has helped before anybody
gets it. ``sowing`` does what these settings say.
"""

from dataclasses import dataclass

from fedgen.stages import Client


@dataclass(frozen=True)
class Seeding:
    """How the adapter is tuned on what the generator writes, before the first round.

    Attributes:
        client: how the server trains: turn after turn as a client does, each with learning rates of another round.
        task: what the examples are about: a task that comes with fedgen, or a yaml file.
        num_examples: synthetic examples that are wanted, of all labels together.
        surplus: drafts asked for, as a multiple of that; filters take some out, a weak generator's more than half.
        num_held_out: synthetic examples by which tuning is followed; they are drawn with another seed.
        num_turns: turns of training at most.
        check_every: turns between two looks at the held-out examples; tuning stops when their loss has not fallen in
            two of them.
        public_share: share of public examples among those trained on, half of the public ones being kept for the gate;
            with 1 there are no others and the generator is not asked: the control for what it is worth.
        min_gain: on public examples the right answer must become so many nats per token likelier after its own prompt,
            as against after another's; examples with wrong labels teach what answers look like, and not this.
        asks_clients: clients of the first round measure the model with the seed and without, before any training.
        num_asked: examples with which each of them does so, at most.
        margin: nats per token by which the loss of the worst tenth of the clients may rise; the mean may not.
        healing_share: after each round the server takes a turn on synthetic examples, and so much of its change counts.
    """

    client: Client
    task: str = "smart_home"
    num_examples: int = 1000
    surplus: float = 1.25
    num_held_out: int = 96
    num_turns: int = 25
    check_every: int = 5
    public_share: float = 0.05
    min_gain: float = 0.05
    asks_clients: bool = True
    num_asked: int = 32
    margin: float = 0.05
    healing_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        for name in ("num_examples", "num_held_out", "num_turns", "check_every", "num_asked"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.surplus >= 1:
            raise ValueError(f"surplus is {self.surplus}; it must be at least 1 (no more drafts than examples)")
        for name in ("public_share", "healing_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share, from 0 to 1")
        for name in ("min_gain", "margin"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it is nats per token, at least 0")
        if self.healing_share and self.public_share == 1:
            raise ValueError(
                f"healing_share is {self.healing_share} and public_share is 1; there are no synthetic examples to heal "
                "with. Set one of them lower"
            )

    @property
    def is_synthetic(self) -> bool:
        """Whether the generator is asked at all."""
        return self.public_share < 1
