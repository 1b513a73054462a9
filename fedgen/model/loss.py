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

Change = tuple[Index, Float[Tensor, "rows width"]]
"""Some rows of a head that is frozen, and what is added to each of them and trained."""

CHUNK_TOKENS = 128
"""Rows of logits that exist at once, 25 MB at 49,152 each. With fewer, reading the head from memory dominates."""


def token_losses(
    hidden: Float[Tensor, "tokens width"],
    head: Float[Tensor, "vocab width"],
    targets: Int[Tensor, " tokens"],
    change: Change | None = None,
) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
    """Negative log-likelihood of each target in nats, and whether the target is the first choice. No gradient."""
    losses, right = [], []
    with torch.no_grad():
        for rows, wanted in zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True):
            logits = _logits(rows, head, change)
            losses.append(logits.logsumexp(1) - logits.gather(1, wanted[:, None])[:, 0])
            right.append(logits.argmax(1) == wanted)
    return torch.cat(losses), torch.cat(right)


def mean_loss(
    hidden: Float[Tensor, "tokens width"],
    head: Float[Tensor, "vocab width"],
    targets: Int[Tensor, " tokens"],
    change: Change | None = None,
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the targets in nats, differentiable in hidden states, head and change."""
    rows, added = change or (None, None)
    value: Float[Tensor, ""] = _LinearCrossEntropy.apply(hidden, head, targets, rows, added)  # type: ignore[no-untyped-call]
    return value


def restrict(
    head: Float[Tensor, "vocab width"], targets: Int[Tensor, " tokens"], among: Index | None
) -> tuple[Float[Tensor, "some width"], Int[Tensor, " tokens"]]:
    """The head of some tokens, and where the targets stand among these; both as they are if there is no choice.

    Masked cross-entropy: Diao et al., HeteroFL, ICLR 2021. Tokens that do not take part are left out, as by a logit of
    minus infinity; the released code gives them a logit of 0.
    """
    return (head, targets) if among is None else (head.index_select(0, among), torch.searchsorted(among, targets))


def _logits(
    hidden: Float[Tensor, "tokens width"], head: Float[Tensor, "vocab width"], change: Change | None
) -> Float[Tensor, "tokens vocab"]:
    """In fp32, in memory of their own."""
    logits = (hidden @ head.T).float()
    return logits if change is None else logits.index_add_(1, change[0], (hidden @ change[1].T).float())


class _LinearCrossEntropy(torch.autograd.Function):
    """``mean(logsumexp(h Wᵀ) - (h Wᵀ)[target])``; its gradient with respect to the logits is ``softmax - one_hot``."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        rows: Tensor | None,
        added: Tensor | None,
    ) -> Tensor:
        """Loss, and the gradients for an incoming gradient of one."""
        change = None if rows is None or added is None else (rows, added)
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros_like(head, dtype=torch.float32) if head.requires_grad else None
        grad_added = torch.zeros_like(added, dtype=torch.float32) if added is not None else None
        total = torch.zeros((), dtype=torch.float32)
        scale = 1.0 / len(targets)
        for start in range(0, len(targets), CHUNK_TOKENS):
            seen, wanted = hidden[start : start + CHUNK_TOKENS], targets[start : start + CHUNK_TOKENS, None]
            logits = _logits(seen, head, change)
            normaliser = logits.logsumexp(1, keepdim=True)
            total += (normaliser - logits.gather(1, wanted)).sum()
            grad = logits.sub_(normaliser).exp_().mul_(scale)
            grad.scatter_add_(1, wanted, grad.new_full(wanted.shape, -scale))
            grad = grad.to(head.dtype)
            own = grad_hidden[start : start + CHUNK_TOKENS]
            torch.mm(grad, head, out=own)
            if grad_head is not None:
                grad_head += grad.T @ seen
            if change is not None and grad_added is not None:
                some = grad.index_select(1, change[0])
                own += some @ change[1]
                grad_added += some.T @ seen
        ctx.save_for_backward(grad_hidden, grad_head, grad_added)
        return total * scale

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor | None, None, None, Tensor | None]:  # noqa: ANN401
        """The gradients of the forward pass times the incoming one."""
        grad_hidden, grad_head, grad_added = ctx.saved_tensors
        return (
            grad_hidden * grad_output.to(grad_hidden.dtype),
            None if grad_head is None else grad_head * grad_output,
            None,
            None,
            None if grad_added is None else grad_added * grad_output,
        )
