"""Deals kinds of devices out to clients: how many of each kind there are follows shares, who gets which a seed."""

from collections.abc import Sequence

import torch

from fedgen import seeds


def deal(names: Sequence[str], shares: Sequence[float], seed: int) -> list[int]:
    """A kind for each name: the numbers of each in proportion, who gets which by a seeded permutation.

    Args:
        names: clients, sorted, so that their order does not matter.
        shares: how common each kind is, in any unit.
        seed: of the run.
    """
    in_turn = [kind for kind, number in enumerate(_numbers(len(names), shares)) for _ in range(number)]
    order = torch.randperm(len(names), generator=seeds.derive(seed, "fleet")).tolist()
    return [in_turn[place] for place in order]


def _numbers(num_clients: int, shares: Sequence[float]) -> list[int]:
    """How many devices of each kind: quotas rounded down, and one more where the remainders are largest."""
    quotas = [num_clients * share / sum(shares) for share in shares]
    numbers = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda kind: numbers[kind] - quotas[kind])
    for kind in by_remainder[: num_clients - sum(numbers)]:
        numbers[kind] += 1
    return numbers
