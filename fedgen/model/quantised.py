"""Frozen matrices that are held in few bits and do what a matrix does in a model, a block of rows at a time.

A product decodes a block, multiplies, and drops the block; so does its backward pass, which keeps nothing but the few
bits: a full-precision copy of a layer never exists beyond one block. Modules stay stock. They call torch's functions,
and torch asks a matrix of this kind how it is multiplied, looked up and cut; whatever else is asked of it is refused,
so that nothing decodes it as a whole by the way.

Backpropagation through a frozen quantised base into adapters: Dettmers et al., "QLoRA: Efficient Finetuning of
Quantized LLMs", NeurIPS 2023, section 3, equation 5.
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from fedgen.types import Index

BLOCK_ENTRIES = 2**20
"""Entries that are decoded at once: 4 MB in fp32. Smaller blocks cost more calls than they save."""


@runtime_checkable
class Rows(Protocol):
    """A matrix in few bits. Each row makes one output of a layer."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def nbytes(self) -> int:
        """What it takes."""

    @property
    def grain(self) -> int:
        """Columns that can only be kept together."""

    def block(
        self, start: int, stop: int, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, " rows"] | None]:
        """Some rows, and what each of them is still to be multiplied by, in fp32; None for one."""

    def narrow(self, dim: int, start: int, length: int) -> "Rows":
        """A stretch of rows (0) or columns (1); of the same memory where possible."""

    def select(self, dim: int, index: Index) -> "Rows":
        """Some rows (0) or columns (1)."""

    def empty(self, shape: tuple[int, int]) -> "Rows":
        """A matrix of the same kind with nothing in it yet."""

    def fill(self, other: Any) -> None:  # noqa: ANN401 - of its own class
        """Takes over what another of the same shape holds."""


class Quantised(Tensor):
    """A matrix in few bits that torch takes for one of a floating type.

    Args:
        rows: what it holds.
        dtype: floating type of what is multiplied with it.
        transposed: its rows are the rows' columns, as in GPT-2, whose weights have the inputs first.
    """

    rows: Rows
    transposed: bool

    def __new__(cls, rows: Rows, dtype: torch.dtype, transposed: bool = False) -> "Quantised":
        """A body without memory of its own."""
        shape = rows.shape[::-1] if transposed else rows.shape
        made: Quantised = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)
        return made

    def __init__(self, rows: Rows, dtype: torch.dtype, transposed: bool = False) -> None:
        self.rows, self.transposed = rows, transposed

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """What it takes, and not what a full-precision copy would."""
        return self.rows.nbytes

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({type(self.rows).__name__}, {tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Quantised":
        # Nothing ever changes it: a copy needs a body of its own, and no memory.
        return nn.Parameter(self.detach(), requires_grad=False)  # type: ignore[return-value]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        own = OWN_WAYS.get(func, func)
        with torch._C.DisableTorchFunctionSubclass():
            return own(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return _like(args[0], args[0].rows)
        raise TypeError(
            f"{func} of a matrix that is held in few bits would decode all of it; it can be multiplied from the right, "
            "looked up and cut by rows and columns"
        )


def dense(rows: Rows, dtype: torch.dtype = torch.float32) -> Float[Tensor, "rows columns"]:
    """The matrix as it is multiplied, as a whole."""
    out = torch.empty(rows.shape, dtype=dtype)
    for start, stop in _blocks(rows):
        matrix, scale = rows.block(start, stop, torch.float32)
        out[start:stop] = matrix if scale is None else matrix * scale[:, None]
    return out


def forward_product(x: Float[Tensor, "*batch columns"], rows: Rows) -> Float[Tensor, "*batch rows"]:
    """``x Wᵀ``. Scales of rows are applied to the result: there are fewer of those, and they stay in fp32."""
    flat = x.reshape(-1, x.shape[-1])
    out = flat.new_empty(len(flat), rows.shape[0])
    for start, stop in _blocks(rows):
        matrix, scale = rows.block(start, stop, x.dtype)
        into = torch.mm(flat, matrix.T, out=out[:, start:stop])
        if scale is not None:
            into.mul_(scale)
    return out.view(*x.shape[:-1], -1)


def backward_product(grad: Float[Tensor, "*batch rows"], rows: Rows) -> Float[Tensor, "*batch columns"]:
    """``g W``, the blocks' shares summed in fp32."""
    flat = grad.reshape(-1, grad.shape[-1])
    total: Tensor | None = None
    for start, stop in _blocks(rows):
        matrix, scale = rows.block(start, stop, grad.dtype)
        given = flat[:, start:stop]
        share = (given if scale is None else (given * scale).to(grad.dtype)) @ matrix
        if stop - start == rows.shape[0]:
            return share.view(*grad.shape[:-1], -1)
        total = share.float() if total is None else total.add_(share)
    assert total is not None
    return total.to(grad.dtype).view(*grad.shape[:-1], -1)


def _blocks(rows: Rows) -> Iterator[tuple[int, int]]:
    """Where blocks of rows begin and end."""
    num_rows, num_columns = rows.shape
    step = max(1, BLOCK_ENTRIES // max(1, num_columns))
    return ((start, min(start + step, num_rows)) for start in range(0, num_rows, step))


class _Product(torch.autograd.Function):
    """``x Wᵀ``, or ``x W`` of a transposed one; the backward pass decodes the matrix once more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows, turned: bool) -> Tensor:  # noqa: ANN401 - torch's context
        ctx.rows, ctx.turned = rows, turned
        return backward_product(x, rows) if turned else forward_product(x, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        return (forward_product if ctx.turned else backward_product)(grad, ctx.rows), None, None


# --- what torch's functions mean for such a matrix --------------------------------------------------------------------


def _like(matrix: Quantised, rows: Rows) -> Quantised:
    return Quantised(rows, matrix.dtype, matrix.transposed)


def _matmul(x: Tensor, matrix: Tensor) -> Tensor:
    if isinstance(x, Quantised) or not isinstance(matrix, Quantised):
        raise TypeError("a matrix that is held in few bits stands on the right of a product")
    product: Tensor = _Product.apply(x, matrix.rows, not matrix.transposed)  # type: ignore[no-untyped-call]
    return product


def _mm(x: Tensor, matrix: Tensor, *, out: Tensor | None = None) -> Tensor:
    product = _matmul(x, matrix)
    return product if out is None else out.copy_(product)


def _linear(x: Tensor, weight: Quantised, bias: Tensor | None = None) -> Tensor:
    product = _matmul(x, _transpose(weight))
    return product if bias is None else product + bias


def _addmm(bias: Tensor, x: Tensor, weight: Quantised) -> Tensor:
    return _matmul(x, weight) + bias


def _embedding(
    ids: Int[Tensor, "*batch"],
    weight: Quantised,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Float[Tensor, "*batch width"]:
    assert max_norm is None, "a frozen embedding is not renormalised"
    return dense(weight.rows.select(0, ids.reshape(-1)), weight.dtype).view(*ids.shape, -1)


def _transpose(matrix: Quantised) -> Quantised:
    return Quantised(matrix.rows, matrix.dtype, not matrix.transposed)


def _narrow(matrix: Quantised, dim: int, start: int, length: int) -> Quantised:
    return _like(matrix, matrix.rows.narrow(dim ^ matrix.transposed, start, length))


def _index_select(matrix: Quantised, dim: int, index: Index) -> Quantised:
    return _like(matrix, matrix.rows.select(dim ^ matrix.transposed, index))


def _new_empty(matrix: Quantised, size: list[int]) -> Quantised:
    first, second = size
    return _like(matrix, matrix.rows.empty((second, first) if matrix.transposed else (first, second)))


def _copy(matrix: Quantised, source: Quantised) -> Quantised:
    matrix.rows.fill(source.rows)
    return matrix


def _clone(matrix: Quantised) -> Quantised:
    return _copy(_new_empty(matrix, list(matrix.shape)), matrix)


def _to(matrix: Quantised, dtype: torch.dtype) -> Tensor:
    decoded = dense(matrix.rows, dtype)
    return decoded.T if matrix.transposed else decoded


def _itself(matrix: Quantised) -> Quantised:
    return matrix


OWN_WAYS: dict[Any, Any] = {
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    torch.matmul: _matmul,
    torch.mm: _mm,
    torch.addmm: _addmm,
    functional.linear: _linear,
    functional.embedding: _embedding,
    Tensor.T.__get__: _transpose,  # type: ignore[attr-defined]
    Tensor.narrow: _narrow,
    Tensor.index_select: _index_select,
    Tensor.new_empty: _new_empty,
    Tensor.copy_: _copy,
    Tensor.clone: _clone,
    Tensor.contiguous: _itself,
    Tensor.to: _to,
    Tensor.float: lambda matrix: _to(matrix, torch.float32),
    # A module that is made fp32 asks: its weights are new ones, and are not put into the bodies of these.
    torch._has_compatible_shallow_copy_type: lambda matrix, other: False,
}
"""What torch's functions do where one of their arguments is a matrix in few bits."""
