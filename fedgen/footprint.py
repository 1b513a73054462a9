"""How much memory and arithmetic a training step takes, found by carrying it out without numbers (``dryrun``).

What is found is exact for tensors; what libraries and the allocator add is measured (see ``planner``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedgen.dryrun import follow
from fedgen.learner import Learner
from fedgen.types import Encoded


@dataclass(frozen=True)
class Footprint:
    """What a step takes.

    Attributes:
        weight_bytes: of the frozen weights, as they are held.
        trained_bytes: of the tensors that are trained.
        step_bytes: largest sum of the tensors that a step makes on the way.
        step_flops: multiplications and additions of its matrix products.
    """

    weight_bytes: int
    trained_bytes: int
    step_bytes: int
    step_flops: int


def footprint(learner: Learner, batch: Sequence[Encoded], *, backward: bool) -> Footprint:
    """What one piece of a step takes.

    Args:
        learner: as a client would have it.
        batch: the examples that go through it at once; only their lengths matter.
        backward: whether there is a backward pass.
    """
    trained = list(learner.parameters().values())

    def step() -> None:
        with torch.set_grad_enabled(backward):
            loss = learner.loss(batch)
            if backward:
                torch.autograd.grad(loss, trained, allow_unused=True)

    largest, flops = follow(step)
    held = {id(tensor): tensor for tensor in (*learner.module.parameters(), *learner.module.buffers())}
    of_trained = sum(parameter.nbytes for parameter in trained)
    inside = sum(parameter.nbytes for parameter in trained if id(parameter) in held)
    weight_bytes = sum(tensor.nbytes for tensor in held.values()) - inside
    return Footprint(weight_bytes, of_trained, largest, flops)
