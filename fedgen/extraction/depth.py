"""Whole layers are left out, and those that stay are whole.

``prefix`` keeps the first layers: Kim et al., "DepthFL: Depthwise Federated Learning for Heterogeneous Clients", ICLR
2023, which gives every depth a classifier of its own. A pretrained model has one classifier, behind its last layer, and
does not get over losing the last layers; it loses least by a run of layers in the middle. The first two layers, where
large activations arise, and the last one are worth more than any others, and stay.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from fedgen.types import Choice, Index, Steps


@dataclass(frozen=True)
class Depth:
    """Whole layers are left out: in the middle, evenly, the last or the least important (DepthFL).

    If fewer layers are kept than are protected, the first ones come before the last ones.

    Attributes:
        order: which go: a run in the middle, evenly spaced ones (strided), the last (prefix), or the least important.
        num_first: this many of the first layers always stay; of no effect with prefix.
        num_last: this many of the last layers always stay; of no effect with prefix.
    """

    order: Literal["middle", "strided", "prefix", "importance"] = "middle"
    num_first: int = 2
    num_last: int = 1

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        for name in ("num_first", "num_last"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")

    @property
    def axes(self) -> tuple[str, ...]:
        """`layer`."""
        return ("layer",)

    @property
    def needs_scores(self) -> bool:
        """Only for the order of importance."""
        return self.order == "importance"

    def keep(self, choice: Choice) -> Index:
        """The layers that stay, in their order: the protected ones, and as many between them as there is room for."""
        if self.order == "prefix":
            return torch.arange(choice.num_kept)
        num_first = min(self.num_first, choice.num_kept)
        num_last = min(self.num_last, choice.num_kept - num_first)
        units = torch.arange(choice.units)
        first, last = units[:num_first], units[choice.units - num_last :]
        between = units[num_first : choice.units - num_last]
        return torch.cat([first, between[self._pick(choice, between, choice.num_kept - num_first - num_last)], last])

    def steps(self, width: float) -> Steps:
        """Every step uses all that the client holds."""
        return Steps()

    def _pick(self, choice: Choice, between: Index, num_kept: int) -> Index:
        """Positions among the layers that are not protected of those that stay."""
        positions = torch.arange(len(between))
        if num_kept == 0:
            return positions[:0]
        if self.order == "middle":
            num_before = (num_kept + 1) // 2
            return torch.cat([positions[:num_before], positions[len(between) - (num_kept - num_before) :]])
        if self.order == "strided":  # in the middle of each of num_kept equal stretches
            return (2 * positions[:num_kept] + 1) * len(between) // (2 * num_kept)
        assert choice.scores is not None, "the order of importance needs scores"
        order = torch.argsort(choice.scores[between], descending=True, stable=True)
        return order[:num_kept].sort().values
