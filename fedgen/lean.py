"""A process with less in it: what training on a device never uses is not imported.

Stock transformers imports whatever it could ever need: the parts of torch that spread a model over machines, the
compiler, and scipy if that happens to be installed. On a device that is to train within 450 MB, 110 MB of it are too
much. Here each looks as it does where it is absent, or as long as nobody needs it; the rest is stock, and numbers are
equal to the bit.

What is left out stays out until the process ends. So this is for a process that does nothing but train, and it is
asked for by its first line, never by an import.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ABSENT = {
    "scipy": "36 MB: transformers matches the boxes of object detectors with it",
    "sklearn": "needs scipy; transformers draws a curve of assisted generation with it",
    "PIL": "2 MB: transformers opens pictures with it",
}
"""Optional packages that look as if they were not installed, and why they are not missed."""

COMPILER = "torch._dynamo"


def leave_out() -> None:
    """Leaves out what training on a device does not use. Once, and before transformers is imported."""
    assert "transformers" not in sys.modules, "what has been imported cannot be left out any more"
    import torch

    # To Python, None is a module that is known to be missing.
    sys.modules.update(dict.fromkeys(ABSENT))
    # 44 MB: tensors spread over machines, and sympy for their shapes. As in a torch that was built without them.
    torch.distributed.is_available = lambda: False
    # 26 MB: optimisers and transformers mark functions that the compiler must let alone.
    spec = importlib.util.find_spec(COMPILER)
    assert spec is not None, "torch comes with its compiler"
    assert COMPILER not in sys.modules, "what has been imported cannot be left out any more"
    stand_in = _Uncompiled(spec)
    sys.modules[COMPILER] = stand_in
    torch._dynamo = stand_in  # type: ignore[assignment]
    torch.nn.init.normal_ = _unless_on_meta(torch.nn.init.normal_)


class _Uncompiled(ModuleType):
    """Torch's compiler as long as nothing is compiled: marks on functions mean nothing then.

    Whoever asks for anything else of it gets the real one, with its price in memory.
    """

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__ = spec
        self.__file__ = spec.origin
        # Modules inside it can be imported by themselves, and one is.
        self.__path__ = list(spec.submodule_search_locations or ())

    def disable(
        self, fn: Callable[..., Any] | None = None, recursive: bool = True, *, reason: str = "", wrapping: bool = True
    ) -> Callable[..., Any]:
        """The function as it is, or what gives it back."""
        return (lambda function: function) if fn is None else fn

    def allow_in_graph(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """The function as it is."""
        return fn

    def assume_constant_result(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """The function as it is."""
        return fn

    def graph_break(self, msg: str = "") -> None:
        """Nothing: there is no graph to break."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the real one has
        if name.startswith("__"):
            raise AttributeError(f"module {COMPILER!r} has no attribute {name!r}")
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)


def _unless_on_meta(draw: Callable[..., "Tensor"]) -> Callable[..., "Tensor"]:
    """What draws numbers into a tensor, or leaves one without memory as it is.

    Models are made on the meta device before their weights are loaded; torch imports sympy to draw into those, 32 MB.
    """

    @functools.wraps(draw)
    def drawn(tensor: "Tensor", *rest: Any, **named: Any) -> "Tensor":
        return tensor if tensor.is_meta else draw(tensor, *rest, **named)

    return drawn
