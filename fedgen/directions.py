"""Directions of +1 and -1 that a seed alone fixes, to the bit and on every processor.

A change that is made of steps along such directions is told by one seed and one number for each step, whatever its
size: FedKSeed (Qin et al., "Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost
under 18 Kilobytes", ICML 2024, section 3). torch's own generators differ between processors; here signs are the bits of
a counter-based generator in whole numbers, splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
Generators", OOPSLA 2014, section 5). A sign times an fp32 number is exact, so a step rounds once, fused or not, and a
replay of the same steps gives the same bits everywhere.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedgen.types import State, Walk

GAMMA = 0x9E3779B97F4A7C15 - 2**64
"""What splitmix64 advances its state by; as a number with a sign, like the two multipliers."""

MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)

WORD_BITS = 64
"""Signs that one number of the generator holds; every tensor begins with a new one."""

CHUNK_WORDS = 4096
"""Numbers that are drawn at once: a million bytes of signs, which stay in the processor's cache."""


@dataclass(frozen=True)
class Space:
    """Named tensors laid end to end in one array, so that a direction through all of them is drawn at once.

    Attributes:
        shapes: of the tensors, in order.
        names: one number for each, of its name.
        owners: to which tensor each word of 64 entries belongs.
        counts: how many words of its tensor come before it.
    """

    shapes: Mapping[str, tuple[int, ...]]
    names: Int[Tensor, " tensors"]
    owners: Int[Tensor, " words"]
    counts: Int[Tensor, " words"]

    def zeros(self) -> Float[Tensor, " entries"]:
        """An array for all tensors; each begins at a multiple of 64 entries."""
        return torch.zeros(len(self.counts) * WORD_BITS)

    def views(self, array: Float[Tensor, " entries"]) -> State:
        """The tensors that lie in an array."""
        state, start = State(), 0
        for name, shape in self.shapes.items():
            length = math.prod(shape)
            state[name] = array[start : start + length].view(shape)
            start += -(-length // WORD_BITS) * WORD_BITS
        return state

    def draw(self, seed: int) -> State:
        """A direction: +1 or -1 for every entry."""
        array = self.zeros()
        for start, signs in self._signs(seed):
            array[start : start + len(signs)] = signs
        return self.views(array)

    def step(self, array: Float[Tensor, " entries"], seed: int, scale: float) -> None:
        """Adds a direction times an fp32 number to an array, in place; never holds the whole direction."""
        for start, signs in self._signs(seed):
            array[start : start + len(signs)].add_(signs, alpha=scale)

    def _signs(self, seed: int) -> Iterator[tuple[int, Float[Tensor, " chunk"]]]:
        """Chunks of a direction, and where they begin."""
        table = _signs_of_bytes()
        keys = _next(_next(torch.tensor(seed)) ^ self.names)
        bits = torch.arange(0, WORD_BITS, 8)
        for start in range(0, len(self.counts), CHUNK_WORDS):
            owners, counts = (t[start : start + CHUNK_WORDS] for t in (self.owners, self.counts))
            words = _next(keys[owners] + counts * GAMMA)
            octets = (words[:, None] >> bits) & 255
            yield start * WORD_BITS, table.index_select(0, octets.view(-1)).view(-1)


def space_of(shapes: Mapping[str, tuple[int, ...]]) -> Space:
    """The space of tensors of some names and shapes."""
    words = torch.tensor([-(-math.prod(shape) // WORD_BITS) for shape in shapes.values()], dtype=torch.int64)
    names = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True) for name in shapes]
    owners = torch.arange(len(words)).repeat_interleave(words)
    before = (words.cumsum(0) - words)[owners]
    return Space(dict(shapes), torch.tensor(names, dtype=torch.int64), owners, torch.arange(len(owners)) - before)


def direction(seed: int, name: str, shape: tuple[int, ...]) -> Float[Tensor, "..."]:
    """The direction of a seed in one tensor: +1 or -1 for every entry, by its place in the tensor.

    With the key = splitmix64(splitmix64(seed) ^ first 8 bytes of SHA-256(name)), entry e is bit e % 64 of the number
    e // 64 of the generator that starts at the key; 1 stands for +1.

    Args:
        seed: any number of 64 bits.
        name: of the tensor.
        shape: of the tensor, rows first.

    >>> direction(0, "w", (2, 3)).tolist() == direction(0, "w", (6,)).view(2, 3).tolist()
    True
    """
    return space_of({name: shape}).draw(seed)[name]


def replay(walk: Walk, shapes: Mapping[str, tuple[int, ...]]) -> State:
    """The change that a walk is: from zero, step after step, ``change += scale * direction(seed)`` in fp32."""
    space = space_of(shapes)
    array = space.zeros()
    for seed, scale in zip(walk.seeds.tolist(), walk.scales.tolist(), strict=True):
        space.step(array, seed, scale)
    return space.views(array)


def _next(state: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """What splitmix64 gives in a state. Products wrap around; shifts take no sign along."""
    mixed = state + GAMMA
    for shift, factor in zip((30, 27), MULTIPLIERS, strict=True):
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return mixed ^ _shifted(mixed, 31)


def _shifted(x: Int[Tensor, "..."], by: int) -> Int[Tensor, "..."]:
    # The mask takes away what an arithmetic shift fills in.
    shifted: Tensor = (x >> by) & (2 ** (WORD_BITS - by) - 1)
    return shifted


def _signs_of_bytes() -> Float[Tensor, "256 8"]:
    """The eight signs of every byte, lowest bit first. A look-up is six times faster than shifting bit by bit."""
    return 2.0 * ((torch.arange(256)[:, None] >> torch.arange(8)) & 1) - 1.0
