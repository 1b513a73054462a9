"""A share of the examples, chosen by how much the prompt helps the model with the answer.

Two forward passes give the mean loss per answer token with the prompt before it, L(y|x), and without, L(y).

``ifd``, the instruction-following difficulty: IFD = PPL(y|x) / PPL(y) = exp(L(y|x) - L(y)). Where the prompt does not
help (IFD of 1 or more) question and answer do not belong together, and such examples are passed over; of the others
the highest are kept, those from which the model has most to learn. Li et al., "Superfiltering: Weak-to-Strong Data
Filtering for Fast Instruction-Tuning", ACL 2024, section 2. The measure is that of Li et al., "From Quantity to
Quality: Boosting LLM Performance with Self-Guided Data Selection for Instruction Tuning" (Cherry), NAACL 2024, section
2.2, which divides the losses themselves: the same examples stay below 1, in another order. Cherry first trains on a
thousand examples; Superfiltering scores with a pretrained model as it is, and so is it done here.

``ira``, the instruction-response alignment: IRA = L(y) - L(y|x), of which the highest are kept. Du et al., "FedDQC:
Data Quality Control in Federated Instruction-tuning of Large Language Models", Findings of ACL 2025, which besides
trains from high to low and scores again as it goes; here the choice is made once.

Since IFD = exp(-IRA), the two keep opposite ends: ``ifd`` the hardest examples of those that make sense, ``ira`` the
easiest. With noisy answers the hardest are often the wrong ones, and ``ira`` is the one to take.

Before the answer alone stands the token that begins a text (BOS), or, in a model that has none, the one that ends the
text before it (EOS). So both means go over the same tokens, and an answer of one token has them too. The released code
of Superfiltering scores no first token with GPT-2, since nothing stands before it; that of Cherry puts the mark of its
template there. The token that closes an answer counts, as it does in training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedgen.learner import Learner
from fedgen.types import Encoded

LARGEST_EXPONENT = 700.0
"""The exponential of more does not fit into a float."""


@dataclass(frozen=True)
class Perplexity:
    """A share of its examples: those that its prompt helps with, by perplexity with and without it (IFD or IRA).

    Scoring takes two forward passes for each example, once, in the first round of a client, of the whole model as it
    was loaded: what was trained since plays no part, and a device that trains a part reads the rest for this once. The
    weight of an update is the number of examples that are kept. The choice looks at the data, so that sample-level
    differential privacy has to account for it.

    Attributes:
        score: `ifd` keeps the hardest examples with which the prompt helps; `ira` keeps those with which it helps most.
        fraction: share of a client's examples that is kept, rounded up, at least one. `ifd` keeps fewer if the prompt
            helps with fewer.
        min_per_class: examples of each class that are kept first, whatever their score (all, if there are fewer), so
            that rare ones survive; all classes together may exceed the share. Examples without a label have no class.
    """

    score: Literal["ifd", "ira"] = "ifd"
    fraction: float = 0.3
    min_per_class: int = 1

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction}; it is a share, above 0 and at most 1")
        if self.min_per_class < 0:
            raise ValueError(f"min_per_class is {self.min_per_class}; it must be at least 0 (no class is looked after)")

    @property
    def needs_scores(self) -> bool:
        """True."""
        return True

    def measure(self, learner: Learner, example: Encoded) -> float:
        """IFD or IRA of one example; IRA in nats per token.

        The two passes share no batch with other examples: packed with others its last bits would depend on them, and in
        bf16 more than these.
        """
        tokenizer = learner.tokenizer
        before = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        alone = Encoded((before, *example.ids[example.num_prompt :]), 1)
        with_prompt, without = (score.nll / score.num_tokens for score in learner.score([example, alone]))
        if self.score == "ira":
            return without - with_prompt
        return math.exp(min(with_prompt - without, LARGEST_EXPONENT))

    def keep(self, scores: Sequence[float], labels: Sequence[str]) -> list[int]:
        """Positions of the best, after those of the best of each class; of equal scores the first comes first.

        Where the prompt helps with none at all, the one that comes nearest to it is kept.
        """
        ranked = sorted(
            (position for position, score in enumerate(scores) if math.isfinite(score)),
            key=lambda position: (*self._rank(scores[position]), position),
        )
        kept, per_class = set[int](), dict[str, int]()
        for position in ranked:
            label = labels[position]
            if label and per_class.get(label, 0) < self.min_per_class:
                per_class[label] = per_class.get(label, 0) + 1
                kept.add(position)
        # What a product of floats has too much must not count as an example.
        share = max(1, math.ceil(self.fraction * len(scores) - 1e-9))
        for position in ranked:
            if len(kept) >= share:
                break
            if self._helps(scores[position]):
                kept.add(position)
        return sorted(kept or ranked[:1])

    def _helps(self, score: float) -> bool:
        return self.score == "ira" or score < 1

    def _rank(self, score: float) -> tuple[bool, float]:
        """Smaller is better; where the prompt does not help comes last, the lowest IFD first."""
        helps = self._helps(score)
        return not helps, -score if helps else score
