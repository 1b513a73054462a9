"""How surprising a text is to a model of language: mean negative log-likelihood per token, in nats."""

import math
from collections.abc import Sequence

from fedgen.learner import Learner
from fedgen.synthesis.sieves import Likelihood
from fedgen.task import Task
from fedgen.types import Encoded, Example

NUM_LINES = 4
"""Lines of the opening. A short text says little by itself; after a few of its kind, what is odd stands out."""


def opening(task: Task) -> str:
    """A few commands of a task, one in a line: the first templates of its first labels, with the first slot values."""
    lines = []
    for label in task.labels.values():
        form = next((form for form in label.forms if form.texts), None)
        if form is not None:
            lines.append(form.texts[0].format(**{name: task.slots[name].choices[0] for name in form.slots}))
    return "\n".join([*lines[:NUM_LINES], ""])


def by_learner(learner: Learner, before: str, batch_size: int = 64) -> Likelihood:
    """Asks a model; texts that it cannot read (they are empty, or have tokens that it does not hold) are infinite.

    Args:
        learner: as it was loaded, over the whole model.
        before: what stands before each text and is not counted; at least a line break.
        batch_size: texts that go through it together; they are sorted by length first.
    """

    def measure(texts: Sequence[str]) -> list[float]:
        # Without the token that ends a turn: in the middle of lines, it would be the greatest surprise of all.
        encoded = [
            None if ids is None or len(ids.ids) - ids.num_prompt < 2 else Encoded(ids.ids[:-1], ids.num_prompt)
            for ids in learner.encode([Example(before, text) for text in texts])
        ]
        found = [math.inf] * len(texts)
        order = sorted((len(ids.ids), place) for place, ids in enumerate(encoded) if ids is not None)
        for begin in range(0, len(order), batch_size):
            places = [place for _, place in order[begin : begin + batch_size]]
            batch = [ids for ids in (encoded[place] for place in places) if ids is not None]
            for place, score in zip(places, learner.score(batch), strict=True):
                found[place] = score.nll / score.num_tokens
        return found

    return measure
