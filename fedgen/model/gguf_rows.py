"""The weights of a model straight out of a GGUF file: 4-bit blocks that are decoded when they are used.

Nothing is converted, neither on the disk nor in memory: a matrix is a view of the mapped file and, where its rows are
not in the model's order, or not all of them are kept, an index of its rows. Pages that are not in use can be dropped by
the system and come back from the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fedgen.dryrun import alike
from fedgen.errors import ModelError
from fedgen.model.gguf_file import GgufFile, Stored, open_file
from fedgen.model.gguf_types import GgufType
from fedgen.model.quantised import Quantised
from fedgen.types import Index, State

DECODED_ENTRIES = 2**17
"""Entries that are in fp32 at once, before they are put into the type that is multiplied."""

FAMILIES: Mapping[str, bool] = {"llama": True, "qwen2": False, "qwen3": False}
"""Architectures whose weights a file holds as they are, but for the order of rows: whether heads are shuffled."""

OUTSIDE: Mapping[str, str] = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

INSIDE: Mapping[str, str] = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""What llama.cpp calls the parts of a layer, by what transformers does."""


@dataclass(frozen=True)
class GgufRows:
    """Rows of blocks.

    Attributes:
        name: of the weight, for messages.
        type: what the bytes mean.
        bytes: rows as they lie in the file, or in memory.
        order: which of them are the matrix's, one after the other; None for all as they are.
    """

    name: str
    type: GgufType
    bytes: UInt8[Tensor, "stored bytes"]
    order: Index | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        num_rows = len(self.bytes) if self.order is None else len(self.order)
        return num_rows, self.bytes.shape[1] // self.type.num_bytes * self.type.num_entries

    @property
    def nbytes(self) -> int:
        """Bytes of its rows, wherever they lie."""
        return self.shape[0] * self.bytes.shape[1]

    @property
    def grain(self) -> int:
        """Those of a block."""
        return self.type.num_entries

    def block(
        self, start: int, stop: int, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, " rows"] | None]:
        """Decoded rows."""
        key = (self.type, stop - start, self.bytes.shape[1], self.bytes.stride(), self.order is None, dtype)
        return alike(key, lambda: self._decoded(start, stop, dtype)), None

    def _decoded(self, start: int, stop: int, dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
        decoded = torch.empty(stop - start, self.shape[1], dtype=dtype)
        step = max(1, DECODED_ENTRIES // self.shape[1])
        for begin in range(start, stop, step):
            end = min(begin + step, stop)
            found = self.bytes[begin:end] if self.order is None else self.bytes[self.order[begin:end]]
            decoded[begin - start : end - start] = self.type.decode(self._blocks(found)).view(end - begin, -1)
        return decoded

    def narrow(self, dim: int, start: int, length: int) -> "GgufRows":
        """A view.

        Raises:
            ModelError: the stretch cuts through blocks.
        """
        if dim == 0:
            if self.order is None:
                return replace(self, bytes=self.bytes.narrow(0, start, length))
            return replace(self, order=self.order.narrow(0, start, length))
        self._check(start % self.type.num_entries == 0 and length % self.type.num_entries == 0)
        ratio = self.type.num_bytes, self.type.num_entries
        begin, size = (number // ratio[1] * ratio[0] for number in (start, length))
        return replace(self, bytes=self.bytes.narrow(1, begin, size))

    def select(self, dim: int, index: Index) -> "GgufRows":
        """Rows are left where they are; columns are copied.

        Raises:
            ModelError: the columns are not whole blocks.
        """
        if dim == 0:
            return replace(self, order=index if self.order is None else self.order[index])
        size = self.type.num_entries
        self._check(len(index) % size == 0)
        runs = index.view(-1, size)
        self._check(torch.equal(runs, runs[:, :1] // size * size + torch.arange(size)))
        found = self.bytes if self.order is None else self.bytes[self.order]
        picked = self._blocks(found)[:, runs[:, 0] // size]
        return replace(self, bytes=picked.view(len(found), -1), order=None)

    def empty(self, shape: tuple[int, int]) -> "GgufRows":
        """Memory for so many entries; columns are rounded up to whole blocks, and refused when they are filled."""
        num_blocks = -(-shape[1] // self.type.num_entries)
        return replace(self, bytes=self.bytes.new_empty(shape[0], num_blocks * self.type.num_bytes), order=None)

    def fill(self, other: "GgufRows") -> None:
        """Copies bytes."""
        assert self.order is None, "rows that lie elsewhere are not written to"
        self.bytes.copy_(other.bytes if other.order is None else other.bytes[other.order])

    def _blocks(self, found: UInt8[Tensor, "rows bytes"]) -> UInt8[Tensor, "rows blocks size"]:
        return found.view(len(found), -1, self.type.num_bytes)

    def _check(self, fits: bool) -> None:
        if not fits:
            raise ModelError(
                f"a part of a base with model.dtype=gguf holds whole blocks of {self.type.num_entries} inputs "
                f"({self.type.name}), and one of {self.name} would not. Choose extraction=rolling with "
                f"extraction.block={self.type.num_entries}, or extraction_mode=window, which cuts nothing, or another "
                "model.dtype"
            )


def read_gguf(file: Path, module: nn.Module, dtype: torch.dtype) -> State:
    """Weights of a model by name: matrices in the mapped file, all others as they are used.

    Args:
        file: a GGUF file.
        module: the model; may be on the meta device.
        dtype: floating type of norms and biases, and of what matrices are multiplied with.

    Raises:
        ModelError: the file is damaged, or of another family, or lacks a weight, or has it in another shape or type.
    """
    opened = open_file(file)
    if opened.architecture not in FAMILIES:
        raise ModelError(
            f"{file.name} is of family {opened.architecture or '(none said)'}, which model.dtype=gguf cannot use as it "
            f"is; it can use {', '.join(FAMILIES)}. Choose model.dtype=int8 or bfloat16, which convert the file once"
        )
    return {name: _weight(opened, file, module, name, dtype) for name, _ in module.named_parameters()}


def _weight(opened: GgufFile, file: Path, module: nn.Module, name: str, dtype: torch.dtype) -> Tensor:
    stored = opened.tensors.get(_name_in_file(name))
    shape = tuple(module.get_parameter(name).shape)
    if stored is None or stored.shape != shape:
        found = "none" if stored is None else f"one of shape {list(stored.shape)}"
        raise ModelError(
            f"{file.name} should hold weight {name} of shape {list(shape)} as {_name_in_file(name)}, and has {found}; "
            "is its description of the model right? model.dtype=bfloat16 converts files in more ways"
        )
    order = _order(module, name, shape[0]) if FAMILIES[opened.architecture] else None
    if len(shape) == 2:
        return Quantised(GgufRows(name, stored.type, stored.bytes, order), dtype)
    values = _values(stored)
    return (values if order is None else values[order]).to(dtype)


def _values(stored: Stored) -> Float[Tensor, " entries"]:
    blocks = stored.bytes.view(1, -1, stored.type.num_bytes)
    return stored.type.decode(blocks).view(-1).clone()


def _name_in_file(name: str) -> str:
    """What llama.cpp calls a weight.

    >>> _name_in_file("model.layers.3.self_attn.q_proj.weight"), _name_in_file("lm_head.weight")
    ('blk.3.attn_q.weight', 'output.weight')
    """
    path, _, leaf = name.rpartition(".")
    if path in OUTSIDE:
        return f"{OUTSIDE[path]}.{leaf}"
    number, _, inside = path.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{INSIDE.get(inside, inside)}.{leaf}"


def _order(module: nn.Module, name: str, num_rows: int) -> Index | None:
    """Where the rows of queries and keys lie: llama.cpp has the two halves of a head's rows in turns."""
    config: Any = module.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    projection = name.split(".")[-2]
    if projection not in heads:
        return None
    return torch.arange(num_rows).view(heads[projection], -1, 2).transpose(1, 2).reshape(-1)
