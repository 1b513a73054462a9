"""The first units of every axis, the same in every round: HeteroFL.

Diao et al., "HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous Clients", ICLR
2021. A smaller part lies within every larger one. Units beyond the widest device's are never trained, so the model is
in effect no larger than what that device holds.
"""

from dataclasses import dataclass

import torch

from fedgen.extraction import kinds
from fedgen.types import Choice, Index, Steps


@dataclass(frozen=True)
class Static:
    """The first units, the same in every round (HeteroFL).

    Attributes:
        axes: kinds of the axes that are cut: ffn, kv, residual, rank, vocab.
    """

    axes: tuple[str, ...] = ("ffn", "kv")

    def __post_init__(self) -> None:
        """Refuses axes that are not cut."""
        kinds.check(self.axes)

    @property
    def needs_scores(self) -> bool:
        """False."""
        return False

    def keep(self, choice: Choice) -> Index:
        """The first ``num_kept`` units."""
        return torch.arange(choice.num_kept)

    def steps(self, width: float) -> Steps:
        """Every step uses all that the client holds."""
        return Steps()
