"""Units drawn at random, anew in every round: Federated Dropout.

Caldas et al., "Expanding the Reach of Federated Learning by Reducing Client Resource Requirements", 2018: a fixed
number of units of each layer, so that what is left is dense. There is one draw per axis, not one per tensor: all
tensors along an axis lose the same units, so that the part is a model.
"""

from dataclasses import dataclass

import torch

from fedgen import seeds
from fedgen.extraction import kinds
from fedgen.types import Choice, Index, Steps


@dataclass(frozen=True)
class Random:
    """Units drawn at random in every round (Federated Dropout).

    Attributes:
        axes: kinds of the axes that are cut: ffn, kv, residual, rank, vocab.
        shared: one draw per round for all clients, of which a narrower client holds the first part; otherwise each
            client has a draw of its own.
    """

    axes: tuple[str, ...] = ("ffn", "kv")
    shared: bool = False

    def __post_init__(self) -> None:
        """Refuses axes that are not cut."""
        kinds.check(self.axes)

    @property
    def needs_scores(self) -> bool:
        """False."""
        return False

    def keep(self, choice: Choice) -> Index:
        """The first ``num_kept`` units of a permutation that seed, axis, round and client fix."""
        client = "" if self.shared else choice.client
        generator = seeds.derive(choice.seed, f"extraction {choice.axis}", choice.round, client)
        return torch.randperm(choice.units, generator=generator)[: choice.num_kept].sort().values

    def steps(self, width: float) -> Steps:
        """Every step uses all that the client holds."""
        return Steps()
