"""A model's weights where they lie on the disk: memory-mapped, so that only what is used is ever read."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgen.errors import ModelError
from fedgen.types import State

if TYPE_CHECKING:
    from torch import nn

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What safetensors and torch call the types of plain weights."""


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
