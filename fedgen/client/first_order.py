"""Plain local training by gradient descent.

ClientUpdate of FedAvg: McMahan et al., AISTATS 2017, Algorithm 1, with Adam in place of SGD by default, as is usual for
LoRA. A client that lacks labels may leave them out of the softmax and of what it returns: Diao et al., "HeteroFL:
Computation and Communication Efficient Federated Learning for Heterogeneous Clients", ICLR 2021 (masked cross-entropy),
and the code released with it (label split).
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fedgen.errors import ClientError
from fedgen.learner import Learner
from fedgen.types import Encoded, Index, Kept, Metrics


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
        split_labels: of embedding and head the client returns the rows of those tokens only that occur in its examples,
            and a row is averaged over the clients that have its token; matters where the adapter trains these and parts
            are made. It tells the server which tokens the examples of each client have, whatever protects the numbers;
            the journal keeps those of all clients of a round together.
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
    split_labels: bool = False

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
        if self.split_labels and not self.mask_absent:
            raise ValueError(
                "split_labels is true and mask_absent is false: a softmax over all tokens trains the rows of all. Set "
                "mask_absent=true, or split_labels=false"
            )

    def train(
        self, learner: Learner, examples: Sequence[Encoded], progress: float, generator: torch.Generator
    ) -> Metrics:
        """Trains on shuffled passes over the examples.

        Returns:
            loss: mean of the steps' losses; num_steps; num_tokens: tokens that went through the model; train_bytes:
            memory of gradients and optimiser state.

        Raises:
            ClientError: `no_examples`, or `non_finite_loss` when a loss is NaN or infinite.
        """
        if not examples:
            raise ClientError("no_examples")
        parameters = list(learner.parameters().values())
        optimizer = self._optimizer(parameters, progress)
        losses, num_tokens, among = [], 0, _answer_tokens(examples) if self.mask_absent else None
        for batch in self._batches(examples, generator):
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
        return {
            "loss": sum(losses) / len(losses),
            "num_steps": float(len(losses)),
            "num_tokens": float(num_tokens),
            "train_bytes": float(train_bytes),
        }

    def trained_units(self, examples: Sequence[Encoded]) -> Kept:
        """The tokens of prompts and answers, if labels are split."""
        return {"vocab": _index({token for e in examples for token in e.ids})} if self.split_labels else {}

    def _optimizer(self, parameters: list[torch.nn.Parameter], progress: float) -> torch.optim.Optimizer:
        rate = self.learning_rate * (1.0 + (self.final_learning_rate - 1.0) * progress)
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=rate, weight_decay=self.weight_decay, fused=True)
        # fused: one pass over all factors; the loop over hundreds of small tensors costs ten times as much.
        return torch.optim.AdamW(
            parameters, lr=rate, betas=(0.9, self.beta2), weight_decay=self.weight_decay, fused=True
        )

    def _batches(self, examples: Sequence[Encoded], generator: torch.Generator) -> Iterator[list[Encoded]]:
        """Batches out of shuffled passes; the last of a pass may be smaller."""
        size = min(self.batch_size, len(examples))
        per_pass = -(-len(examples) // size)
        num_steps = self.num_steps if self.num_epochs is None else max(1, round(self.num_epochs * per_pass))
        for step in range(num_steps):
            if step % per_pass == 0:
                order = torch.randperm(len(examples), generator=generator).tolist()
            start = step % per_pass * size
            yield [examples[position] for position in order[start : start + size]]


def _answer_tokens(examples: Sequence[Encoded]) -> Index:
    """Tokens that occur in the answers, ascending."""
    return _index({token for encoded in examples for token in encoded.ids[encoded.num_prompt :]})


def _index(tokens: Collection[int]) -> Index:
    return torch.tensor(sorted(tokens), dtype=torch.long)


def _num_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the gradients and of the optimiser's own state."""
    tensors = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    kept = [value for state in optimizer.state.values() for value in state.values()]
    tensors += [value for value in kept if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
