"""All devices are alike: the two ends between which mixed fleets lie.

At width 1 everybody holds the whole model, and at a small width nobody holds more than the weakest device would. These
are the homogeneous baselines, largest and smallest, of Alam et al., "FedRolex: Model-Heterogeneous Federated Learning
with Rolling Sub-Model Extraction", NeurIPS 2022.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedgen.devices import Device


@dataclass(frozen=True)
class Uniform:
    """All devices are alike.

    Attributes:
        width: share of the units of every cut axis that fits on a device.
        has_base: devices keep the base model's checkpoint, so that only what is trained travels.
        delay: replies come in so many rounds after the one in which they are asked for.
    """

    width: float = 1.0
    has_base: bool = True
    delay: int = 0

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if not 0 < self.width <= 1:
            raise ValueError(f"width is {self.width}; it must be above 0 and at most 1 (the whole model)")
        if self.delay < 0:
            raise ValueError(f"delay is {self.delay}; it is rounds, at least 0 (a reply in the same round)")

    def devices(self, clients: Sequence[str], round: int, seed: int) -> dict[str, Device]:
        """The same device for every client in every round."""
        return {client: Device(self.width, self.has_base, self.delay) for client in sorted(clients)}
