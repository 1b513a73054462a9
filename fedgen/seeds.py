"""Randomness from names: every draw of a run has a path, and the path alone fixes it.

Nothing is drawn from a global generator, so neither the number of workers nor the order of the cohort changes a bit,
and a resumed run needs no generator state.
"""

import hashlib

import torch


def integer(seed: int, *path: str | int) -> int:
    """A number in [0, 2**63) fixed by the seed and the path.

    >>> integer(0, "cohort", 1) == integer(0, "cohort", 1)
    True
    >>> integer(0, "cohort", 1) == integer(0, "cohort", 2)
    False
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derive(seed: int, purpose: str, round: int = 0, client: str = "") -> torch.Generator:
    """A generator of its own for one purpose of one client in one round.

    >>> float(torch.rand((), generator=derive(0, "x"))) == float(torch.rand((), generator=derive(0, "x")))
    True
    """
    return torch.Generator().manual_seed(integer(seed, purpose, round, client))
