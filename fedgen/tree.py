"""All arithmetic on named tensors.

Every function takes and returns a ``State`` (or fills one in place where it says so). ``cut`` and ``paste`` are the
only two operations of a ``Plan``.
"""

import itertools
import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from fedgen.types import Axes, Dim, Index, Kept, Plan, State

MAX_RUNS = 32
"""An index of at most so many stretches is copied stretch by stretch, at the speed of memory."""

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


def plan_of(axes: Axes, kept: Kept) -> Plan:
    """Kept units per axis → kept positions per dimension of each tensor.

    An axis that is absent from ``kept`` is kept whole; a tensor whose layer is not kept is not in the plan.

    >>> axes = Axes({"o": (None, Dim("kv.0", 2)), "lora_A": (Dim("rank"), None)}, {"kv.0": 3, "rank": 4})
    >>> plan = plan_of(axes, {"kv.0": torch.tensor([0, 2])})
    >>> plan["o"][1].tolist(), plan["lora_A"]
    ([0, 1, 4, 5], (None, None))
    """
    present = {axis: set(kept[axis].tolist()) for axis, _ in axes.members.values() if axis in kept}
    found: dict[Dim, Index] = {}
    plan: Plan = {}
    for name, dims in axes.dims.items():
        axis, unit = axes.members.get(name, ("", 0))
        if axis in present and unit not in present[axis]:
            continue
        for dim in dims:
            # Tensors that lie on the same axis share one index, so that whoever looks at it does so once.
            if dim is not None and dim.axis in kept and dim not in found:
                found[dim] = positions(dim, kept[dim.axis], axes.units[dim.axis])
        plan[name] = tuple(None if dim is None else found.get(dim) for dim in dims)
    return plan


def positions(dim: Dim, units: Index, num_units: int) -> Index:
    """Positions along a dimension of the kept units, ascending.

    >>> positions(Dim("kv", span=2, starts=(0, 6)), torch.tensor([0, 2]), 3).tolist()
    [0, 1, 4, 5, 6, 7, 10, 11]
    """
    assert not len(units) or (int(units[0]) >= 0 and int(units[-1]) < num_units), f"{dim.axis}: units out of range"
    starts = torch.tensor(dim.starts)[:, None, None]
    return (starts + units[None, :, None] * dim.span + torch.arange(dim.span)).reshape(-1)


def cut(state: State, plan: Plan, out: State | None = None) -> State:
    """The part of the state that the plan names. What is one stretch, or whole, is a view and not copied.

    With ``out`` everything is copied there and nowhere else: new memory costs several times what copying does.

    >>> state = {"w": torch.arange(6.0).reshape(2, 3)}
    >>> cut(state, {"w": (None, torch.tensor([0, 2]))})["w"].tolist()
    [[0.0, 2.0], [3.0, 5.0]]
    """
    runs = _Runs()
    part: State = {}
    for name, kept in plan.items():
        tensor = state[name]
        cuts = [(dim, index) for dim, index in enumerate(kept) if index is not None]
        for number, (dim, index) in enumerate(cuts, 1):
            into = out[name] if out is not None and number == len(cuts) else None
            tensor = _pick(tensor, dim, index, runs(index), into)
        if out is not None and not cuts:
            tensor = out[name].copy_(tensor)
        part[name] = tensor
    return part


def extent(tensor: Tensor, kept: tuple[Index | None, ...]) -> list[int]:
    """Shape of what is kept of a tensor.

    >>> extent(torch.zeros(2, 3), (None, torch.tensor([0])))
    [2, 1]
    """
    return [n if index is None else len(index) for n, index in zip(tensor.shape, kept, strict=True)]


def overlap(tensor: Tensor, a: tuple[Index | None, ...], b: tuple[Index | None, ...] | None) -> list[int]:
    """Shape of what two plans both keep of a tensor; noughts if one of them has none of it.

    >>> overlap(torch.zeros(2, 3), (None, torch.tensor([0, 1])), (torch.tensor([1]), torch.tensor([1, 2])))
    [1, 1]
    """
    if b is None:
        return [0] * tensor.dim()
    return [_num_shared(n, x, y) for n, x, y in zip(tensor.shape, a, b, strict=True)]


def is_whole(plan: Plan) -> bool:
    """Whether the plan keeps all of every tensor that it names.

    >>> is_whole({"w": (None, None)}), is_whole({"w": (None, torch.tensor([0]))})
    (True, False)
    """
    return all(_whole(kept) for kept in plan.values())


def paste(plan: Plan, values: State, into: State, weight: int | float = 1) -> None:
    """Adds ``weight * values`` to the positions that the plan names, in place. No position may be named twice.

    The values are scaled as they are added: no scaled copy of a tensor comes about.

    >>> into = {"w": torch.zeros(2, 3)}
    >>> paste({"w": (None, torch.tensor([0, 2]))}, {"w": torch.ones(2, 2)}, into)
    >>> into["w"].tolist()
    [[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]
    >>> paste({"w": (torch.tensor([1]), None)}, {"w": torch.ones(1, 3)}, into, weight=0.5)
    >>> into["w"].tolist()
    [[1.0, 0.0, 1.0], [1.5, 0.5, 1.5]]
    """
    runs = _Runs()
    for name, kept in plan.items():
        cuts = [(dim, index) for dim, index in enumerate(kept) if index is not None]
        _put(into[name], values[name], weight, cuts, runs)


def fixed_point(values: State, weight: int, discount: float = 1.0) -> State:
    """``weight * discount * values`` in whole units of 2**-36, as int64.

    Sums of such tensors are exact, so they do not depend on the order of their terms: replies may be folded as they
    arrive and any order gives the same bits.

    >>> fixed_point({"w": torch.tensor([0.5])}, 3)["w"].item() == 3 * 2**35
    True
    """
    unit = discount * 2**FRACTION_BITS
    return {name: t.double().mul_(unit).round_().long().mul_(weight) for name, t in values.items()}


def floating_point(total: State, divisor: int | float) -> State:
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


def _num_shared(size: int, x: Index | None, y: Index | None) -> int:
    if x is None:
        return size if y is None else len(y)
    return len(x) if y is None else int(torch.isin(x, y).sum())


def _whole(kept: tuple[Index | None, ...]) -> bool:
    return all(index is None for index in kept)


class _Runs:
    """Stretches of consecutive positions of an index as (start, length); of each index once."""

    def __init__(self) -> None:
        self._found: dict[int, list[tuple[int, int]]] = {}

    def __call__(self, index: Index) -> list[tuple[int, int]]:
        found = self._found.get(id(index))
        if found is None:
            breaks = (torch.diff(index) != 1).nonzero().view(-1) + 1
            edges = [0, *breaks.tolist(), len(index)]
            found = [(int(index[a]), b - a) for a, b in itertools.pairwise(edges) if b > a]
            self._found[id(index)] = found
        return found


def _pick(tensor: Tensor, dim: int, index: Index, runs: list[tuple[int, int]], into: Tensor | None) -> Tensor:
    """The positions along one dimension: whole stretches where there are few, else one by one."""
    if len(runs) > MAX_RUNS:
        return tensor.index_select(dim, index) if into is None else torch.index_select(tensor, dim, index, out=into)
    if len(runs) == 1 and into is None:
        return tensor.narrow(dim, *runs[0])
    shape = list(tensor.shape)
    shape[dim] = len(index)
    picked, begin = tensor.new_empty(shape) if into is None else into, 0
    for start, length in runs:
        picked.narrow(dim, begin, length).copy_(tensor.narrow(dim, start, length))
        begin += length
    return picked


def _put(target: Tensor, values: Tensor, weight: int | float, cuts: list[tuple[int, Index]], runs: _Runs) -> None:
    """Adds weighted values to the crossing of the positions along several dimensions, in place."""
    if not cuts:
        target.add_(values, alpha=weight)
        return
    (dim, index), *rest = cuts
    stretches = runs(index)
    if len(stretches) <= MAX_RUNS:
        begin = 0
        for start, length in stretches:
            _put(target.narrow(dim, start, length), values.narrow(dim, begin, length), weight, rest, runs)
            begin += length
    elif rest:
        mesh = tuple(_open_mesh(target, dict(cuts)))
        target[mesh] = target[mesh].add_(values, alpha=weight)
    else:
        target.index_add_(dim, index, values.to(target.dtype), alpha=weight)


def _open_mesh(tensor: Tensor, cuts: Mapping[int, Index]) -> list[Tensor]:
    """Positions of every dimension, shaped so that indexing takes the block where they cross and not pairs."""
    return [
        cuts.get(own, torch.arange(n)).view([-1 if d == own else 1 for d in range(tensor.dim())])
        for own, n in enumerate(tensor.shape)
    ]
