"""What of a generator's drafts is kept: filters in a row, each of which says why it rejects.

The order is that of the reference pipeline (schema, units and ranges; duplicates; perplexity; consistency of labels;
diversity; memorisation), with the balance over labels at the end: what that cuts off is good, and a later filter would
have wanted it in the place of what it rejects.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedgen.synthesis import sieves
from fedgen.synthesis.agreement import Judge, judge_of
from fedgen.synthesis.sieves import Likelihood, Verdict
from fedgen.task import Draft, Task
from fedgen.types import Example


@dataclass(frozen=True, slots=True)
class Rejection:
    """A draft that is not kept.

    Attributes:
        draft: what was proposed.
        filter: name of the filter that rejects it.
        reason: in words that are the same for all such drafts.
    """

    draft: Draft
    filter: str
    reason: str


@dataclass(frozen=True)
class Sifted:
    """What a row of filters makes of drafts.

    Attributes:
        kept: in the order in which they came.
        rejected: in the order of the filters.
        notes: filter → what else is to be said of it: numbers that it used, or that it was skipped.
    """

    kept: tuple[Draft, ...]
    rejected: tuple[Rejection, ...]
    notes: Mapping[str, Mapping[str, int | float | str]]


@dataclass(frozen=True)
class Evidence:
    """What drafts are held against.

    Attributes:
        likelihood: how surprising a model finds a text; None skips the perplexity band of commands.
        likelihood_of: fingerprint of that model.
        judge: tells labels apart; None for naive Bayes over words, or over shapes of curves.
        judge_of: fingerprint of the judge.
        reference: public texts whose likelihoods set the band; empty, and the drafts set it themselves.
        evaluation: examples that somebody will be measured on.
        template_tokens: of the tokenizers at hand; those of the usual chat templates are known.
    """

    likelihood: Likelihood | None = None
    likelihood_of: str = ""
    judge: Judge | None = None
    judge_of: str = ""
    reference: tuple[str, ...] = ()
    evaluation: tuple[Example, ...] = ()
    template_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what would leave a set without a name of its own."""
        for name in ("likelihood", "judge"):
            if (getattr(self, name) is None) != (not getattr(self, f"{name}_of")):
                raise ValueError(f"{name} and {name}_of go together: a set is named after all that it depends on")

    def fingerprints(self) -> dict[str, Any]:
        """What it depends on, as plain JSON."""
        examples = [[example.text, example.completion] for example in self.evaluation]
        return {
            "likelihood": self.likelihood_of,
            "judge": self.judge_of,
            "reference": _sha256(list(self.reference)),
            "evaluation": _sha256(examples),
            "template_tokens": sorted(self.template_tokens),
        }


@dataclass(frozen=True)
class Filters:
    """Which drafts are kept. A setting that is null leaves its filter out.

    Attributes:
        template_tokens: `strip` takes marks of chat templates out of a text and counts them, `reject` rejects the text.
        max_characters: longest text.
        near_duplicate: two texts for the same answer are nearly the same from this share of common shingles on.
        perplexity_quantiles: of the log-likelihoods per token (of the reference, else of the drafts) that span the band
            of what is usual. For windows of readings each label has its own limit, of how badly readings are foretold
            by those before them.
        perplexity_slack: the band is wider on each side by this many times the distance of the quantiles.
        consistency_margin: nats by which another label may be likelier than the draft's own, to a judge that has seen
            only the other half of the drafts.
        max_repetition: share of a command's pairs of words that occur in it before.
        diversity_n: words in an n-gram of the next setting.
        min_diversity: a label's distinct n-grams over all of its n-grams (distinct-n: Li et al., 2016); below it, a
            draft that has no new one is rejected.
        overlap_n: words in a row that no text may share with an evaluation example (13: Brown et al., 2020, appendix
            C); shorter texts must not be one.
        examples_shown: kept drafts, and rejected ones for each reason, in the report.
    """

    template_tokens: Literal["strip", "reject"] = "strip"
    max_characters: int = 4000
    near_duplicate: float | None = 0.85
    perplexity_quantiles: tuple[float, float] | None = (0.25, 0.75)
    perplexity_slack: float = 1.5
    consistency_margin: float | None = 4.0
    max_repetition: float | None = 0.5
    diversity_n: int = 3
    min_diversity: float | None = 0.05
    overlap_n: int | None = 13
    examples_shown: int = 3

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        for name in ("max_characters", "diversity_n"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("perplexity_slack", "examples_shown"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("near_duplicate", "max_repetition", "min_diversity"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name} is {share}; it is a share, above 0 and at most 1; null leaves the filter out")
        if self.consistency_margin is not None and self.consistency_margin < 0:
            raise ValueError(f"consistency_margin is {self.consistency_margin}; it must be at least 0, or null")
        if self.overlap_n is not None and self.overlap_n < 1:
            raise ValueError(f"overlap_n is {self.overlap_n}; it must be at least 1, or null")
        if self.perplexity_quantiles is not None:
            low, high = self.perplexity_quantiles
            if not 0 <= low < high <= 1:
                raise ValueError(f"perplexity_quantiles is [{low}, {high}]; give two numbers in 0..1, the lower first")

    def sift(
        self, drafts: Sequence[Draft], task: Task, evidence: Evidence, quotas: Mapping[str, int], seed: int
    ) -> Sifted:
        """Lets the drafts through all filters.

        Args:
            drafts: in the order in which the generator gave them.
            task: that they are for.
            evidence: what they are held against.
            quotas: label → how many are wanted at most.
            seed: of the halves that judge each other.
        """
        row: tuple[tuple[str, Callable[[Sequence[Draft]], Verdict]], ...] = (
            ("template tokens", lambda now: self._clean(now, evidence)),
            ("schema", lambda now: sieves.schema(now, task)),
            ("duplicates", lambda now: sieves.duplicates(now, task, self.near_duplicate)),
            ("perplexity", lambda now: self._perplexity(now, task, evidence)),
            ("consistency", lambda now: self._consistency(now, task, evidence, seed)),
            ("repetition", lambda now: self._repetition(now, task)),
            ("diversity", lambda now: self._diversity(now)),
            ("overlap", lambda now: self._overlap(now, evidence)),
            ("balance", lambda now: sieves.balance(now, quotas)),
        )
        kept, rejected, notes = list(drafts), list[Rejection](), dict[str, Mapping[str, int | float | str]]()
        for name, sieve in row:
            verdict = sieve(kept)
            judged = list(zip(verdict.drafts, verdict.reasons, strict=True))
            rejected += [Rejection(draft, name, why) for draft, why in judged if why is not None]
            kept = [draft for draft, why in judged if why is None]
            notes[name] = verdict.notes
        return Sifted(tuple(kept), tuple(rejected), notes)

    def _clean(self, drafts: Sequence[Draft], evidence: Evidence) -> Verdict:
        strip = self.template_tokens == "strip"
        return sieves.clean(drafts, evidence.template_tokens, self.max_characters, strip=strip)

    def _perplexity(self, drafts: Sequence[Draft], task: Task, evidence: Evidence) -> Verdict:
        if self.perplexity_quantiles is None:
            return sieves.skipped(drafts, "perplexity_quantiles is null")
        band = sieves.Band(self.perplexity_quantiles, self.perplexity_slack)
        if task.kind == "sensor":
            return sieves.predictability(drafts, task, band)
        if evidence.likelihood is None:
            return sieves.skipped(drafts, "there is no model to ask")
        return sieves.perplexity(drafts, evidence.likelihood, evidence.reference, band)

    def _consistency(self, drafts: Sequence[Draft], task: Task, evidence: Evidence, seed: int) -> Verdict:
        if self.consistency_margin is None:
            return sieves.skipped(drafts, "consistency_margin is null")
        return sieves.consistency(drafts, evidence.judge or judge_of(task), self.consistency_margin, seed)

    def _repetition(self, drafts: Sequence[Draft], task: Task) -> Verdict:
        if self.max_repetition is None:
            return sieves.skipped(drafts, "max_repetition is null")
        if task.kind == "sensor":
            return sieves.skipped(drafts, "a sensor that repeats itself is one of the things to be learned")
        return sieves.repetition(drafts, self.max_repetition)

    def _diversity(self, drafts: Sequence[Draft]) -> Verdict:
        if self.min_diversity is None:
            return sieves.skipped(drafts, "min_diversity is null")
        return sieves.diversity(drafts, self.diversity_n, self.min_diversity)

    def _overlap(self, drafts: Sequence[Draft], evidence: Evidence) -> Verdict:
        if self.overlap_n is None:
            return sieves.skipped(drafts, "overlap_n is null")
        return sieves.overlap(drafts, evidence.evaluation, self.overlap_n)


def _sha256(value: list[Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
