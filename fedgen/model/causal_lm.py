"""Any decoder-only language model of transformers, from a hub, a folder or a file inside a package."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedgen import tree
from fedgen.errors import ModelError
from fedgen.model import selfcheck, source
from fedgen.model.axes import axes_of
from fedgen.model.mapped import map_weights
from fedgen.model.part import shrink, skeleton
from fedgen.model.shared import TextBase, check_family
from fedgen.model.text import quiet_libraries
from fedgen.types import Kept

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class CausalLM:
    """A pretrained language model; the default is SmolLM2-135M-Instruct out of a package.

    Attributes:
        source: hub id, local folder, local GGUF file, or `package/file` of an installed package.
        dtype: type of the frozen weights; `auto` is bfloat16 where the processor has instructions for it, else float32.
        attention: implementation of attention; `auto` is `eager` in bfloat16 (faster there on a CPU), else `sdpa`.
        max_length: longest example in tokens; the rest is cut off.
    """

    source: str = source.EMBEDDED
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    max_length: int = 512

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if not self.source:
            raise ValueError("source is empty; give a hub id, a folder, or a file inside an installed package")
        if self.max_length < 2:
            raise ValueError(f"max_length is {self.max_length}; an example needs at least 2 tokens")

    def load(self, seed: int, kept: Kept | None = None) -> TextBase:
        """Reads the weights once, or just those of a part. The seed does not matter.

        Raises:
            ModelError: the model cannot be found or read, or is of a family that is not supported.
        """
        quiet_libraries()
        from transformers import AutoTokenizer

        folder = source.folder_of(self.source)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            module = self._part(folder, kept) if kept else self._whole(folder)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"cannot load a causal language model from {folder}: {error}") from error
        if tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer in {folder} has no end-of-sequence token; answers could never end")
        base = TextBase(module, tokenizer, source.fingerprint(folder), self.max_length, (kept or {}).get("vocab"))
        check_family(base.learner(module, {}))
        return base

    def _whole(self, folder: Path) -> "nn.Module":
        import torch
        from transformers import AutoModelForCausalLM

        dtype, attention = getattr(torch, self.resolved_dtype()), self.resolved_attention()
        module: nn.Module = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, local_files_only=True
        )
        return module.requires_grad_(False).eval()

    def _part(self, folder: Path, kept: Kept) -> "nn.Module":
        """A smaller model whose weights are cut from the mapped file; the whole is never in memory."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

        dtype: torch.dtype = getattr(torch, self.resolved_dtype())
        attention = self.resolved_attention()
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        whole = skeleton(lambda: AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention))
        selfcheck.verify(whole)
        names = [name for name, _ in whole.named_parameters()]
        mapped = map_weights(folder, names, str(whole.base_model_prefix))
        plan = tree.plan_of(axes_of(whole), kept)
        # One by one, so that no second copy of the part is ever there.
        tensors = {name: tree.cut(mapped, {name: plan[name]})[name].to(dtype).contiguous() for name in plan}
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
        """`float32` or `bfloat16`; what `auto` stands for on this processor."""
        if self.dtype != "auto":
            return self.dtype
        import torch

        # Without such instructions bfloat16 is emulated: 2.5 times slower than float32 on an Ice Lake server.
        has = torch.cpu.get_capabilities()
        return "bfloat16" if any(value is True for name, value in has.items() if name.endswith("bf16")) else "float32"
