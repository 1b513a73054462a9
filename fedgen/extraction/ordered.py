"""The first units, of which every local step trains a share drawn anew: FjORD's ordered dropout.

Horváth et al., "FjORD: Fair and Accurate Federated Learning under Heterogeneous Targets with Ordered Dropout", NeurIPS
2021. A client that holds the share p_max draws p for each step from {p in P: p <= p_max} and trains the first p of
every axis, so that the units are ordered: each prefix is a model of its own. With distillation the narrow model also
learns from what the widest one says to the same batch.
"""

from dataclasses import dataclass

import torch

from fedgen.extraction import kinds
from fedgen.types import Choice, Index, Steps


@dataclass(frozen=True)
class Ordered:
    """The first units, of which each local step trains a share drawn anew (FjORD).

    A device's own width should be one of the widths. What lies between it and the next smaller one is sent, but no
    step trains it. With extraction_mode=window every step trains the whole window.

    Attributes:
        axes: kinds of the axes that are cut: ffn, kv, residual, rank, vocab.
        widths: shares that a step may train (the set P), ascending.
        distill: a step also learns from the answers of all that the client holds.
    """

    axes: tuple[str, ...] = ("ffn", "kv")
    widths: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    distill: bool = False

    def __post_init__(self) -> None:
        """Refuses axes that are not cut, and widths that are no shares or out of order."""
        kinds.check(self.axes)
        if not self.widths or not all(0 < width <= 1 for width in self.widths):
            raise ValueError(f"widths is {list(self.widths)}; it must be one or more shares above 0 and at most 1")
        if list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"widths is {list(self.widths)}; it must be ascending, each share once")

    @property
    def needs_scores(self) -> bool:
        """False."""
        return False

    def keep(self, choice: Choice) -> Index:
        """The first ``num_kept`` units."""
        return torch.arange(choice.num_kept)

    def steps(self, width: float) -> Steps:
        """Of the widths those that the client holds; its own if it holds none of them."""
        return Steps(tuple(step for step in self.widths if step <= width) or (width,), self.distill)
