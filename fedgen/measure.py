"""Numbers about a state: splits evaluated across all workers, and a few conversations."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedgen.experiment import Experiment
from fedgen.learner import Learner
from fedgen.types import Example, Metrics, Record, State
from fedgen.workers import Workers

NUM_CONVERSATIONS = 3
CONVERSATION_TOKENS = 32


def evaluate(
    experiment: Experiment,
    workers: Workers,
    state: State,
    splits: Mapping[str, Sequence[Example]],
    *,
    whole: bool,
) -> dict[str, dict[str, Any]]:
    """Split → metric → number, with the same of each owner under `owners`.

    Args:
        experiment: says what is measured and how.
        workers: share the batches; how many there are changes no bit.
        state: what is evaluated.
        splits: examples by name.
        whole: all splits, as before and after a run; else a few examples of the first, as in every round.
    """
    limit = experiment.num_evaluated if whole else experiment.num_evaluated_per_round
    chosen = {name: examples[:limit] for name, examples in splits.items() if examples}
    if not whole:
        chosen = dict(list(chosen.items())[:1])
    size = experiment.evaluation_batch_size
    batches = [
        (name, start, examples[start : start + size])
        for name, examples in chosen.items()
        for start in range(0, len(examples), size)
    ]

    def job(learner: Learner, batch: tuple[str, int, Sequence[Example]]) -> tuple[str, int, list[Metrics]]:
        name, start, examples = batch
        learner.load(state)
        return name, start, experiment.evaluation.measure(learner, examples)

    rows = {(name, start): found for name, start, found in workers.map(job, batches)}
    return {
        name: _summary(experiment, examples, [row for batch in batches if batch[0] == name for row in rows[batch[:2]]])
        for name, examples in chosen.items()
    }


def converse(
    workers: Workers, before: State, after: State, splits: Mapping[str, Sequence[Example]], round: int
) -> list[Record]:
    """What the model answered before and what it answers now, to a few examples of different labels."""
    first = next(iter(splits.values()), ())
    by_label = {example.label: example for example in reversed(first)}
    chosen = [example for example in first if by_label[example.label] is example][:NUM_CONVERSATIONS]

    def job(learner: Learner, item: tuple[int, bool]) -> tuple[tuple[int, bool], str]:
        number, is_after = item
        learner.load(after if is_after else before)
        return item, learner.generate(chosen[number].prompt, CONVERSATION_TOKENS)

    answers = dict(workers.map(job, [(n, is_after) for n in range(len(chosen)) for is_after in (False, True)]))
    return [
        {
            "kind": "conversation",
            "round": round,
            "text": example.text,
            "expected": example.completion,
            "before": answers[n, False],
            "after": answers[n, True],
        }
        for n, example in enumerate(chosen)
    ]


def _summary(experiment: Experiment, examples: Sequence[Example], rows: Sequence[Metrics]) -> dict[str, Any]:
    owners: dict[str, list[Metrics]] = {}
    for example, row in zip(examples, rows, strict=True):
        owners.setdefault(example.owner, []).append(row)
    summary: dict[str, Any] = dict(experiment.evaluation.summarise(rows))
    if len(owners) > 1:
        summary["owners"] = {owner: experiment.evaluation.summarise(owners[owner]) for owner in sorted(owners)}
    return summary
