"""Devices of several levels in a given mix.

Diao et al., "HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous Clients", ICLR
2021: five levels, each half as wide as the one before it, dealt out once (`fix`) or anew in every round (`dynamic`).
Alam et al., "FedRolex: Model-Heterogeneous Federated Learning with Rolling Sub-Model Extraction", NeurIPS 2022, add a
mix like that of devices in use: 6, 10, 11, 18 and 55 percent, widest first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedgen import seeds
from fedgen.devices import Device
from fedgen.fleet.dealing import deal


@dataclass(frozen=True)
class Levels:
    """Devices of several levels in a given mix (HeteroFL, FedRolex).

    Attributes:
        widths: share of the units of every cut axis that fits on a device, per level.
        shares: how common each level is, in any unit ([6,10,11,18,55] is FedRolex's mix of devices in use); null for
            equally many of each.
        redraw: every client's level is drawn anew in each round; otherwise it is dealt out once, in exact proportion.
        min_width: devices with less take no part, which is the baseline that leaves small devices out.
        has_base: devices keep the base model's checkpoint, so that only what is trained travels.
        delays: replies come in so many rounds after the one in which they are asked for, per level; null for all in the
            same round.
    """

    widths: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    shares: tuple[float, ...] | None = None
    redraw: bool = False
    min_width: float = 0.0
    has_base: bool = True
    delays: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, and a fleet without any device that may take part."""
        if not self.widths or not all(0 < width <= 1 for width in self.widths):
            raise ValueError(f"widths is {list(self.widths)}; it must be one or more shares above 0 and at most 1")
        if self.shares is not None and len(self.shares) != len(self.widths):
            raise ValueError(
                f"shares has {len(self.shares)} numbers; widths has {len(self.widths)}, one is due to each"
            )
        if not all(0 < share < math.inf for share in self.shares or ()):
            raise ValueError(f"shares is {list(self.shares or ())}; each must be positive, in whatever unit")
        if not 0 <= self.min_width <= max(self.widths):
            raise ValueError(
                f"min_width is {self.min_width}; it must be at least 0 and at most {max(self.widths)}, the largest of "
                "widths, or no device takes part"
            )
        if self.delays is not None and len(self.delays) != len(self.widths):
            raise ValueError(
                f"delays has {len(self.delays)} numbers; widths has {len(self.widths)}, one is due to each"
            )
        if not all(delay >= 0 for delay in self.delays or ()):
            raise ValueError(f"delays is {list(self.delays or ())}; each is rounds, at least 0 (in the same round)")

    def devices(self, clients: Sequence[str], round: int, seed: int) -> dict[str, Device]:
        """Client → its device; one below min_width has width 0.

        Levels that are dealt out once depend on who the clients are, but not on their order.
        """
        names = sorted(clients)
        levels = (
            [self._drawn(client, round, seed) for client in names] if self.redraw else deal(names, self._shares(), seed)
        )
        return {client: self._device(level) for client, level in zip(names, levels, strict=True)}

    def _device(self, level: int) -> Device:
        width = self.widths[level]
        delay = self.delays[level] if self.delays else 0
        return Device(width if width >= self.min_width else 0.0, self.has_base, delay)

    def _shares(self) -> tuple[float, ...]:
        return self.shares or (1.0,) * len(self.widths)

    def _drawn(self, client: str, round: int, seed: int) -> int:
        weights = torch.tensor(self._shares(), dtype=torch.float64)
        return int(torch.multinomial(weights, 1, generator=seeds.derive(seed, "fleet", round, client)))
