"""A model's weights where they lie on the disk: memory-mapped, so that only what is used is ever read."""

from collections.abc import Iterable
from pathlib import Path

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

    found: State = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    named: State = {}
    for name in names:
        tensor = found.get(name, found.get(name.removeprefix(f"{prefix}.")))
        if tensor is None:
            raise ModelError(f"{folder} holds no weight {name}; is it the model that its config.json describes?")
        named[name] = tensor
    return named
