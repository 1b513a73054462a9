"""Plain local training by gradient descent.

ClientUpdate of FedAvg: McMahan et al., AISTATS 2017, Algorithm 1, with Adam in place of SGD by default, as is usual for
LoRA.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fedgen import tree
from fedgen.client.batches import batches
from fedgen.errors import ClientError
from fedgen.learner import Learner
from fedgen.types import Encoded, Trained


@dataclass(frozen=True)
class FirstOrder:
    """Local training by gradient descent.

    Attributes:
        learning_rate: step size in the first round.
        final_learning_rate: fraction of it in the last round, with a straight line between.
        num_steps: optimiser steps per round, whatever the number of examples.
        num_epochs: passes over the local examples per round; counts instead of num_steps if given.
        batch_size: examples per step; a client with fewer takes all it has.
        optimizer: `adamw` or `sgd`; starts afresh every round, since clients keep no state.
        weight_decay: decoupled for adamw, classic for sgd.
        max_grad_norm: gradients are clipped to this Euclidean norm; null does not clip.
        beta2: decay of Adam's second moment.
        mask_absent: the softmax goes over those tokens only that occur in the client's answers (masked cross-entropy),
            so that a client without a label does not unlearn it.
    """

    learning_rate: float = 2.5e-3
    final_learning_rate: float = 0.2
    num_steps: int = 16
    num_epochs: float | None = None
    batch_size: int = 4
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    beta2: float = 0.999
    mask_absent: bool = False

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be positive")
        if self.final_learning_rate < 0:
            raise ValueError(f"final_learning_rate is {self.final_learning_rate}; it is a fraction and at least 0")
        for name in ("num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("num_epochs", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be positive, or null")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be at least 0")
        if not 0 < self.beta2 < 1:
            raise ValueError(f"beta2 is {self.beta2}; it must lie between 0 and 1")

    @property
    def compares_losses(self) -> bool:
        """False: a step takes the gradient of one loss."""
        return False

    def train(
        self, learner: Learner, examples: Sequence[Encoded], progress: float, generator: torch.Generator
    ) -> Trained:
        """Trains on shuffled passes over the examples.

        Returns:
            The change, and as metrics loss: mean of the steps' losses; num_steps; num_tokens: tokens that went through
            the model; train_bytes: memory of gradients and optimiser state.

        Raises:
            ClientError: `no_examples`, or `non_finite_loss` when a loss is NaN or infinite.
        """
        if not examples:
            raise ClientError("no_examples")
        before, parameters = learner.state(), list(learner.parameters().values())
        optimizer = self._optimizer(parameters, progress)
        losses, num_tokens, among = [], 0, _answer_tokens(examples) if self.mask_absent else None
        for batch in batches(examples, self.batch_size, self.num_steps, self.num_epochs, generator):
            optimizer.zero_grad()
            loss = learner.loss(batch, among)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise ClientError("non_finite_loss", f"loss {losses[-1]} in step {len(losses)}")
            loss.backward()
            if self.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            optimizer.step()
            num_tokens += sum(len(encoded.ids) for encoded in batch)
        train_bytes = _num_bytes(optimizer)
        # A worker's learner goes on to the next client: gradients must neither stay in memory nor leak.
        optimizer.zero_grad()
        metrics = {
            "loss": sum(losses) / len(losses),
            "num_steps": float(len(losses)),
            "num_tokens": float(num_tokens),
            "train_bytes": float(train_bytes),
        }
        return Trained(tree.subtract(learner.state(), before), metrics)

    def _optimizer(self, parameters: list[torch.nn.Parameter], progress: float) -> torch.optim.Optimizer:
        rate = self.learning_rate * (1.0 + (self.final_learning_rate - 1.0) * progress)
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=rate, weight_decay=self.weight_decay, fused=True)
        # fused: one pass over all factors; the loop over hundreds of small tensors costs ten times as much.
        return torch.optim.AdamW(
            parameters, lr=rate, betas=(0.9, self.beta2), weight_decay=self.weight_decay, fused=True
        )


def _answer_tokens(examples: Sequence[Encoded]) -> torch.Tensor:
    """Tokens that occur in the answers, ascending."""
    return torch.tensor(sorted({token for encoded in examples for token in encoded.ids[encoded.num_prompt :]}))


def _num_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the gradients and of the optimiser's own state."""
    tensors = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    kept = [value for state in optimizer.state.values() for value in state.values()]
    tensors += [value for value in kept if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
