"""Every client gets the whole model: FedAvg as it was published.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
"""

from dataclasses import dataclass

from fedgen.types import Index


@dataclass(frozen=True)
class Full:
    """The whole model for everybody."""

    def keep(self, axis: str, units: int, round: int, client: str) -> Index | None:
        """None: all units of every axis."""
        return None
