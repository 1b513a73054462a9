"""A client trains on every example that it has: FedAvg as it was published.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedgen.learner import Learner
from fedgen.types import Encoded


@dataclass(frozen=True)
class All:
    """Every example that it has."""

    @property
    def needs_scores(self) -> bool:
        """False."""
        return False

    def measure(self, learner: Learner, example: Encoded) -> float:
        """0; the model is not asked."""
        return 0.0

    def keep(self, scores: Sequence[float], labels: Sequence[str]) -> list[int]:
        """All positions."""
        return list(range(len(scores)))
