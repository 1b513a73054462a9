"""How much memory and arithmetic a training step takes, found by carrying it out without numbers (``dryrun``).

What is found is exact for tensors; what libraries and the allocator add is measured (here and in ``planner``).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedgen.dryrun import follow
from fedgen.lean import LARGE_BYTES, TIGHT_BYTES
from fedgen.learner import Learner
from fedgen.stages import Client
from fedgen.types import Encoded

HOLES, LEAST_HOLES = 0.6, 0.35
"""What the allocator keeps free, of all smaller tensors that a forward pass makes one after the other.

From a size on (`lean.LARGE_BYTES`) a tensor has memory of its own, which goes back when it goes. Smaller ones lie side
by side. glibc asks for more than it needs, so that a tensor begins at a multiple of 64 bytes, and gives the rest away.
Once a node of the graph for the backward pass has taken that rest, the place is too small for the next tensor of this
size, for as long as the graph is there. Others use some of these places, so about `HOLES` of what is held at once is
free, or of all smaller ones if these are less. Layers that are computed anew hold little and leave such places all the
same, at least `LEAST_HOLES` of what they make; tight, nearly all goes back. Both shares are measured.
"""


@dataclass(frozen=True)
class Footprint:
    """What a step takes.

    Attributes:
        weight_bytes: of the frozen weights, as they are held.
        trained_bytes: of the tensors that are trained.
        step_bytes: largest sum of the tensors that a step makes on the way.
        step_flops: multiplications and additions of its matrix products.
        small_bytes: limit → sum of all smaller tensors that the forward pass makes, though most soon go again.
        num_modules: how many modules the model consists of.
        num_tokens: that its tokenizer knows.
    """

    weight_bytes: int
    trained_bytes: int
    step_bytes: int
    step_flops: int
    small_bytes: Mapping[int, int] = field(default_factory=dict)
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
        dict(zip(limits, small, strict=True)),
        sum(1 for _ in learner.module.modules()),
        len(learner.tokenizer),
    )


def hole_bytes(found: Footprint, client: Client, *, tight: bool) -> int:
    """What the allocator keeps free between tensors; nothing to speak of where no backward pass follows.

    Args:
        found: what a step takes, with the limits of `lean`.
        client: trains.
        tight: freed memory goes back at once.
    """
    if not client.needs_backward:
        return 0
    held, small = client.held_bytes(found.trained_bytes, found.step_bytes), found.small_bytes
    if tight:
        return int(HOLES * min(small[TIGHT_BYTES], held))
    return int(max(HOLES * min(small[LARGE_BYTES], held), LEAST_HOLES * small[LARGE_BYTES]))


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
