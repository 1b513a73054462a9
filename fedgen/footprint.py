"""How much memory and arithmetic a training step takes, found by carrying it out without numbers.

Tensors of the dry run have shapes and types and no data, so that a step of any size costs a second and no memory. Each
tensor that an operation makes is followed until nothing refers to it; the largest sum is that of the step. What is
found is exact for tensors; what libraries and the allocator add is measured (see ``planner``).
"""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

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


def follow(work: Callable[[], object]) -> tuple[int, int]:
    """Largest sum of bytes of the tensors that some work makes, and the operations of its matrix products.

    Nothing is computed: operations are carried out on shapes. What the work starts with is not counted; it stays real,
    so the work must not change it in place.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    live = _Live()
    with FakeTensorMode(allow_non_fake_inputs=True), live:
        work()
    return live.largest, live.flops


@dataclass
class _Live(TorchDispatchMode):
    """Follows the memory of tensors from the operation that makes them to their end."""

    largest: int = 0
    flops: int = 0
    _now: int = 0
    _known: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's own kind of operation
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operation gives
        """Carries an operation out, and notes what it makes."""
        made = func(*args, **(kwargs or {}))
        self.flops += _flops(func, args)
        # What shares memory with an argument (a view, or the argument itself) was counted when that was made.
        values = made if isinstance(made, tuple | list) else (made,)
        for value, told in zip(values, func._schema.returns, strict=False):
            if told.alias_info is None:
                for tensor in tree_iter(value):
                    if isinstance(tensor, Tensor):
                        self._begin(tensor)
        return made

    def _begin(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self._now += self._known[key]
            self.largest = max(self.largest, self._now)
            weakref.finalize(storage, self._end, key)

    def _end(self, key: int) -> None:
        self._now -= self._known.pop(key)


def _flops(func: Any, args: Sequence[Any]) -> int:  # noqa: ANN401
    """Of a matrix product: twice its three sizes, times those of a batch; of attention: its products."""
    name = func._schema.name
    if name.startswith("aten::_scaled_dot_product_flash_attention_for_cpu"):
        # Scores and values; on the way back the scores once more, and four gradients.
        backward = name.endswith("_backward")
        query, key = args[backward : backward + 2]
        return (10 if backward else 4) * math.prod(int(size) for size in query.shape) * int(key.shape[-2])
    if name not in ("aten::mm", "aten::bmm", "aten::addmm", "aten::linear"):
        return 0
    left, right = args[-2:] if name == "aten::addmm" else args[:2]
    outputs = right.shape[0] if name == "aten::linear" else right.shape[-1]
    return 2 * math.prod(int(size) for size in left.shape) * int(outputs)
