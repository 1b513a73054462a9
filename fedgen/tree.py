"""All arithmetic on named tensors.

Every function takes and returns a ``State`` (or fills one in place where it says so). ``cut`` and ``paste`` are the
only two operations of a ``Plan``.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from fedgen.types import Index, Plan, State

FRACTION_BITS = 36
"""Fixed-point sums count in units of 2**-36 (1.5e-11), finer than fp32 resolves any weight above 1e-4."""


def add(a: State, b: State) -> State:
    """Sum, tensor by tensor.

    >>> add({"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])})["w"].tolist()
    [3.0]
    """
    return {name: a[name] + b[name] for name in _same_names(a, b)}


def subtract(a: State, b: State) -> State:
    """Difference, tensor by tensor.

    >>> subtract({"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])})["w"].tolist()
    [-2.0]
    """
    return {name: a[name] - b[name] for name in _same_names(a, b)}


def scale(a: State, factor: float) -> State:
    """Every tensor times one number.

    >>> scale({"w": torch.tensor([1.0, 2.0])}, 3.0)["w"].tolist()
    [3.0, 6.0]
    """
    return {name: tensor * factor for name, tensor in a.items()}


def zeros(a: State) -> State:
    """Zeros of the same names, shapes and types."""
    return {name: torch.zeros_like(tensor) for name, tensor in a.items()}


def copy(a: State) -> State:
    """A copy that shares no memory."""
    return {name: tensor.clone() for name, tensor in a.items()}


def norm(a: State) -> Float[Tensor, ""]:
    """Euclidean norm of all entries together, in fp64.

    >>> float(norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}))
    5.0
    """
    return (
        torch.stack([torch.zeros((), dtype=torch.float64), *(t.double().square().sum() for t in a.values())])
        .sum()
        .sqrt()
    )


def clip(a: State, max_norm: float) -> State:
    """Scales the whole down to a norm of at most ``max_norm``; leaves it alone if it is shorter.

    >>> clip({"a": torch.tensor([3.0, 4.0])}, 1.0)["a"].tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    length = float(norm(a))
    return a if length <= max_norm else scale(a, max_norm / length)


def num_bytes(a: State) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in a.values())


def plan_of(dims: Mapping[str, tuple[str | None, ...]], kept: Mapping[str, Index | None]) -> Plan:
    """Kept units per axis → kept positions per dimension of each tensor.

    An axis that is absent from ``kept``, or kept as None, is kept whole.

    >>> plan = plan_of({"lora_A": ("rank", None)}, {"rank": torch.tensor([0, 2])})
    >>> plan["lora_A"][0].tolist(), plan["lora_A"][1]
    ([0, 2], None)
    """
    return {name: tuple(None if axis is None else kept.get(axis) for axis in axes) for name, axes in dims.items()}


def cut(state: State, plan: Plan) -> State:
    """The part of the state that the plan names. A tensor that is kept whole is not copied.

    >>> state = {"w": torch.arange(6.0).reshape(2, 3)}
    >>> cut(state, {"w": (None, torch.tensor([2, 0]))})["w"].tolist()
    [[2.0, 0.0], [5.0, 3.0]]
    """
    return {name: state[name] if _whole(kept) else state[name][_grid(state[name], kept)] for name, kept in plan.items()}


def is_whole(plan: Plan) -> bool:
    """Whether the plan keeps all of every tensor that it names.

    >>> is_whole({"w": (None, None)}), is_whole({"w": (None, torch.tensor([0]))})
    (True, False)
    """
    return all(_whole(kept) for kept in plan.values())


def paste(plan: Plan, values: State, into: State) -> None:
    """Adds the values to the positions that the plan names, in place.

    >>> into = {"w": torch.zeros(2, 3)}
    >>> paste({"w": (None, torch.tensor([2, 0]))}, {"w": torch.ones(2, 2)}, into)
    >>> into["w"].tolist()
    [[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]
    """
    for name, kept in plan.items():
        if _whole(kept):
            into[name] += values[name]
        else:
            into[name][_grid(into[name], kept)] += values[name]


def fixed_point(values: State, weight: int) -> State:
    """``weight * values`` in whole units of 2**-36, as int64.

    Sums of such tensors are exact, so they do not depend on the order of their terms: replies may be folded as they
    arrive and any order gives the same bits.

    >>> fixed_point({"w": torch.tensor([0.5])}, 3)["w"].item() == 3 * 2**35
    True
    """
    unit = float(2**FRACTION_BITS)
    return {name: t.double().mul_(unit).round_().long().mul_(weight) for name, t in values.items()}


def floating_point(total: State, divisor: int) -> State:
    """``total / divisor`` of fixed-point tensors, as fp64.

    >>> floating_point(fixed_point({"w": torch.tensor([0.5])}, 3), 3)["w"].item()
    0.5
    """
    return {name: t.double().mul_(math.ldexp(1.0, -FRACTION_BITS) / divisor) for name, t in total.items()}


def largest(a: State) -> float:
    """The largest magnitude of any entry; 0 if there is none, NaN or infinite if one entry is.

    >>> largest({"a": torch.tensor([1.0, -3.0]), "b": torch.zeros(0)})
    3.0
    """
    ends = [end for tensor in a.values() if tensor.numel() for end in tensor.aminmax()]
    # One maximum over all: Python's own would pass over a NaN.
    return float(torch.stack(ends).abs().max()) if ends else 0.0


def _same_names(a: State, b: State) -> list[str]:
    assert a.keys() == b.keys(), f"states differ in {sorted(a.keys() ^ b.keys())}"
    return list(a)


def _whole(kept: tuple[Index | None, ...]) -> bool:
    return all(index is None for index in kept)


def _grid(tensor: Tensor, kept: tuple[Index | None, ...]) -> tuple[Tensor, ...]:
    """Open mesh of the kept positions, so that indexing takes the rows × columns block and not pairs."""
    ranges = (torch.arange(n) if index is None else index for n, index in zip(tensor.shape, kept, strict=True))
    return tuple(
        positions.view([-1 if d == own else 1 for d in range(tensor.dim())]) for own, positions in enumerate(ranges)
    )
