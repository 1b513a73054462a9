"""From hidden states to token losses without keeping the logits.

The logits are the largest tensor of a small language model (49,152 per token here), and a loss needs of each row just
three things: its log-sum-exp, its target and its largest entry. Rows are taken in chunks, so that memory does not grow
with the number of tokens, and the gradient is made in the same pass, while the logits of a chunk are there.

Fused linear cross-entropy: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", ICLR 2025, section 4.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedgen.types import Index

CHUNK_TOKENS = 128
"""Rows of logits that exist at once, 25 MB at 49,152 each. With fewer, reading the head from memory dominates."""


def token_losses(
    hidden: Float[Tensor, "tokens width"], head: Float[Tensor, "vocab width"], targets: Int[Tensor, " tokens"]
) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
    """Negative log-likelihood of each target in nats, and whether the target is the first choice. No gradient."""
    losses, right = [], []
    with torch.no_grad():
        for rows, wanted in zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True):
            logits = (rows @ head.T).float()
            losses.append(logits.logsumexp(1) - logits.gather(1, wanted[:, None])[:, 0])
            right.append(logits.argmax(1) == wanted)
    return torch.cat(losses), torch.cat(right)


def mean_loss(
    hidden: Float[Tensor, "tokens width"], head: Float[Tensor, "vocab width"], targets: Int[Tensor, " tokens"]
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the targets in nats, differentiable in both the hidden states and the head."""
    value: Float[Tensor, ""] = _LinearCrossEntropy.apply(hidden, head, targets)  # type: ignore[no-untyped-call]
    return value


def restrict(
    head: Float[Tensor, "vocab width"], targets: Int[Tensor, " tokens"], among: Index | None
) -> tuple[Float[Tensor, "some width"], Int[Tensor, " tokens"]]:
    """The head of some tokens, and where the targets stand among these; both as they are if there is no choice.

    Masked cross-entropy: Diao et al., HeteroFL, ICLR 2021. Tokens that do not take part are left out, as by a logit of
    minus infinity; the released code gives them a logit of 0.
    """
    return (head, targets) if among is None else (head.index_select(0, among), torch.searchsorted(among, targets))


class _LinearCrossEntropy(torch.autograd.Function):
    """``mean(logsumexp(h Wᵀ) - (h Wᵀ)[target])``; its gradient with respect to the logits is ``softmax - one_hot``."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        """Loss, and the gradients for an incoming gradient of one."""
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros_like(head, dtype=torch.float32) if head.requires_grad else None
        total = torch.zeros((), dtype=torch.float32)
        scale = 1.0 / len(targets)
        for start in range(0, len(targets), CHUNK_TOKENS):
            rows, wanted = hidden[start : start + CHUNK_TOKENS], targets[start : start + CHUNK_TOKENS, None]
            logits = (rows @ head.T).float()
            normaliser = logits.logsumexp(1, keepdim=True)
            total += (normaliser - logits.gather(1, wanted)).sum()
            grad = logits.sub_(normaliser).exp_().mul_(scale)
            grad.scatter_add_(1, wanted, grad.new_full(wanted.shape, -scale))
            grad = grad.to(head.dtype)
            torch.mm(grad, head, out=grad_hidden[start : start + CHUNK_TOKENS])
            if grad_head is not None:
                grad_head += grad.T @ rows
        ctx.save_for_backward(grad_hidden, grad_head)
        return total * scale

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor | None, None]:  # noqa: ANN401
        """The gradients of the forward pass times the incoming one."""
        grad_hidden, grad_head = ctx.saved_tensors
        return (
            grad_hidden * grad_output.to(grad_hidden.dtype),
            None if grad_head is None else grad_head * grad_output,
            None,
        )
