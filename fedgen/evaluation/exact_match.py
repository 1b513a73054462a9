"""How often the greedy answer is the right one, without generating it.

Greedy decoding gives an answer exactly when each of its tokens is the first choice after the ones before it, so a
single teacher-forced pass decides. Other answers that are right as well are decided by a pass of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedgen.learner import Learner
from fedgen.types import Example, Metrics


@dataclass(frozen=True)
class ExactMatch:
    """Share of greedy answers that are exactly right."""

    @property
    def metric(self) -> str:
        """`exact_match`."""
        return "exact_match"

    @property
    def higher_is_better(self) -> bool:
        """True."""
        return True

    def measure(self, learner: Learner, examples: Sequence[Example]) -> list[Metrics]:
        """For each example: exact and valid (0 or 1), nll in nats, num_tokens.

        An example that truncation leaves without an answer counts as wrong.
        """
        rows: list[Metrics] = [{"exact": 0.0, "valid": 0.0, "nll": 0.0, "num_tokens": 0.0} for _ in examples]
        wanted = [(number, e, True) for number, e in enumerate(examples)] + [
            (number, replace(e, completion=other), False)
            for number, e in enumerate(examples)
            for other in e.alternatives
        ]
        encoded = learner.encode([example for _, example, _ in wanted])
        kept = [
            (number, first, ids) for (number, _, first), ids in zip(wanted, encoded, strict=True) if ids is not None
        ]
        scores = learner.score([ids for _, _, ids in kept]) if kept else []
        for (number, first, _), score in zip(kept, scores, strict=True):
            row = rows[number]
            row["valid"] = max(row["valid"], float(score.exact))
            if first:
                row.update(exact=float(score.exact), nll=score.nll, num_tokens=float(score.num_tokens))
        return rows

    def summarise(self, rows: Sequence[Metrics]) -> Metrics:
        """exact_match; valid (any right answer); loss in nats per answer token."""
        num_tokens = sum(row["num_tokens"] for row in rows)
        return {
            "exact_match": sum(row["exact"] for row in rows) / len(rows),
            "valid": sum(row["valid"] for row in rows) / len(rows),
            "loss": sum(row["nll"] for row in rows) / num_tokens if num_tokens else float("nan"),
        }
