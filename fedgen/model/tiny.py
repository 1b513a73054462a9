"""A small Llama with random weights and one token per byte, for tests, timing and training from nothing."""

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from fedgen import seeds
from fedgen.model.int8 import quantise_all
from fedgen.model.part import shrink
from fedgen.model.shared import TextBase
from fedgen.model.text import quiet_libraries
from fedgen.types import Kept

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


@dataclass(frozen=True)
class Tiny:
    """A random two-layer Llama over bytes, for tests and benchmarks.

    Attributes:
        hidden_size: width of the residual stream.
        num_layers: number of decoder layers.
        num_heads: number of query heads.
        num_kv_heads: number of key-value heads.
        max_length: longest example in tokens (bytes).
        intermediate_size: width of the feed-forward layers; null takes 3 × hidden_size.
        checkpointing: layers are computed once more in the backward pass, and keep just what goes into them.
        chunk_tokens: rows of logits that exist at once in losses and scores; null makes all at once.
        dtype: type of the frozen weights; `int8` holds matrices as 8-bit integers and works in float32.
    """

    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    max_length: int = 256
    intermediate_size: int | None = None
    checkpointing: bool = False
    chunk_tokens: int | None = 128
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"

    def __post_init__(self) -> None:
        """Refuses shapes that no Llama has."""
        if min(self._sizes()) < 1:
            raise ValueError(f"every size must be at least 1, got {self}")
        if self.hidden_size % (2 * self.num_heads) or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of 2 × num_heads ({self.num_heads}), and num_heads "
                f"a multiple of num_kv_heads ({self.num_kv_heads})"
            )
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens is {self.chunk_tokens}; it must be at least 1, or null")

    @property
    def lightest(self) -> str:
        """`int8`."""
        return "int8"

    def load(self, seed: int, kept: Kept | None = None, dtype: str | None = None) -> TextBase:
        """Draws the weights from the seed, and cuts a part of them if one is asked for.

        Args:
            seed: of the run.
            kept: units of a part; None for the whole.
            dtype: type of the frozen weights in place of the field's.
        """
        if dtype is not None:
            return replace(self, dtype=dtype).load(seed, kept)  # type: ignore[arg-type]  # checked as the field is
        quiet_libraries()
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = _byte_tokenizer()
        config = LlamaConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size or 3 * self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            vocab_size=len(tokenizer),
            max_position_embeddings=self.max_length,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
        module: Any = LlamaForCausalLM(config)
        generator = seeds.derive(seed, "tiny")
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
        module.requires_grad_(False).eval()
        if self.dtype == "bfloat16":
            module.to(torch.bfloat16)
        elif self.dtype == "int8":
            module = shrink(module, quantise_all(module, torch.float32), {})
        recipe = hashlib.sha256(f"tiny {self._sizes()} {seed}".encode()).hexdigest()
        ways = (self.max_length, self.checkpointing, self.chunk_tokens)
        return TextBase(module, tokenizer, recipe, *ways).part(kept or {})

    def outline(self, seed: int, dtype: str | None = None) -> TextBase:
        """All of it: its weights come from no file."""
        return self.load(seed, dtype=dtype)

    def _sizes(self) -> tuple[int, ...]:
        """The sizes that are given; the weights follow from them and the seed."""
        sizes = (self.hidden_size, self.num_layers, self.num_heads, self.num_kv_heads, self.max_length)
        return sizes if self.intermediate_size is None else (*sizes, self.intermediate_size)


def _byte_tokenizer() -> "PreTrainedTokenizerFast":
    """One token per byte, and a few for the turns of a conversation."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[0])
    fast.chat_template = CHAT_TEMPLATE
    return fast
