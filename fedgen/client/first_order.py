"""Plain local training by gradient descent.

ClientUpdate of FedAvg: McMahan et al., AISTATS 2017, Algorithm 1, with Adam in place of SGD by default, as is usual for
LoRA. A client that lacks labels may leave them out of the softmax and of what it returns: Diao et al., "HeteroFL:
Computation and Communication Efficient Federated Learning for Heterogeneous Clients", ICLR 2021 (masked cross-entropy),
and the code released with it (label split).

Fused: Lv et al., "Full Parameter Fine-tuning for Large Language Models with Limited Resources" (LOMO), ACL 2024,
Algorithm 1: gradient and update are one step of the backward pass, so that gradients never are there all at once.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from fedgen.client.batches import batches
from fedgen.devices import Rung
from fedgen.errors import ClientError
from fedgen.learner import Learner
from fedgen.types import Encoded, Index, Kept, Trained


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
        micro_batch: so many examples of a step go through the model at once, and their gradients add up to those of the
            whole batch; null takes all at once. Memory is then that of a small batch. With an extraction whose steps
            draw widths, each such piece draws its own.
        fused: weights are updated within the backward pass, each as soon as its gradient is there, which is then
            dropped (LOMO). Saves as much memory as gradients of all weights take; needs max_grad_norm null.
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
    micro_batch: int | None = None
    fused: bool = False

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
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}; it must be at least 1, or null")
        if self.fused and self.max_grad_norm is not None:
            raise ValueError(
                f"fused is true and max_grad_norm is {self.max_grad_norm}; the norm is that of all gradients, of which "
                "fused drops each as soon as it is used. Set max_grad_norm to null, or fused to false"
            )
        if self.fused and self.micro_batch is not None:
            raise ValueError(
                f"fused is true and micro_batch is {self.micro_batch}; gradients of pieces add up, and fused drops "
                "each as soon as it is used. Set micro_batch to null, or fused to false"
            )
        if self.split_labels and not self.mask_absent:
            raise ValueError(
                "split_labels is true and mask_absent is false: a softmax over all tokens trains the rows of all. Set "
                "mask_absent=true, or split_labels=false"
            )

    @property
    def compares_losses(self) -> bool:
        """False: a step takes the gradient of one loss."""
        return False

    @property
    def needs_backward(self) -> bool:
        """True: gradients come from it."""
        return True

    @property
    def num_at_once(self) -> int:
        """Examples of a piece of a step."""
        return min(self.batch_size, self.micro_batch or self.batch_size)

    @property
    def num_passes(self) -> int:
        """Pieces of all steps."""
        return self.num_steps * math.ceil(self.batch_size / self.num_at_once)

    @property
    def drops_gradients(self) -> bool:
        """True if updates are fused, and if gradients of several pieces add up."""
        return self.fused or self.num_at_once < self.batch_size

    def held_bytes(self, trained_bytes: int, step_bytes: int) -> int:
        """What was trained as it came, two moments for Adam, the sum of gradients if there are several pieces."""
        copies = 1 + 2 * (self.optimizer == "adamw") + (self.num_at_once < self.batch_size)
        return copies * trained_bytes + step_bytes

    def at(self, rung: Rung) -> "FirstOrder":
        """With the rung's pieces of a step, unless updates are fused, which takes them whole."""
        return self if rung.micro_batch is None or self.fused else replace(self, micro_batch=rung.micro_batch)

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
        # Fused, each weight is updated by itself.
        groups = [[parameter] for parameter in parameters] if self.fused else [parameters]
        optimizers = [self._optimizer(group, progress) for group in groups]
        hooks = _update_when_ready(parameters, optimizers) if self.fused else []
        losses, num_tokens, among = [], 0, _answer_tokens(examples) if self.mask_absent else None
        try:
            for batch in batches(examples, self.batch_size, self.num_steps, self.num_epochs, generator):
                for optimizer in optimizers:
                    optimizer.zero_grad()
                losses.append(0.0)
                for piece, share in self._pieces(batch):
                    loss = learner.loss(piece, among) * share
                    losses[-1] += loss.item()
                    if not math.isfinite(losses[-1]):
                        raise ClientError("non_finite_loss", f"loss {losses[-1]} in step {len(losses)}")
                    loss.backward()
                if self.max_grad_norm is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
                if not self.fused:
                    optimizers[0].step()
                num_tokens += sum(len(encoded.ids) for encoded in batch)
            train_bytes = self._train_bytes(parameters, optimizers)
        finally:
            for hook in hooks:
                hook.remove()
            # A worker's learner goes on to the next client: gradients must neither stay in memory nor leak.
            for parameter in parameters:
                parameter.grad = None
        metrics = {
            "loss": sum(losses) / len(losses),
            "num_steps": float(len(losses)),
            "num_tokens": float(num_tokens),
            "train_bytes": float(train_bytes),
        }
        # One tensor after the other: where all weights are trained, each copy of them is as large as the model.
        change = {name: parameter.detach() - before.pop(name) for name, parameter in learner.parameters().items()}
        return Trained(change, metrics)

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

    def _pieces(self, batch: Sequence[Encoded]) -> Iterator[tuple[Sequence[Encoded], float]]:
        """Pieces of a batch, each with its share of the batch's answer tokens, over which the loss is a mean."""
        size, num_answers = self.micro_batch or len(batch), _num_answers(batch)
        for start in range(0, len(batch), size):
            piece = batch[start : start + size]
            yield piece, _num_answers(piece) / num_answers

    def _train_bytes(self, parameters: Sequence[torch.Tensor], optimizers: Sequence[torch.optim.Optimizer]) -> int:
        """Bytes of the gradients that are there at once, and of the optimisers' own state."""
        # Fused, they come and go one by one.
        sizes = [_num_bytes(p if self.fused else p.grad) for p in parameters]
        state = [value for one in optimizers for kept in one.state.values() for value in kept.values()]
        return (max(sizes, default=0) if self.fused else sum(sizes)) + sum(_num_bytes(value) for value in state)


def _update_when_ready(
    parameters: Sequence[torch.nn.Parameter], optimizers: Sequence[torch.optim.Optimizer]
) -> list[torch.utils.hooks.RemovableHandle]:
    """Has the backward pass update each parameter as soon as all of its gradient is there, and drop the gradient."""

    def update(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> None:
        optimizer.step()
        parameter.grad = None

    pairs = zip(parameters, optimizers, strict=True)
    return [parameter.register_post_accumulate_grad_hook(partial(update, optimizer)) for parameter, optimizer in pairs]


def _answer_tokens(examples: Sequence[Encoded]) -> Index:
    """Tokens that occur in the answers, ascending."""
    return _index({token for encoded in examples for token in encoded.ids[encoded.num_prompt :]})


def _index(tokens: Collection[int]) -> Index:
    return torch.tensor(sorted(tokens), dtype=torch.long)


def _num_answers(examples: Sequence[Encoded]) -> int:
    return sum(len(encoded.ids) - encoded.num_prompt for encoded in examples)


def _num_bytes(value: object) -> int:
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0
