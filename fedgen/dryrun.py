"""Work that is carried out without numbers, to see how much memory and arithmetic it takes.

Tensors of a dry run have shapes and types and no data, so that a step of any size costs a second and no memory. Each
tensor that an operation makes is followed until nothing refers to it; the largest sum is that of the work.
"""

import math
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)
from torch.utils._pytree import tree_iter


def follow(work: Callable[[], object], limits: Sequence[int] = ()) -> tuple[int, ...]:
    """Largest sum of bytes of the tensors that some work makes, and the operations of its matrix products.

    Nothing is computed: operations are carried out on shapes. What the work starts with is not counted; it stays real,
    so the work must not change it in place.

    Args:
        work: what to carry out.
        limits: sizes in bytes. For each comes one more number: the sum of all smaller tensors that are made outside of
            backward passes and of what is `alike`, whether they live at once or not.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    live = _Live(tuple(limits))
    with FakeTensorMode(allow_non_fake_inputs=True), live:
        work()
    return live.largest, live.flops, *live.small


def alike(key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """A tensor that some work makes. Nothing but that, unless this is a dry run.

    There, hundreds of operations that are the same each time would be followed one by one: of all work with one key
    only the first is, and the rest are taken to need as much.

    Args:
        key: what the sizes of all tensors of the work follow from.
        make: the work. It keeps nothing but its result, which has memory of its own.
    """
    live = _current()
    return make() if live is None else live.again(key, make)


def is_dry() -> bool:
    """Whether this is a dry run, in which no number is known, and so none can be drawn."""
    return _current() is not None


@contextmanager
def in_numbers() -> Iterator[None]:
    """What it encloses is carried out with numbers even in a dry run; for indices, on which sizes depend."""
    with _disable_current_modes() if is_dry() else nullcontext():
        yield


@dataclass(frozen=True)
class _Work:
    """What work takes beside what was there before, and what it leaves behind."""

    rise: int
    flops: int
    made: Callable[[], Tensor]


@dataclass
class _Live(TorchDispatchMode):
    """Follows the memory of tensors from the operation that makes them to their end."""

    limits: tuple[int, ...]
    largest: int = 0
    flops: int = 0
    small: list[int] = field(init=False)
    _now: int = 0
    _known: dict[int, int] = field(default_factory=dict)
    _works: dict[Hashable, _Work] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.small = [0] * len(self.limits)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's own kind of operation
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operation gives
        """Carries an operation out, and notes what it makes."""
        if func is torch.ops.prim.device.default:
            # More than half of all calls; no tensor comes of them, and torch's own answer takes its time.
            return args[0].fake_device
        made = func(*args, **(kwargs or {}))
        self.flops += _flops(func, args)
        # What shares memory with an argument (a view, or the argument itself) was counted when that was made.
        values = made if isinstance(made, tuple | list) else (made,)
        for value, told in zip(values, func._schema.returns, strict=False):
            if told.alias_info is None:
                for tensor in tree_iter(value):
                    if isinstance(tensor, Tensor):
                        self._begin(tensor, instead=_adds_gradients(func))
        return made

    def again(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What ``alike`` says."""
        before, largest, flops = self._now, self.largest, self.flops
        if work := self._works.get(key):
            self.largest, self.flops = max(largest, before + work.rise), flops + work.flops
            return work.made()
        self.largest = before
        limits, self.limits = self.limits, (0,) * len(self.limits)
        made = make()
        self.limits = limits
        left = made.untyped_storage().nbytes()
        assert self._now == before + left, "work that is done again leaves its result behind and nothing else"
        again = partial(torch.empty_strided, tuple(made.shape), made.stride(), dtype=made.dtype)
        self._works[key] = _Work(self.largest - before, self.flops - flops, again)
        self.largest = max(largest, self.largest)
        return made

    def _begin(self, tensor: Tensor, *, instead: bool) -> None:
        """A tensor is there; `instead` of another one, which has not gone yet."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self._now += self._known[key]
            if not instead:
                self.largest = max(self.largest, self._now)
            if not _goes_back():
                size = storage.nbytes()
                self.small = [
                    total + size * (size < limit) for total, limit in zip(self.small, self.limits, strict=True)
                ]
            weakref.finalize(storage, self._end, key)

    def _end(self, key: int) -> None:
        self._now -= self._known.pop(key)


def _goes_back() -> bool:
    """Whether this is a backward pass; layers that are computed once more within it are part of it."""
    return torch._C._current_graph_task_id() != -1


def _adds_gradients(func: Any) -> bool:  # noqa: ANN401
    """Whether this is autograd, which adds a second gradient of a tensor to the first.

    With numbers it does so in the place of the first one; tensors without numbers it takes for too special for that.
    Layers that are computed once more within a backward pass add as well, and those keep gradients enabled.
    """
    return func is torch.ops.aten.add.Tensor and _goes_back() and not torch.is_grad_enabled()


def _current() -> _Live | None:
    # No list is made where there is no mode at all, as in training.
    modes = _get_current_dispatch_mode_stack() if torch._C._len_torch_dispatch_stack() else ()
    return next((mode for mode in modes if isinstance(mode, _Live)), None)


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
