"""How much memory and arithmetic a training step takes, found by carrying it out without numbers (``dryrun``).

What is found is exact for tensors; what libraries and the allocator add is measured (see ``planner``).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

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
        small_trained: limit → bytes of those trained tensors that are smaller.
        small_step: limit → largest sum of those tensors on the way that are smaller.
        num_modules: how many modules the model consists of.
        num_tokens: that its tokenizer knows.
    """

    weight_bytes: int
    trained_bytes: int
    step_bytes: int
    step_flops: int
    small_trained: Mapping[int, int] = field(default_factory=dict)
    small_step: Mapping[int, int] = field(default_factory=dict)
    num_modules: int = 0
    num_tokens: int = 0


def footprint(
    learner: Learner, batch: Sequence[Encoded], *, backward: bool, drops: bool = False, limits: Sequence[int] = ()
) -> Footprint:
    """What one piece of a step takes.

    Args:
        learner: as a client would have it.
        batch: the examples that go through it at once; only their lengths matter.
        backward: whether there is a backward pass.
        drops: whether each gradient goes as soon as it is there; else all stay until the pass is over.
        limits: sizes in bytes, such as that from which on the allocator has memory of the system for a tensor alone.
    """
    trained = list(learner.parameters().values())

    def step() -> None:
        with torch.set_grad_enabled(backward):
            loss = learner.loss(batch)
            if backward and drops:
                with _dropped(trained):
                    loss.backward()
            elif backward:
                torch.autograd.grad(loss, trained, allow_unused=True)

    largest, flops, *small = follow(step, limits)
    held = {id(tensor): tensor for tensor in (*learner.module.parameters(), *learner.module.buffers())}
    of_trained = sum(parameter.nbytes for parameter in trained)
    inside = sum(parameter.nbytes for parameter in trained if id(parameter) in held)
    return Footprint(
        sum(tensor.nbytes for tensor in held.values()) - inside,
        of_trained,
        largest,
        flops,
        {limit: sum(p.nbytes for p in trained if p.nbytes < limit) for limit in limits},
        dict(zip(limits, small, strict=True)),
        sum(1 for _ in learner.module.modules()),
        len(learner.tokenizer),
    )


@contextmanager
def _dropped(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Has the backward pass drop the gradient of each parameter as soon as all of it is there."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(drop) for parameter in parameters]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
