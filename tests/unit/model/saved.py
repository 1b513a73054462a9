"""What autograd keeps for the backward pass, counted in bytes."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class _Held:
    """Stands for a tensor that is kept; autograd drops it when it needs the tensor no more."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextmanager
def keeping(module: nn.Module) -> Iterator[Callable[[], dict[int, Tensor]]]:
    """While it is open, what is called gives the tensors that are kept now, by the place of their memory.

    Those of the module itself do not count.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    packed: list[weakref.ref[_Held]] = []

    def pack(tensor: Tensor) -> _Held:
        held = _Held(tensor)
        packed.append(weakref.ref(held))
        return held

    def kept() -> dict[int, Tensor]:
        alive = [held.tensor for reference in packed if (held := reference()) is not None]
        return {
            place: tensor for tensor in alive if (place := tensor.untyped_storage().data_ptr()) not in own and place
        }

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        yield kept


def kept_tensors(module: nn.Module, run: Callable[[], Tensor]) -> list[Tensor]:
    """What a forward pass keeps."""
    with keeping(module) as kept:
        result = run()
        assert result.requires_grad
        return list(kept().values())


def num_bytes(module: nn.Module, run: Callable[[], Tensor]) -> int:
    """Bytes of what a forward pass keeps."""
    return sum(tensor.untyped_storage().nbytes() for tensor in kept_tensors(module, run))
