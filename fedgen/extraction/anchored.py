"""The most important units always, and a window that rolls over the others.

It stands between `importance`, under which most units are never trained, and `rolling` (FedRolex: Alam et al., NeurIPS
2022), which takes from a pretrained model what it stands on: the anchors keep the part useful, and the window reaches
the rest in turn.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from fedgen.extraction import kinds
from fedgen.extraction.rolling import Rolling
from fedgen.types import Choice, Index, Steps


@dataclass(frozen=True)
class Anchored:
    """The most important units always, and a window that rolls over the others.

    Every unit has its turn as long as the anchors stay the same. Of a fraction of an anchor none is made, so a client
    that keeps a single unit rolls.

    Attributes:
        axes: kinds of the axes that are cut: ffn, kv, residual, rank, vocab.
        anchors: share of the kept units that are always the most important ones; 1 leaves no window.
        stride: units by which the window moves per round, anchors not counted; null moves it by its own size.
        phase: all clients share one window per size, or they are spread evenly over the axis (striped).
    """

    axes: tuple[str, ...] = ("ffn", "kv")
    anchors: float = 0.5
    stride: int | None = None
    phase: Literal["shared", "striped"] = "shared"

    def __post_init__(self) -> None:
        """Refuses axes that are not cut, and values outside their range."""
        kinds.check(self.axes)
        if not 0 <= self.anchors <= 1:
            raise ValueError(f"anchors is {self.anchors}; it must be a share from 0 (all rolls) to 1 (nothing does)")
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"stride is {self.stride}; it must be at least 1, or null for the size of the window")

    @property
    def needs_scores(self) -> bool:
        """True."""
        return True

    def keep(self, choice: Choice) -> Index:
        """Anchors and window together, ascending.

        Raises:
            ConfigError: with this stride a window of this size never reaches some of the other units.
        """
        assert choice.scores is not None, "anchored needs scores"
        num_anchors = int(self.anchors * choice.num_kept)
        order = torch.argsort(choice.scores, descending=True, stable=True)
        anchors, others = order[:num_anchors], order[num_anchors:].sort().values
        if num_anchors == choice.num_kept:
            return anchors.sort().values
        return torch.cat([anchors, others[self._window(choice, num_anchors)]]).sort().values

    def steps(self, width: float) -> Steps:
        """Every step uses all that the client holds."""
        return Steps()

    def _window(self, choice: Choice, num_anchors: int) -> Index:
        """Positions of the window among the units that are no anchors."""
        units, num_kept = choice.units - num_anchors, choice.num_kept - num_anchors
        rest = replace(choice, units=units, num_kept=num_kept, scores=None)
        return Rolling(self.axes, stride=self.stride, phase=self.phase).keep(rest)
