"""Raspberry Pi boards of several models, which tell their memory, so that the planner decides what each does.

Memory and cores are those of the boards' published specifications. How fast a board is is not written here: it is
measured on the board (``fedgen plan --measure``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedgen import seeds
from fedgen.devices import Device
from fedgen.fleet.dealing import deal

MIB = 1024**2

BOARDS = {
    "zero_2w": 512,
    "3b_plus": 1024,
    "4_1g": 1024,
    "4_2g": 2048,
    "4_4g": 4096,
    "4_8g": 8192,
    "5_2g": 2048,
    "5_4g": 4096,
    "5_8g": 8192,
    "5_16g": 16384,
}
"""Board → MiB of memory. All of them have four cores."""


@dataclass(frozen=True)
class RaspberryPi:
    """Raspberry Pi boards of several models; the planner fits each one's work to its memory.

    Attributes:
        boards: zero_2w, 3b_plus, 4_1g, 4_2g, 4_4g, 4_8g, 5_2g, 5_4g, 5_8g or 5_16g, dealt out to the clients.
        shares: how common each of them is, in any unit; null for equally many of each.
        system_mib: memory that the operating system and other programs keep.
        busy: chance that in a round other programs keep half of what is left, so that a board has to do with less.
        step_seconds: seconds of the reference step (`fedgen plan --measure`), one per board; null if not measured.
        link_mbit_per_s: of the connection, either way; null if not known.
        has_base: devices keep the base model's checkpoint, so that only what is trained travels.
    """

    boards: tuple[str, ...] = ("3b_plus", "4_2g", "4_4g", "5_8g")
    shares: tuple[float, ...] | None = None
    system_mib: int = 200
    busy: float = 0.0
    step_seconds: tuple[float, ...] | None = None
    link_mbit_per_s: float | None = None
    has_base: bool = True

    def __post_init__(self) -> None:
        """Refuses boards that do not exist, and values outside their range."""
        unknown = sorted(set(self.boards) - BOARDS.keys())
        if unknown or not self.boards:
            raise ValueError(f"boards is {list(self.boards)}; choose one or more of {', '.join(BOARDS)}")
        for name in ("shares", "step_seconds"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.boards):
                raise ValueError(f"{name} has {len(values)} numbers; boards has {len(self.boards)}, one is due to each")
            if not all(0 < value < math.inf for value in values or ()):
                raise ValueError(f"{name} is {list(values)}; each must be positive")
        smallest = min(BOARDS[board] for board in self.boards)
        if not 0 <= self.system_mib < smallest:
            raise ValueError(f"system_mib is {self.system_mib}; it must be at least 0 and below {smallest} MiB")
        if not 0 <= self.busy <= 1:
            raise ValueError(f"busy is {self.busy}; it is a chance, 0 to 1")
        if self.link_mbit_per_s is not None and not self.link_mbit_per_s > 0:
            raise ValueError(f"link_mbit_per_s is {self.link_mbit_per_s}; it must be positive, or null")

    def devices(self, clients: Sequence[str], round: int, seed: int) -> dict[str, Device]:
        """Client → its board as it is in this round. Who has which depends on the names, not on their order."""
        names = sorted(clients)
        kinds = deal(names, self.shares or (1.0,) * len(self.boards), seed)
        return {client: self._device(client, kind, round, seed) for client, kind in zip(names, kinds, strict=True)}

    def _device(self, client: str, kind: int, round: int, seed: int) -> Device:
        board = self.boards[kind]
        free = (BOARDS[board] - self.system_mib) * MIB
        if self.busy and float(torch.rand((), generator=seeds.derive(seed, "busy", round, client))) < self.busy:
            free //= 2
        return Device(
            has_base=self.has_base,
            kind=f"raspberry_pi_{board}",
            memory_bytes=free,
            cores=4,
            step_seconds=None if self.step_seconds is None else self.step_seconds[kind],
            link_bytes_per_s=None if self.link_mbit_per_s is None else self.link_mbit_per_s * 125_000,
        )
