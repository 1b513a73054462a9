"""How surprised the model is by the answers: the exponential of the mean loss per answer token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedgen.learner import Learner
from fedgen.types import Example, Metrics


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of the answers."""

    @property
    def metric(self) -> str:
        """`perplexity`."""
        return "perplexity"

    @property
    def higher_is_better(self) -> bool:
        """False."""
        return False

    def measure(self, learner: Learner, examples: Sequence[Example]) -> list[Metrics]:
        """For each example: nll in nats and num_tokens; zeros where truncation leaves no answer."""
        encoded = learner.encode(examples)
        kept = [ids for ids in encoded if ids is not None]
        scores = iter(learner.score(kept) if kept else [])
        found = [next(scores) if ids is not None else None for ids in encoded]
        return [
            {"nll": score.nll, "num_tokens": float(score.num_tokens)} if score else {"nll": 0.0, "num_tokens": 0.0}
            for score in found
        ]

    def summarise(self, rows: Sequence[Metrics]) -> Metrics:
        """perplexity, and loss in nats per answer token."""
        num_tokens = sum(row["num_tokens"] for row in rows)
        loss = sum(row["nll"] for row in rows) / num_tokens if num_tokens else float("nan")
        return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss}
