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

FLOAT_TOKENS = 16
"""Rows of them that exist in fp32 beside: what is made of logits then fits into the processor's cache."""


def token_losses(
    hidden: Float[Tensor, "tokens width"],
    head: Float[Tensor, "vocab width"],
    targets: Int[Tensor, " tokens"],
    chunk_tokens: int | None = CHUNK_TOKENS,
    change: Change | None = None,
) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
    """Negative log-likelihood of each target in nats, and whether the target is the first choice. No gradient.

    Args:
        hidden: last hidden states.
        head: makes logits of them.
        targets: tokens to be predicted.
        chunk_tokens: rows of logits that exist at once; None for all.
        change: what is added to some rows of the head.
    """
    losses, right = [], []
    size = chunk_tokens or len(targets)
    with torch.no_grad():
        for rows, wanted in zip(hidden.split(size), targets.split(size), strict=True):
            found = _measured(_logits(rows, head, change), wanted)
            losses.append(found[0])
            right.append(found[1])
    return torch.cat(losses), torch.cat(right)


def mean_loss(
    hidden: Float[Tensor, "tokens width"],
    head: Float[Tensor, "vocab width"],
    targets: Int[Tensor, " tokens"],
    chunk_tokens: int | None = CHUNK_TOKENS,
    change: Change | None = None,
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the targets in nats, differentiable in hidden states, head and change.

    Args:
        hidden: last hidden states.
        head: makes logits of them.
        targets: tokens to be predicted.
        chunk_tokens: rows of logits that exist at once; None for all.
        change: what is added to some rows of the head and trained.
    """
    if not torch.is_grad_enabled():
        # What makes the gradient besides would be thrown away.
        return token_losses(hidden, head, targets, chunk_tokens, change)[0].mean()
    size = chunk_tokens or len(targets)
    some, added = change or (None, None)
    value: Float[Tensor, ""] = _LinearCrossEntropy.apply(hidden, head, targets, size, some, added)  # type: ignore[no-untyped-call]
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
    """In the type of the head, in memory of their own."""
    logits = hidden @ head.T
    return logits if change is None else logits.index_add_(1, change[0], hidden @ change[1].T)


class _LinearCrossEntropy(torch.autograd.Function):
    """``mean(logsumexp(h Wᵀ) - (h Wᵀ)[target])``; its gradient with respect to the logits is ``softmax - one_hot``."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        size: int,
        some: Tensor | None,
        added: Tensor | None,
    ) -> Tensor:
        """Loss, and the gradients for an incoming gradient of one."""
        change = None if some is None or added is None else (some, added)
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros_like(head, dtype=torch.float32) if head.requires_grad else None
        grad_added = torch.zeros_like(added, dtype=torch.float32) if added is not None else None
        total = torch.zeros((), dtype=torch.float32)
        scale = 1.0 / len(targets)
        for start in range(0, len(targets), size):
            rows, wanted = hidden[start : start + size], targets[start : start + size, None]
            logits = _logits(rows, head, change)
            total += _to_gradient(logits, wanted, scale)
            own = grad_hidden[start : start + size]
            torch.mm(logits, head, out=own)
            if grad_head is not None:
                # In place: the product alone would be as large as the head.
                grad_head.addmm_(logits.T.float(), rows.float())
            if change is not None and grad_added is not None:
                of_some = logits.index_select(1, change[0])
                own += of_some @ change[1]
                grad_added += of_some.T @ rows
            del logits  # Before those of the next chunk are there.
        ctx.save_for_backward(grad_hidden, grad_head, grad_added)
        return total * scale

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The gradients of the forward pass times the incoming one. Once: they are scaled where they are."""
        grad_hidden, grad_head, grad_added = ctx.saved_tensors
        for grad in (grad_head, grad_added):
            if grad is not None:
                grad.mul_(grad_output)
        return grad_hidden.mul_(grad_output.to(grad_hidden.dtype)), grad_head, None, None, None, grad_added


def _measured(
    logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, " tokens"]
) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
    losses, right = [], []
    for part, wanted in zip(logits.split(FLOAT_TOKENS), targets.split(FLOAT_TOKENS), strict=True):
        exact = part.float()
        losses.append(exact.logsumexp(1) - exact.gather(1, wanted[:, None])[:, 0])
        right.append(exact.argmax(1) == wanted)
    return torch.cat(losses), torch.cat(right)


def _to_gradient(
    logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, "tokens 1"], scale: float
) -> Float[Tensor, ""]:
    """Puts ``scale`` times the gradient of the summed losses in the place of the logits; returns that sum."""
    losses = torch.empty(targets.shape, dtype=torch.float32)
    parts = zip(logits.split(FLOAT_TOKENS), targets.split(FLOAT_TOKENS), losses.split(FLOAT_TOKENS), strict=True)
    for part, wanted, loss in parts:
        exact = part.float()
        normaliser = exact.logsumexp(1, keepdim=True)
        torch.sub(normaliser, exact.gather(1, wanted), out=loss)
        exact.sub_(normaliser).exp_().mul_(scale)
        exact.scatter_add_(1, wanted, exact.new_full(wanted.shape, -scale))
        part.copy_(exact)
    return losses.sum()
