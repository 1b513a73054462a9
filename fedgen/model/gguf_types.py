"""What the bytes of a GGUF tensor mean: blocks of quantised entries, each with scales of its own.

The layouts are those of llama.cpp (ggml-quants.c), and the numbers are its own to the last bit: scales are fp16, so
that a product with a few bits is exact in fp32, and each entry is rounded once at most.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Blocks = UInt8[Tensor, "rows blocks bytes"]
Entries = Float[Tensor, "rows blocks entries"]


@dataclass(frozen=True)
class GgufType:
    """How entries lie in bytes.

    Attributes:
        name: as llama.cpp calls it.
        num_entries: of a block.
        num_bytes: of a block.
        decode: blocks as bytes → entries, in fp32.
    """

    name: str
    num_entries: int
    num_bytes: int
    decode: Callable[[Blocks], Entries]


def _half(blocks: Blocks, start: int) -> Entries:
    """One fp16 number of each block."""
    return blocks[..., start : start + 2].view(torch.float16).float()


def _plain(dtype: torch.dtype) -> Callable[[Blocks], Entries]:
    return lambda blocks: blocks.view(dtype).float()


def _nibbles(packed: UInt8[Tensor, "rows blocks bytes"], run: int) -> Float[Tensor, "rows blocks entries"]:
    """Two entries of each byte: the low halves of a run of bytes, then their high halves."""
    # Copied together first: bytes that lie apart are read at a fraction of the speed.
    runs = packed.contiguous().view(*packed.shape[:2], -1, run)
    entries = torch.empty(*runs.shape[:3], 2, run)
    entries[..., 0, :] = runs & 15
    entries[..., 1, :] = runs >> 4
    return entries.view(*packed.shape[:2], -1)


def _q4_0(blocks: Blocks) -> Entries:
    return _nibbles(blocks[..., 2:], 16).sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: Blocks) -> Entries:
    return _nibbles(blocks[..., 4:], 16).mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: Blocks) -> Entries:
    return blocks[..., 2:].contiguous().view(torch.int8).float().mul_(_half(blocks, 0))


def _q4_k(blocks: Blocks) -> Entries:
    """Eight runs of 32 entries, whose scales and offsets are 6-bit shares of two fp16 numbers."""
    packed = blocks[..., 4:16].contiguous()
    low, middle, high = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    shares = torch.cat([low & 63, (high & 15) | ((low >> 2) & 48)], -1)
    offsets = torch.cat([middle & 63, (high >> 4) | ((middle >> 2) & 48)], -1)
    entries = _nibbles(blocks[..., 16:], 32).view(*blocks.shape[:2], 8, 32)
    entries.mul_((shares.float() * _half(blocks, 0))[..., None])
    return entries.sub_((offsets.float() * _half(blocks, 2))[..., None]).view(*blocks.shape[:2], 256)


def _q6_k(blocks: Blocks) -> Entries:
    """Four low and two high bits of each entry apart; sixteen runs of 16 entries with 8-bit scales."""
    shape = blocks.shape[:2]
    low = _nibbles(blocks[..., :128], 64).view(*shape, 2, 4, 32)
    packed = blocks[..., 128:192].contiguous().view(*shape, 2, 1, 32)
    high = (packed >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]) & 3
    entries = low.add_((high << 4).float()).sub_(32).view(*shape, 16, 16)
    scales = blocks[..., 192:208].contiguous().view(torch.int8).float() * _half(blocks, 208)
    return entries.mul_(scales[..., None]).view(*shape, 256)


TYPES: Mapping[int, GgufType] = {
    0: GgufType("F32", 1, 4, _plain(torch.float32)),
    1: GgufType("F16", 1, 2, _plain(torch.float16)),
    2: GgufType("Q4_0", 32, 18, _q4_0),
    3: GgufType("Q4_1", 32, 20, _q4_1),
    8: GgufType("Q8_0", 32, 34, _q8_0),
    12: GgufType("Q4_K", 256, 144, _q4_k),
    14: GgufType("Q6_K", 256, 210, _q6_k),
    30: GgufType("BF16", 1, 2, _plain(torch.bfloat16)),
}
"""By the number that a file gives for them; those that models are mostly shared in."""
