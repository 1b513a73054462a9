"""A process with less in it: what training on a device never uses is not imported, and what is freed is given back.

Stock transformers imports whatever it could ever need: the parts of torch that spread a model over machines, the
compiler, and scipy if that happens to be installed. That is 110 MB, on a device where training needs 450. Here each of
them looks as it does where it is absent, or stands by until somebody needs it; everything else is stock, and numbers
are equal to the bit.

What is left out stays out until the process ends. So this is for a process that does nothing but train, and it is
asked for by its first line, never by an import.
"""

import ctypes
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

ABSENT = {
    "scipy": "36 MB: transformers matches the boxes of object detectors with it",
    "sklearn": "needs scipy; transformers draws a curve of assisted generation with it",
    "PIL": "2 MB: transformers opens pictures with it",
}
"""Optional packages that look as if they were not installed, and why they are not missed."""

CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
CACHED = "16"
"""How many products the processor's library keeps ready. It would keep 1,024, one for every length of an example that
it meets, and eight steps already come to 150 MB. Read when the first product is taken."""

LARGE_BYTES = 2**20
"""Tensors from this size on are freed at once. Below it, giving them back and asking anew costs time."""

TIGHT_BYTES = 2**17
"""The same for a process that has to do with as little as it can: nearly nothing is held beside the tensors, and a step
takes up to twice the time."""


def slim_down() -> None:
    """Keeps memory for what training on a device uses. Once, and before transformers is imported."""
    assert "transformers" not in sys.modules, "what has been imported cannot be left out any more"
    import torch

    for name in CACHES:
        os.environ.setdefault(name, CACHED)
    # To Python, None is a module that is known to be missing.
    for name in ABSENT:
        sys.modules[name] = None  # type: ignore[assignment]
    # 8 MB: tensors spread over machines. As in a torch that was built without them.
    torch.distributed.is_available = lambda: False
    # 26 MB: the compiler. Optimisers and transformers mark functions for it; where it is not, marks mean nothing.
    marks = {"allow_in_graph": _same, "assume_constant_result": _same, "disable": _disable, "graph_break": _nothing}
    _Standby("torch._dynamo", marks, ("config",)).take_place()
    # 34 MB: sizes that are expressions. Models are made on the meta device before their weights are loaded, and its
    # kernels ask of every number whether it is one. None is as long as sympy, of which it would consist, stands by.
    _Standby("torch.fx.experimental.symbolic_shapes", _answers_for_numbers()).take_place()
    _Standby("sympy", {"Basic": type("Basic", (), {})}).take_place()
    # 44 MB with what it needs: torch asks of every tensor of a class of its own (frozen weights in few bits, for one)
    # whether it is spread over machines.
    _Standby("torch.distributed.tensor", {"DTensor": type("DTensor", (), {})}).take_place()
    free_early()


class _Standby(ModuleType):
    """Stands for a module until it is asked for more than is known without it; then becomes it, at its price in memory.

    Args:
        name: of the module.
        known: what it has, as far as it is needed.
        parts: modules inside it that can be imported by themselves.
    """

    def __init__(self, name: str, known: Mapping[str, Any], parts: tuple[str, ...] = ()) -> None:
        spec = importlib.util.find_spec(name)
        assert spec is not None, f"torch comes with {name}"
        super().__init__(name)
        self.__spec__, self.__file__, self._parts = spec, spec.origin, parts
        if spec.submodule_search_locations is not None:
            self.__path__ = list(spec.submodule_search_locations)
        vars(self).update(known)

    def take_place(self) -> None:
        """Is what an import finds from now on."""
        name = self.__name__
        assert name not in sys.modules, f"{name} has been imported and cannot be left out any more"
        sys.modules[name] = self
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, self)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the real one has
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name in self._parts:
            return importlib.import_module(f"{self.__name__}.{name}")
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        try:
            real = importlib.import_module(self.__name__)
        except ImportError as error:
            # Modules that import each other do so only in the order that they are used to.
            sys.modules[self.__name__] = self
            raise ImportError(
                f"{self.__name__}.{name} is not to be had in a process that fedgen.lean has slimmed down ({error}); "
                "use a process that is not"
            ) from error
        # Whoever imported this one goes on using it.
        vars(self).update(vars(real))
        return getattr(real, name)


def free_early(*, tight: bool = False) -> None:
    """Has the allocator return large blocks to the system as soon as they are free, where it is glibc's.

    It would learn from the first large block that is freed to keep all smaller ones for later. Holes between those cost
    20 to 50 MB at the peak, another number in every run, and nearly 200 MB between rounds.

    Args:
        tight: middle-sized blocks as well.
    """
    threshold_of_mmap = -3
    _glibc("mallopt", threshold_of_mmap, TIGHT_BYTES if tight else LARGE_BYTES)


def give_back() -> None:
    """Returns to the system what lies free in the allocator now; after a model was read that is 10 MB."""
    _glibc("malloc_trim", 0)


def _glibc(name: str, *arguments: int) -> None:
    """Calls a function of glibc; elsewhere does nothing."""
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):
        return
    function(*arguments)


def _answers_for_numbers() -> dict[str, Callable[..., Any]]:
    """What torch's functions about expressions say of plain numbers and conditions."""
    plain = ("expect_true", "guard_or_false", "guard_or_true", "guard_size_oblivious", "guarding_hint_or_throw")
    return {
        **dict.fromkeys((*plain, "statically_known_true"), _itself),
        "has_guarding_hint": lambda a: True,
        "is_nested_int": lambda s: False,
        "sym_and": lambda *conditions: all(conditions),
        "sym_or": lambda *conditions: any(conditions),
        "sym_eq": lambda x, y: list(x) == list(y) if isinstance(x, tuple | list) else x == y,
    }


def _itself(a: int, skip: int = 0) -> int:
    assert isinstance(a, int), f"{a!r} is no plain number and no plain condition"
    return a


def _same(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _disable(
    fn: Callable[..., Any] | None = None, recursive: bool = True, *, reason: str = "", wrapping: bool = True
) -> Callable[..., Any]:
    return _same if fn is None else fn


def _nothing(msg: str = "") -> None:
    pass
