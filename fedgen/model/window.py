"""Trains a window of a weight while the rest of it stays frozen: the device holds the whole model and trains a part.

The window is a matrix of its own that begins at zero, is added where it belongs, and ends as the change that is sent.
Of an embedding it is some rows, and a head that is tied to it shares them. So gradients and optimiser state exist for
the window alone, and no full gradient is ever made.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedgen.errors import ModelError
from fedgen.types import Index, Plan, State


class Rows(nn.Module):
    """An embedding of which only the rows of some tokens are trained.

    Args:
        table: the whole of it, which is frozen.
        rows: the trained rows, ascending.
    """

    def __init__(self, table: nn.Embedding, rows: Index) -> None:
        super().__init__()
        self.table = table
        table.weight.requires_grad_(False)
        self.change = nn.Parameter(torch.zeros((len(rows), table.embedding_dim), dtype=table.weight.dtype))
        self.register_buffer("rows", rows, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The frozen table; the decoder is asked for its type."""
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """What the whole table gives, and what is added to it."""
        found: Tensor = self.table(ids)
        # The token that fills gaps is looked up, and never learned from it.
        return found + added_to(ids, self.rows, self.change, but=self.table.padding_idx)  # type: ignore[arg-type]


def added_to(ids: Tensor, rows: Index, change: Tensor, but: int | None = None) -> Tensor:
    """What a change to some rows adds to those of the ids: nothing where one is not among them, or is the excepted one.

    >>> added_to(torch.tensor([3, 1]), torch.tensor([1, 2]), torch.tensor([[5.0], [6.0]])).tolist()
    [[0.0], [5.0]]
    """
    places = torch.searchsorted(rows, ids.contiguous()).clamp_(max=len(rows) - 1)
    held = rows[places] == ids
    if but is not None:
        held &= ids != but
    return functional.embedding(places, change) * held[..., None]


class Window(nn.Module):
    """A projection of which only the crossing of some outputs and some inputs is trained.

    Args:
        projection: the whole of it, which is frozen; a linear layer, or GPT-2's, whose weight has the inputs first.
        outputs: positions of the trained outputs; None for all.
        inputs: positions of the trained inputs; None for all.
    """

    def __init__(self, projection: nn.Module, outputs: Index | None, inputs: Index | None) -> None:
        super().__init__()
        whole: Any = projection
        self.projection = projection
        whole.weight.requires_grad_(False)
        self.input_first = type(projection).__name__ == "Conv1D"
        num_inputs, num_outputs = whole.weight.shape if self.input_first else whole.weight.shape[::-1]
        rows = num_outputs if outputs is None else len(outputs)
        columns = num_inputs if inputs is None else len(inputs)
        shape = (columns, rows) if self.input_first else (rows, columns)
        self.change = nn.Parameter(torch.zeros(shape, dtype=whole.weight.dtype))
        # The bias of a closing projection lies on no axis: it is trained as a whole, as it is.
        on_axis = whole.bias is not None and outputs is not None
        self.bias_change = nn.Parameter(torch.zeros(rows, dtype=whole.weight.dtype)) if on_axis else None
        if on_axis:
            whole.bias.requires_grad_(False)
        self.register_buffer("outputs", outputs, persistent=False)
        self.register_buffer("inputs", inputs, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The frozen weight; PEFT asks for its type."""
        weight: Any = self.projection.weight
        return weight  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """What the whole projection gives, and what the window adds to it."""
        frozen: Tensor = self.projection(x)
        seen = x if self.inputs is None else x.index_select(-1, self.inputs)  # type: ignore[arg-type]
        # A factor of LoRA reads what comes in another type than its own.
        seen = seen.to(self.change.dtype)
        change = functional.linear(seen, self.change.T if self.input_first else self.change, self.bias_change)
        return frozen + change if self.outputs is None else frozen.index_add(-1, self.outputs, change)  # type: ignore[arg-type]


def open_windows(
    module: nn.Module, parameters: Mapping[str, nn.Parameter], plan: Plan
) -> tuple[dict[str, nn.Parameter], State]:
    """Puts windows into a module in place of the projections of which the plan trains a part.

    Args:
        module: the whole model with its adapter on; changed in place.
        parameters: its adapter's parameters by name.
        plan: which positions are trained.

    Returns:
        The trained parameters by name, in the shapes of the plan; and the whole tensors by name, to load a state into.

    Raises:
        ModelError: something else than a projection, or the rows of an embedding, is cut.
    """
    whole = {name: parameter.data for name, parameter in parameters.items()}
    places = {id(parameter): place for place, parameter in module.named_parameters()}
    trained: dict[str, nn.Parameter] = {}
    opened: dict[str, Window | Rows] = {}
    for name, parameter in parameters.items():
        kept = plan.get(name)
        if kept is None:
            parameter.requires_grad_(False)
        elif all(index is None for index in kept):
            trained[name] = parameter
        else:
            path, _, leaf = places[id(parameter)].rpartition(".")
            if path not in opened:
                opened[path] = _window(module, path, parameter, kept, leaf)
            window = opened[path]
            change = window.bias_change if isinstance(window, Window) and leaf == "bias" else window.change
            assert change is not None
            trained[name] = change
    return trained, whole


def _window(
    module: nn.Module, path: str, parameter: nn.Parameter, kept: tuple[Index | None, ...], leaf: str
) -> Window | Rows:
    projection = module.get_submodule(path)
    if isinstance(projection, nn.Embedding) and kept[0] is not None and kept[1] is None:
        return _rows(module, path, projection, kept[0])
    if type(projection).__name__ not in ("Linear", "Factor", "Conv1D") or leaf != "weight" or parameter.dim() != 2:
        raise ModelError(
            f"{path} is a {type(projection).__name__}, of which no window can be trained; with extraction_mode=window, "
            "extraction.axes may hold ffn, kv and vocab"
        )
    first, second = kept
    outputs, inputs = (second, first) if type(projection).__name__ == "Conv1D" else (first, second)
    window = Window(projection, outputs, inputs)
    _replace(module, path, window)
    return window


def _rows(module: nn.Module, path: str, table: nn.Embedding, rows: Index) -> Rows:
    """Opens an embedding, and the head that is tied to it: what both have changed is one tensor."""
    window = Rows(table, rows)
    tied = [
        other
        for other, child in module.named_modules()
        if child is not table and child._parameters.get("weight") is table.weight
    ]
    for other in tied:
        head = Window(module.get_submodule(other), rows, None)
        head.change = window.change
        _replace(module, other, head)
    _replace(module, path, window)
    return window


def _replace(module: nn.Module, path: str, child: nn.Module) -> None:
    module.get_submodule(path.rpartition(".")[0]).register_module(path.rpartition(".")[2], child)
