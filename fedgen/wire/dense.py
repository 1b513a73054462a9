"""Every tensor as it is, one after the other in one array.

Transports pay per object and not per byte, so a payload is one array however many tensors there are.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen import tree
from fedgen.errors import ClientError
from fedgen.messages import Payload
from fedgen.types import Plan, State, Walk

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int64": torch.int64}
ALIGNMENT_BYTES = 64
"""Tensors start at multiples of this, so that decoding is a view and never a copy."""


@dataclass(frozen=True)
class Dense:
    """All entries at full precision."""

    def encode(self, state: State, plan: Plan | None = None, walk: Walk | None = None) -> Payload:
        """Packs the tensors in the order of the state, or what a plan keeps of them in the order of the plan.

        A walk is left aside.

        Raises:
            ValueError: a tensor is of a type that the wire does not carry.
        """
        plan = {name: (None,) * tensor.dim() for name, tensor in state.items()} if plan is None else plan
        names = {dtype: name for name, dtype in DTYPES.items()}
        unknown = {str(state[name].dtype) for name in plan} - {str(dtype) for dtype in names}
        if unknown:
            raise ValueError(f"dense carries {', '.join(DTYPES)}, not {', '.join(sorted(unknown))}")
        manifest = tuple(
            (name, names[state[name].dtype], tuple(tree.extent(state[name], kept))) for name, kept in plan.items()
        )
        starts = _starts(manifest)
        data = torch.zeros(starts[-1], dtype=torch.uint8)
        places = {
            name: _view(data, start, DTYPES[dtype], shape)
            for (name, dtype, shape), start in zip(manifest, starts, strict=False)
        }
        tree.cut(state, plan, places)
        return Payload(manifest, data)

    def decode(self, payload: Payload, shapes: Mapping[str, tuple[int, ...]] | None = None) -> State:
        """Views of the payload's bytes, of the shapes that its manifest says.

        Raises:
            ClientError: `malformed`, if manifest and bytes do not fit together.
        """
        manifest = payload.manifest
        if len({name for name, _, _ in manifest}) != len(manifest) or any(
            dtype not in DTYPES or min((0, *shape)) < 0 for _, dtype, shape in manifest
        ):
            raise ClientError("malformed", "a payload's manifest repeats a name or holds an unknown type or shape")
        starts = _starts(manifest)
        if payload.data.numel() != starts[-1]:
            raise ClientError(
                "malformed", f"a payload holds {payload.data.numel()} bytes, its manifest says {starts[-1]}"
            )
        return {
            name: _view(payload.data, start, DTYPES[dtype], shape)
            for (name, dtype, shape), start in zip(manifest, starts, strict=False)
        }


def _starts(manifest: tuple[tuple[str, str, tuple[int, ...]], ...]) -> list[int]:
    """Offset of each tensor in bytes, and after them the length of the whole."""
    starts = [0]
    for _, dtype, shape in manifest:
        length = math.prod(shape) * DTYPES[dtype].itemsize
        starts.append(starts[-1] + -(-length // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
    return starts


def _view(data: Tensor, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    length = math.prod(shape) * dtype.itemsize
    return data[start : start + length].view(dtype).view(shape)
