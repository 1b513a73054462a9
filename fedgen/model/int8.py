"""Weights as 8-bit integers with one scale per output: the largest magnitude of a row is 127.

Absmax quantisation with a constant per row: Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers
at Scale", NeurIPS 2022, section 2. Weights only: activations stay as they are. An entry is off by at most half a scale.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from fedgen import tree
from fedgen.model.mapped import each_weight
from fedgen.model.quantised import Quantised
from fedgen.types import Index, Plan, State

QUANTISED_ENTRIES = 2**16
"""Entries that are in fp32 at once while integers are made of them. What is larger leaves holes between the integers,
which the system's allocator does not give back: 180 MB of them for a model of 135 million weights.
"""


@dataclass(frozen=True)
class Int8Rows:
    """Rows of integers.

    Attributes:
        entries: the integers.
        scales: what the integers of each row are multiplied by.
    """

    entries: Int8[Tensor, "rows columns"]
    scales: Float[Tensor, " rows"]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        num_rows, num_columns = self.entries.shape
        return num_rows, num_columns

    @property
    def nbytes(self) -> int:
        """One byte per entry, four per row."""
        return self.entries.nbytes + self.scales.nbytes

    @property
    def grain(self) -> int:
        """1: any columns can be kept."""
        return 1

    def block(
        self, start: int, stop: int, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, " rows"] | None]:
        """The integers, which bf16 holds exactly, and the scales."""
        return self.entries[start:stop].to(dtype), self.scales[start:stop]

    def narrow(self, dim: int, start: int, length: int) -> "Int8Rows":
        """A view."""
        scales = self.scales if dim else self.scales.narrow(0, start, length)
        return Int8Rows(self.entries.narrow(dim, start, length), scales)

    def select(self, dim: int, index: Index) -> "Int8Rows":
        """A copy; a row keeps its scale, whatever is left of it."""
        scales = self.scales if dim else self.scales.index_select(0, index)
        return Int8Rows(self.entries.index_select(dim, index), scales)

    def empty(self, shape: tuple[int, int]) -> "Int8Rows":
        """Memory for so many integers."""
        return Int8Rows(self.entries.new_empty(shape), self.scales.new_empty(shape[0]))

    def fill(self, other: "Int8Rows") -> None:
        """Copies integers and scales."""
        self.entries.copy_(other.entries)
        self.scales.copy_(other.scales)


def quantise(weight: Float[Tensor, "rows columns"], dtype: torch.dtype, input_first: bool = False) -> Quantised:
    """A matrix as integers, made block by block.

    Args:
        weight: the matrix.
        dtype: floating type of what it will be multiplied with.
        input_first: its columns are the outputs.
    """
    rows = weight.T if input_first else weight
    made = Int8Rows(torch.empty(rows.shape, dtype=torch.int8), torch.empty(len(rows)))
    step = max(1, QUANTISED_ENTRIES // rows.shape[1])
    for start in range(0, len(rows), step):
        block = rows[start : start + step].float()
        scales = block.abs().amax(1) / 127
        made.scales[start : start + step] = scales
        # A row of noughts has no scale.
        made.entries[start : start + step] = (block / scales.where(scales > 0, 1)[:, None]).round_()
    return Quantised(made, dtype, input_first)


def quantise_all(module: nn.Module, dtype: torch.dtype) -> State:
    """The weights of a model by name: those of linear layers and embeddings as integers, all others as they are."""
    kinds = _matrices(module)
    return {
        name: quantise(parameter.data, dtype, kinds[name]) if name in kinds else parameter.data
        for name, parameter in module.named_parameters()
    }


def read_int8(folder: Path, module: nn.Module, dtype: torch.dtype, plan: Plan) -> State:
    """What a plan keeps of the weights in a folder, with the integers that the whole of each would have.

    Args:
        folder: a model as `save_pretrained` writes it.
        module: the whole model; may be on the meta device.
        dtype: floating type of all that is no matrix, and of what matrices are multiplied with.
        plan: positions that are kept; absent weights are not read.

    Raises:
        ModelError: a weight is missing.
    """
    names, kinds = [name for name, _ in module.named_parameters()], _matrices(module)
    found: State = {}
    for name, tensor in each_weight(folder, names, str(module.base_model_prefix)):
        if name in plan and name in kinds:
            outputs, others = _apart(plan[name], 1 if kinds[name] else 0)
            # A row has a scale of its own, so of a table of all tokens only those rows are read that are kept.
            rows = quantise(tree.cut({name: tensor}, {name: outputs})[name], dtype, kinds[name])
            cut = tree.cut({name: rows}, {name: others})[name]
            # A copy: a view would keep the rest in memory.
            found[name] = cut if cut is rows else cut.clone()
        elif name in plan:
            found[name] = tree.cut({name: tensor}, {name: plan[name]})[name].to(dtype).clone()
    return found


def _apart(kept: tuple[Index | None, ...], dim: int) -> tuple[tuple[Index | None, ...], tuple[Index | None, ...]]:
    """What is kept in one dimension, and what in all others."""
    only = tuple(index if place == dim else None for place, index in enumerate(kept))
    return only, tuple(None if place == dim else index for place, index in enumerate(kept))


def _matrices(module: nn.Module) -> dict[str, bool]:
    """Weights of linear layers and embeddings by name, tied ones once, and whether each has its inputs first."""
    names = {name for name, _ in module.named_parameters()}
    found = {}
    for path, child in module.named_modules():
        kind = type(child).__name__
        if kind in ("Linear", "Embedding", "Conv1D") and f"{path}.weight" in names:
            found[f"{path}.weight"] = kind == "Conv1D"
    return found
