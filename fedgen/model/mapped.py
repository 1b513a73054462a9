"""A model's weights where they lie on the disk: memory-mapped, so that only what is used is ever read."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fedgen.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What safetensors and torch call the types of plain weights."""


def each_weight(folder: Path, names: Iterable[str], prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Weights by name, one after the other, as views of safetensors files; reading a slice of one reads that slice.

    Each has a map of its own: what is let go of is in memory no longer.

    Args:
        folder: a model as `save_pretrained` writes it, in one file or in several.
        names: what the model calls its weights; tied ones once.
        prefix: with which names may begin in the model and not in the file (`transformer` in GPT-2's).

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


def load_as(folder: Path, dtype: str, attention: str) -> "nn.Module":
    """A whole model: mapped if its files hold numbers of this type, else converted tensor by tensor.

    What is converted out of a map stays in memory beside its copy until all is there; what is read does not.

    Args:
        folder: a model as `save_pretrained` writes it.
        dtype: type of the weights, `float32` or `bfloat16`.
        attention: implementation of attention.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    wanted: torch.dtype = getattr(torch, dtype)
    with ExitStack() as stack:
        files = sorted(folder.glob("model*.safetensors"))
        opened: list[Any] = [stack.enter_context(safe_open(file, "pt", backend="pread")) for file in files]
        slices = {name: one.get_slice(name) for one in opened for name in one.keys()}  # noqa: SIM118 - it is no mapping
        stored = {one.get_dtype() for one in slices.values()}
        if not stored <= FLOATS.keys() or {FLOATS[name] for name in stored} <= {dtype}:
            whole: nn.Module = AutoModelForCausalLM.from_pretrained(
                folder, dtype=wanted, attn_implementation=attention, local_files_only=True
            )
            return whole
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            family: Any = type(AutoModelForCausalLM.from_config(config))
        module: Any = family.from_pretrained(
            None, config=config, state_dict=slices, dtype=wanted, attn_implementation=attention
        )
    # What transformers notes where it is given a folder.
    module.name_or_path = module.config.name_or_path = str(folder)
    if (folder / "generation_config.json").is_file():
        module.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    converted: nn.Module = module
    return converted
