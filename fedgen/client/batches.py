"""The examples of each local step: shuffled passes, cut into batches."""

from collections.abc import Iterator, Sequence

import torch

from fedgen.types import Encoded


def batches(
    examples: Sequence[Encoded], batch_size: int, num_steps: int, num_epochs: float | None, generator: torch.Generator
) -> Iterator[list[Encoded]]:
    """Batches out of shuffled passes; the last of a pass may be smaller.

    Args:
        examples: at least one.
        batch_size: examples per batch; a client with fewer takes all it has.
        num_steps: how many batches.
        num_epochs: passes over the examples; counts instead of num_steps if given.
        generator: shuffles.
    """
    size = min(batch_size, len(examples))
    per_pass = -(-len(examples) // size)
    for step in range(num_steps if num_epochs is None else max(1, round(num_epochs * per_pass))):
        if step % per_pass == 0:
            order = torch.randperm(len(examples), generator=generator).tolist()
        start = step % per_pass * size
        yield [examples[position] for position in order[start : start + size]]
