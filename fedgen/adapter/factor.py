"""The factor of LoRA that reads: it keeps what it reads as it comes, and no copy in its own type.

Half of what a step keeps would otherwise be fp32 copies of bf16 inputs, one for each of the factors that read the same.
That these inputs are what LoRA costs: Zhang et al., "LoRA-FA", 2023, section 3.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, autograd, nn


class Factor(nn.Linear):
    """A linear layer whose inputs may be of another type than its weight; its outputs are of the weight's."""

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows rank"]:
        """The product in the weight's type."""
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        product: Tensor = _Product.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return product


def reading(linear: nn.Module) -> Factor:
    """A factor with the weight of a linear layer."""
    assert isinstance(linear, nn.Linear)
    factor = Factor(linear.in_features, linear.out_features, bias=False, device="meta")
    factor.weight = linear.weight
    return factor


class _Product(autograd.Function):
    """``x Wᵀ`` in the type of W; x is converted once more for the gradient of W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        """Keeps x for W's gradient alone, and nothing of it if W is frozen."""
        reads, trains = ctx.needs_input_grad
        ctx.save_for_backward(x if trains else None, weight if reads else None)
        ctx.type = x.dtype
        return nn.functional.linear(x.to(weight.dtype), weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # noqa: ANN401
        """As autograd has it, in the same order of operations."""
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        return (
            None if weight is None else (rows @ weight).to(ctx.type).unflatten(0, grad.shape[:-1]),
            None if x is None else rows.T @ x.flatten(0, -2).to(grad.dtype),
        )
