"""A model's weights where they lie on the disk: memory-mapped, so that only what is used is ever read."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from fedgen.errors import ModelError
from fedgen.types import State


def map_weights(folder: Path, names: Iterable[str], prefix: str) -> State:
    """Weights by name, as views of the safetensors files; reading a slice of one reads that slice.

    Args:
        folder: a model as `save_pretrained` writes it, in one file or in several.
        names: what the model calls its weights; tied ones once.
        prefix: with which names may begin in the model and not in the file (`transformer` in GPT-2's).

    Raises:
        ModelError: a weight is missing.
    """
    from safetensors import safe_open

    places = _places(folder, names, prefix)
    found: State = {}
    for file in {file for file, _ in places.values()}:
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(key) for name, (own, key) in places.items() if own == file}
    return {name: found[name] for name in places}


def each_weight(folder: Path, names: Iterable[str], prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The same weights one after the other, each in a map of its own: what is let go of is in memory no longer.

    Raises:
        ModelError: a weight is missing.
    """
    from safetensors import safe_open

    for name, (file, key) in _places(folder, names, prefix).items():
        with safe_open(file, "pt") as opened:
            yield name, opened.get_tensor(key)


def _places(folder: Path, names: Iterable[str], prefix: str) -> dict[str, tuple[Path, str]]:
    """The file in which each weight lies, and its name there."""
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    places = {}
    for name in names:
        key = name if name in found else name.removeprefix(f"{prefix}.")
        if key not in found:
            raise ModelError(f"{folder} holds no weight {name}; is it the model that its config.json describes?")
        places[name] = found[key], key
    return places
