"""A window that moves along the axis round by round and wraps around: FedRolex.

Alam et al., "FedRolex: Model-Heterogeneous Federated Learning with Rolling Sub-Model Extraction", NeurIPS 2022. As
published the window moves by one unit per round, which is the default here: a cycle takes as many rounds as the axis
has units, more than most runs have on the axes of a language model. ``stride=null`` tiles the axis instead and is
through with it in ceil(1 / width) rounds. The released code moves backward; the paper's figure and this option move
forward.

Coverage. Windows start at multiples of the stride modulo n units, that is, at multiples of g = gcd(n, stride). With k
units kept and g > k, some units never fall into a window; ``keep`` refuses that. Over n / g rounds every unit is held
equally often if, and only if, g divides k. With blocks, all of this holds of blocks.

If both dimensions of a matrix roll in phase, as those of the residual stream do, entry (a, b) is held only if a and b
lie within one window: at width 1/4 half of the entries are never trained, however long the run. The default axes cut
one dimension of every matrix, where this does not occur.

Late clients. In FedRolex a round is the server's, and all who are asked in it share a window. A device whose reply
comes two rounds late can be asked in every third round only; with three tiles it would see one of them for ever. So
rounds that a client misses because it is still at work do not count for it, and its window moves on by one stride from
each round to the next in which it could be asked: the law above holds of these rounds. For clients that are never late
nothing differs, and a cohort that is drawn at random shares one window.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from fedgen.errors import ConfigError
from fedgen.extraction import kinds
from fedgen.types import Choice, Index, Steps


@dataclass(frozen=True)
class Rolling:
    """A window that moves on in every round and wraps around (FedRolex).

    Rounds that a client misses since it is still at work do not count for it.

    With blocks, ceil(num_kept / block) of them are kept. That can be up to block - 1 units more than were asked for;
    the last block of an axis may be short, and a window that holds it has so many units less. An axis of one block is
    kept whole.

    Attributes:
        axes: kinds of the axes that are cut: ffn, kv, residual, rank, vocab.
        stride: units by which the window moves per round; null moves it by its own size.
        block: units that are kept or left together; windows start at multiples of it.
        phase: all clients share one window per size, or they are spread evenly over the axis (striped).
    """

    axes: tuple[str, ...] = ("ffn", "kv")
    stride: int | None = 1
    block: int = 1
    phase: Literal["shared", "striped"] = "shared"

    def __post_init__(self) -> None:
        """Refuses axes that are not cut, and a stride that does not go with the block."""
        kinds.check(self.axes)
        if self.block < 1:
            raise ValueError(f"block is {self.block}; it must be at least 1")
        if self.stride is not None and (self.stride < 1 or self.stride % self.block):
            raise ValueError(
                f"stride is {self.stride}; with block {self.block} it must be a positive multiple of {self.block}, "
                "or null for the size of the window"
            )

    @property
    def needs_scores(self) -> bool:
        """False."""
        return False

    def keep(self, choice: Choice) -> Index:
        """The window of this round, ascending even where it wraps around.

        Raises:
            ConfigError: with this stride a window of this size never reaches some units.
        """
        num_blocks, num_kept = math.ceil(choice.units / self.block), math.ceil(choice.num_kept / self.block)
        stride = num_kept if self.stride is None else self.stride // self.block
        if math.gcd(num_blocks, stride) > num_kept:
            raise ConfigError(self._unreachable(choice.axis, num_blocks, num_kept))
        start = (choice.round - choice.missed - 1) * stride
        if self.phase == "striped":
            start += choice.place * num_blocks // choice.num_clients
        blocks = ((start + torch.arange(num_kept)) % num_blocks).sort().values
        units = (blocks[:, None] * self.block + torch.arange(self.block)).view(-1)
        return units[units < choice.units]

    def steps(self, width: float) -> Steps:
        """Every step uses all that the client holds."""
        return Steps()

    def _unreachable(self, axis: str, num_blocks: int, num_kept: int) -> str:
        assert self.stride is not None
        stride = self.stride // self.block
        step = math.gcd(num_blocks, stride)
        missed = num_blocks // step * (step - num_kept)
        even = next(s for s in range(stride, 0, -1) if num_kept % math.gcd(num_blocks, s) == 0)
        what = "units" if self.block == 1 else f"blocks of {self.block} units"
        return (
            f"extraction.stride is {self.stride}: windows of {num_kept} out of {num_blocks} {what} of axis {axis} then "
            f"start at multiples of {step} only, and {missed} of them are never in a window; with stride "
            f"{even * self.block}, or with null (the size of the window), all have their turn, equally often"
        )
