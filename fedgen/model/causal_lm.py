"""Any decoder-only language model of transformers, from a hub, a folder or a file inside a package."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedgen import tree
from fedgen.errors import ModelError
from fedgen.model import selfcheck, source
from fedgen.model.axes import axes_of
from fedgen.model.gguf_rows import read_gguf
from fedgen.model.int8 import read_int8
from fedgen.model.mapped import each_weight, load_as
from fedgen.model.part import shrink, skeleton
from fedgen.model.shared import TextBase, check_family
from fedgen.model.text import quiet_libraries
from fedgen.types import Index, Kept, Plan, State

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class CausalLM:
    """A pretrained language model; the default is SmolLM2-135M-Instruct out of a package.

    Attributes:
        source: hub id, local folder, local GGUF file, or `package/file` of an installed package.
        dtype: type of the frozen weights; `auto` is bfloat16 where the processor has instructions for it, else float32.
            `int8` holds matrices as 8-bit integers; `gguf` leaves the 4-bit ones of a GGUF file in that file and needs
            no conversion. Both work in the type of `auto` and train adapters only.
        attention: implementation of attention; `auto` is `eager` in bfloat16 (faster there on a CPU), else `sdpa`.
        max_length: longest example in tokens; the rest is cut off.
        checkpointing: layers are computed once more in the backward pass, so that between the two passes each keeps
            just what goes into it (gradient checkpointing); a third more time, and a fraction of the memory.
        chunk_tokens: rows of logits that exist at once in losses and scores; null makes all at once.
    """

    source: str = source.EMBEDDED
    dtype: Literal["auto", "float32", "bfloat16", "int8", "gguf"] = "auto"
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    max_length: int = 512
    checkpointing: bool = False
    chunk_tokens: int | None = 128

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if not self.source:
            raise ValueError("source is empty; give a hub id, a folder, or a file inside an installed package")
        if self.dtype == "gguf" and not self.source.endswith(".gguf"):
            raise ValueError(
                f"dtype is gguf, which uses the weights of a .gguf file as they are, and source is {self.source}; give "
                "such a file as source, or choose dtype int8, bfloat16 or float32"
            )
        if self.max_length < 2:
            raise ValueError(f"max_length is {self.max_length}; an example needs at least 2 tokens")
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens is {self.chunk_tokens}; it must be at least 1, or null")

    @property
    def lightest(self) -> str:
        """`gguf` where the source is such a file, else `int8`."""
        return "gguf" if self.source.endswith(".gguf") else "int8"

    def load(self, seed: int, kept: Kept | None = None, dtype: str | None = None) -> TextBase:
        """Reads the weights once, or just those of a part. The seed does not matter.

        Args:
            seed: of the run.
            kept: units of a part; None for the whole.
            dtype: type of the frozen weights in place of the field's.

        Raises:
            ModelError: the model cannot be found or read, or is of a family that is not supported.
        """
        if dtype is not None:
            return replace(self, dtype=dtype).load(seed, kept)  # type: ignore[arg-type]  # checked as the field is

        def read(folder: Path, found: Path) -> "nn.Module":
            if kept or self.dtype in ("int8", "gguf"):
                return self._assembled(folder, found, kept or {})
            return self._whole(folder)

        base = self._base(read, (kept or {}).get("vocab"))
        check_family(base.learner(base.module, {}))
        return base

    def outline(self, seed: int, dtype: str | None = None) -> TextBase:
        """A model on the meta device: no weight is read.

        Raises:
            ModelError: the model cannot be found or read.
        """
        if dtype is not None:
            return replace(self, dtype=dtype).outline(seed)  # type: ignore[arg-type]  # checked as the field is
        return self._base(lambda folder, _: self._sketch(folder).requires_grad_(False), None)

    def _base(self, read: Callable[[Path, Path], "nn.Module"], tokens: Index | None) -> TextBase:
        """The model that is made of a folder, and of the file that was found if its weights stay there.

        Raises:
            ModelError: the model cannot be found or read.
        """
        quiet_libraries()
        from transformers import AutoTokenizer

        found = source.find(self.source)
        if self.dtype == "gguf" and found.is_dir():
            raise ModelError(f"{found} is a folder; model.dtype=gguf takes a .gguf file, and int8 or bfloat16 a folder")
        fingerprint, folder = source.fingerprint(found), found
        if found.is_file():
            folder = (source.description_of if self.dtype == "gguf" else source.converted)(found, fingerprint)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            module = read(folder, found)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"cannot load a causal language model from {folder}: {error}") from error
        if tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer in {folder} has no end-of-sequence token; answers could never end")
        ways = (self.max_length, self.checkpointing, self.chunk_tokens, tokens)
        return TextBase(module, tokenizer, fingerprint, *ways)

    def _sketch(self, folder: Path) -> "nn.Module":
        """The whole, on the meta device."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        dtype, attention = getattr(torch, self.resolved_dtype()), self.resolved_attention()
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        return skeleton(lambda: AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention))

    def _whole(self, folder: Path) -> "nn.Module":
        module = load_as(folder, self.resolved_dtype(), self.resolved_attention())
        return module.requires_grad_(False).eval()

    def _assembled(self, folder: Path, found: Path, kept: Kept) -> "nn.Module":
        """A model whose weights are put in one by one; neither the whole nor a full-precision copy is in memory.

        Args:
            folder: configuration, and weights if they do not stay in a GGUF file.
            found: that file, or the folder.
            kept: units of a part; empty for the whole.
        """
        import torch
        from transformers import GenerationConfig

        dtype: torch.dtype = getattr(torch, self.resolved_dtype())
        whole = self._sketch(folder)
        plan: Plan = {name: (None,) * parameter.dim() for name, parameter in whole.named_parameters()}
        if kept:
            selfcheck.verify(whole)
            plan = tree.plan_of(axes_of(whole), kept)
        match self.dtype:
            case "gguf":
                tensors = tree.cut(read_gguf(found, whole, dtype), plan)
            case "int8":
                tensors = read_int8(folder, whole, dtype, plan)
            case _:
                tensors = _read(folder, whole, dtype, plan)
        part: Any = shrink(whole, tensors, kept)
        if (folder / "generation_config.json").is_file():
            part.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        module: nn.Module = part
        return module

    def resolved_attention(self) -> str:
        """`eager` or `sdpa`; what `auto` stands for with this type of weights."""
        if self.attention != "auto":
            return self.attention
        return "eager" if self.resolved_dtype() == "bfloat16" else "sdpa"

    def resolved_dtype(self) -> str:
        """`float32` or `bfloat16`: the type that it works in, on this processor if the field leaves it open."""
        if self.dtype in ("float32", "bfloat16"):
            return self.dtype
        import torch

        # Without such instructions bfloat16 is emulated: 2.5 times slower than float32 on an Ice Lake server.
        has = torch.cpu.get_capabilities()
        return "bfloat16" if any(value is True for name, value in has.items() if name.endswith("bf16")) else "float32"


def _read(folder: Path, module: "nn.Module", dtype: "torch.dtype", plan: Plan) -> State:
    """What a plan keeps of the weights in a folder, read one by one, so that nothing stands beside the part."""
    names, prefix = [name for name, _ in module.named_parameters() if name in plan], str(module.base_model_prefix)
    return {
        name: tree.cut({name: weight}, {name: plan[name]})[name].to(dtype).contiguous()
        for name, weight in each_weight(folder, names, prefix)
    }
