"""The units that matter most to the model.

A pretrained model that loses half of its units at random, or by their position, starts worse than chance; if those with
the largest scores stay, it still works. Scores of units that the server keeps and chooses by: Bouacida et al.,
"Adaptive Federated Dropout: Improving Communication Efficiency and Generalization for Federated Learning", 2020. What
the scores are is the model's affair (`Learner.importance`).
"""

from dataclasses import dataclass

import torch

from fedgen.extraction import kinds
from fedgen.types import Choice, Index, Steps


@dataclass(frozen=True)
class Importance:
    """The units that matter most to the model.

    Attributes:
        axes: kinds of the axes that are cut: ffn, kv, residual, rank, vocab.
    """

    axes: tuple[str, ...] = ("ffn", "kv")

    def __post_init__(self) -> None:
        """Refuses axes that are not cut."""
        kinds.check(self.axes)

    @property
    def needs_scores(self) -> bool:
        """True."""
        return True

    def keep(self, choice: Choice) -> Index:
        """The ``num_kept`` units with the largest scores; of equal ones those that come first."""
        assert choice.scores is not None, "importance needs scores"
        order = torch.argsort(choice.scores, descending=True, stable=True)
        return order[: choice.num_kept].sort().values

    def steps(self, width: float) -> Steps:
        """Every step uses all that the client holds."""
        return Steps()
