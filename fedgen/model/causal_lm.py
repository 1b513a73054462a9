"""Any decoder-only language model of transformers, from a hub, a folder or a file inside a package."""

from dataclasses import dataclass
from typing import Literal

from fedgen.errors import ModelError
from fedgen.model import source
from fedgen.model.text import TextBase, check_family, quiet_libraries


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

    def load(self, seed: int) -> TextBase:
        """Reads the weights once. The seed does not matter.

        Raises:
            ModelError: the model cannot be found or read, or is of a family that is not supported.
        """
        quiet_libraries()
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = source.folder_of(self.source)
        dtype = self.resolved_dtype()
        attention = ("eager" if dtype == "bfloat16" else "sdpa") if self.attention == "auto" else self.attention
        try:
            module = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), attn_implementation=attention, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"cannot load a causal language model from {folder}: {error}") from error
        if tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer in {folder} has no end-of-sequence token; answers could never end")
        module.requires_grad_(False).eval()
        base = TextBase(module, tokenizer, source.fingerprint(folder), self.max_length)
        check_family(base.learner(module, {}))
        return base

    def resolved_dtype(self) -> str:
        """`float32` or `bfloat16`; what `auto` stands for on this processor."""
        if self.dtype != "auto":
            return self.dtype
        import torch

        # Without such instructions bfloat16 is emulated: 2.5 times slower than float32 on an Ice Lake server.
        has = torch.cpu.get_capabilities()
        return "bfloat16" if any(value is True for name, value in has.items() if name.endswith("bf16")) else "float32"
