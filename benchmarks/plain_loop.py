"""Federated averaging as one plain PyTorch function: what fedgen's loop is measured against.

It does the same training, with nothing around it: no plans, no wire, no journal, no checkpoint, no threads. A test
checks that it ends with the same weights.
"""

from collections.abc import Sequence

import torch

from fedgen import seeds
from fedgen.client.first_order import FirstOrder
from fedgen.learner import Learner
from fedgen.types import Encoded, State


def plain_loop(
    learner: Learner,
    shards: dict[str, list[Encoded]],
    state: State,
    client: FirstOrder,
    seed: int,
    cohorts: Sequence[Sequence[str]],
    num_rounds: int,
) -> State:
    """Trains for some rounds.

    Args:
        learner: the model; its loss is the same function that fedgen calls.
        shards: client name → encoded examples.
        state: named tensors to start from.
        client: hyperparameters, read from its fields.
        seed: of the run.
        cohorts: names of the clients of each round of the run.
        num_rounds: rounds to train; the run may be longer.

    Returns:
        The state after the last round.
    """
    parameters = learner.parameters()
    for number, cohort in enumerate(cohorts[:num_rounds], 1):
        progress = (number - 1) / max(1, len(cohorts) - 1)
        rate = client.learning_rate * (1 + (client.final_learning_rate - 1) * progress)
        sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in state.items()}
        weight = 0
        for name in cohort:
            examples = shards[name]
            with torch.no_grad():
                for key, parameter in parameters.items():
                    parameter.copy_(state[key])
            optimizer = torch.optim.AdamW(
                parameters.values(), lr=rate, betas=(0.9, client.beta2), weight_decay=client.weight_decay, fused=True
            )
            generator = seeds.derive(seed, "train", number, name)
            size = min(client.batch_size, len(examples))
            per_pass = -(-len(examples) // size)
            for step in range(client.num_steps):
                if step % per_pass == 0:
                    order = torch.randperm(len(examples), generator=generator).tolist()
                start = step % per_pass * size
                optimizer.zero_grad()
                loss = learner.loss([examples[i] for i in order[start : start + size]])
                if not torch.isfinite(loss):
                    raise FloatingPointError(name)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters.values(), client.max_grad_norm)
                optimizer.step()
            for key, parameter in parameters.items():
                sums[key] += len(examples) * (parameter.detach() - state[key]).double()
            weight += len(examples)
        state = {key: (tensor.double() + sums[key] / weight).float() for key, tensor in state.items()}
    return state
