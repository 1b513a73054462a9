"""Every client gets the whole model: FedAvg as it was published.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
"""

from dataclasses import dataclass

import torch

from fedgen.types import Choice, Index, Steps


@dataclass(frozen=True)
class Full:
    """The whole model for everybody."""

    @property
    def axes(self) -> tuple[str, ...]:
        """None: nothing is cut, whatever a device has to work with."""
        return ()

    @property
    def needs_scores(self) -> bool:
        """False."""
        return False

    def keep(self, choice: Choice) -> Index:
        """All units."""
        return torch.arange(choice.units)

    def steps(self, width: float) -> Steps:
        """Every step uses all."""
        return Steps()
