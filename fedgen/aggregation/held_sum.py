"""A running weighted sum of changes to parts of a state, that knows how much weight stands behind every entry.

A client holds, of each tensor, the crossing of the positions that it kept along each dimension. So what it held is as
many lists of positions as there are dimensions, and the weight behind the entries of a matrix is the product of two
thin matrices, one row per plan. It is multiplied out for one tensor at a time and only when the sum is taken: until
then the sums are all the memory that is needed, one fp32 number per entry of the state.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedgen import tree
from fedgen.errors import ClientError
from fedgen.types import Index, Plan, State, Update

LARGEST_SUM = 2.0**127
"""Bound on the sum of weight × magnitude: half of the largest fp32, so that no rounding carries a sum to infinity."""


def magnitude(update: Update, shapes: Mapping[str, torch.Size]) -> float:
    """The largest entry of an update that fits its own plan.

    Raises:
        ClientError: `names`, `shape` or `non_finite`, if it does not.
    """
    if update.tensors.keys() != update.plan.keys():
        raise ClientError("names", "an update must hold the tensors of its plan")
    for name, kept in update.plan.items():
        wanted = [n if index is None else len(index) for n, index in zip(shapes[name], kept, strict=True)]
        if list(update.tensors[name].shape) != wanted:
            raise ClientError("shape", f"{name} is {list(update.tensors[name].shape)}, not {wanted}")
    largest = tree.largest(update.tensors)
    if not math.isfinite(largest):
        raise ClientError("non_finite")
    return largest


def advance(
    before: Float[Tensor, "*shape"], change: Float[Tensor, "*shape"], held: Bool[Tensor, "..."]
) -> Float[Tensor, "*shape"]:
    """``before + change`` where it was held, else ``before`` to the bit; an fp32 result lies in the change's memory."""
    after = change.add_(before).to(before.dtype)
    return torch.where(held, after, before, out=after)


class HeldSum:
    """Sums of weight × change, and who held what.

    Attributes:
        shapes: tensor name → its shape.
        sums: tensor name → the sum, in fp32; a tensor that was taken is gone.
        weight: sum of the weights of all updates.
    """

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        self.shapes = dict(shapes)
        self.sums: State = {name: torch.zeros(shape) for name, shape in shapes.items()}
        self.weight = 0.0
        self._magnitude = 0.0
        # Equal indices are kept once and known by their number; plans that are equal on a tensor are one entry there.
        self._indices: list[Index] = []
        self._alike: dict[tuple[int, int], list[int]] = {}
        self._holders: dict[str, dict[tuple[int | None, ...], float]] = {name: {} for name in shapes}

    def admit(self, weight: int | float, magnitude: float) -> None:
        """Counts an update that is about to be folded.

        Args:
            weight: of the update.
            magnitude: bound on every entry of the change.

        Raises:
            ClientError: `too_large`, if a sum could overflow; nothing is counted then.
        """
        bound = self._magnitude + weight * magnitude
        if not bound <= LARGEST_SUM:
            raise ClientError("too_large", f"weighted changes add up to {bound:.3g}, over {LARGEST_SUM:.3g}")
        self._magnitude = bound
        self.weight += weight

    def fold(self, plan: Plan, change: State, weight: int | float) -> None:
        """Adds ``weight * change``; the update has been admitted."""
        tree.paste(plan, change, self.sums, weight)
        numbers: dict[int, int] = {}
        for name, kept in plan.items():
            key: list[int | None] = []
            for size, index in zip(self.shapes[name], kept, strict=True):
                # Without repetition, so many positions are all that there are.
                if index is None or len(index) == size:
                    key.append(None)
                    continue
                if id(index) not in numbers:
                    numbers[id(index)] = self._number(index)
                key.append(numbers[id(index)])
            holders = self._holders[name]
            holders[tuple(key)] = holders.get(tuple(key), 0) + weight

    def mass(self, name: str) -> Float[Tensor, "..."]:
        """Weight of those who held each entry; of length 1 along a dimension that nobody cut.

        With R and C the row and column masks of the plans, the rows of R times the plans' weights, it is RᵀC.
        """
        holders, shape = self._holders[name], self.shapes[name]
        cut = [dim for dim in range(len(shape)) if any(key[dim] is not None for key in holders)]
        factor = torch.tensor([float(weight) for weight in holders.values()])
        if not cut:
            return factor.sum().view([1] * len(shape))
        # Letters for einsum: `z` counts plans, the others the dimensions that somebody cut.
        terms = [chr(ord("a") + dim) for dim in cut]
        masks = [self._mask(name, dim, shape[dim]) for dim in cut]
        masks[0] *= factor[:, None]
        mass = torch.einsum(f"{','.join('z' + term for term in terms)}->{''.join(terms)}", *masks)
        return mass.view([size if dim in cut else 1 for dim, size in enumerate(shape)])

    def take(self, name: str, coverage_power: float = 1.0) -> tuple[Tensor, Bool[Tensor, "..."]] | None:
        """Mean change of a tensor and which entries were held, if any; the sum's memory becomes the mean's.

        With ``m`` the weight of those who held an entry and ``M`` that of all, the mean is the sum divided by
        ``m**coverage_power * M**(1 - coverage_power)``. Entries that nobody held are of no meaning.
        """
        if not self._holders[name]:
            return None
        divisor = self.mass(name)
        held = divisor > 0
        if coverage_power != 1:
            divisor.pow_(coverage_power).mul_(self.weight ** (1 - coverage_power))
        return self.sums.pop(name).div_(divisor), held

    def _number(self, index: Index) -> int:
        """The number of an index; that of an equal one if there was one before."""
        alike = self._alike.setdefault((len(index), int(index.sum())), [])
        for number in alike:
            if torch.equal(self._indices[number], index):
                return number
        alike.append(len(self._indices))
        self._indices.append(index)
        return alike[-1]

    def _mask(self, name: str, dim: int, size: int) -> Float[Tensor, "plans size"]:
        """One row per distinct plan: 1 at the positions that it keeps along a dimension."""
        holders = self._holders[name]
        mask = torch.zeros(len(holders), size)
        for row, key in zip(mask, holders, strict=True):
            number = key[dim]
            if number is None:
                row.fill_(1)
            else:
                row[self._indices[number]] = 1
        return mask
