"""Writes tiny models as GGUF files, as llama.cpp's converter does."""

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from fedgen.model.tiny import Tiny
from tests.unit.model.families import llama, qwen2

VOCAB = len(Tiny().load(0).tokenizer) + 1
"""One token per byte, a few special ones, and two spaces together: a file's tokenizer has to merge something."""

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
"""All widths are whole blocks of 32, and so are the two query heads of a key-value head."""

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def small_llama(**changes):
    return llama(**{**SIZES, "vocab_size": VOCAB, "num_hidden_layers": 2, "eos_token_id": 0, **changes})


def small_qwen2(**changes):
    plain = {"layer_types": ["full_attention"] * 2, "use_sliding_window": False, "sliding_window": None}
    return qwen2(**{**SIZES, **plain, "vocab_size": VOCAB, "num_hidden_layers": 2, "eos_token_id": 0, **changes})


def write_gguf(file, module, kinds, architecture="llama"):
    """Writes a model.

    Args:
        file: where to.
        module: of transformers.
        kinds: type of a matrix by the last part of its name in the file; "" for all others.
        architecture: family as llama.cpp calls it; of `llama` the rows of queries and keys are shuffled.
    """
    config = module.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer)
    for name, parameter in module.named_parameters():
        values = parameter.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if architecture == "llama" and heads:
            # The converter's own words: two halves of a head become pairs.
            values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        stored = name_in_file(name)
        kind = kinds.get(stored.split(".")[-2], kinds[""]) if parameter.dim() == 2 else GGMLQuantizationType.F32
        writer.add_tensor(stored, quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def name_in_file(name):
    path, _, leaf = name.rpartition(".")
    if path in NAMES:
        return f"{NAMES[path]}.{leaf}"
    return f"blk.{path.split('.')[2]}.{NAMES[path.split('.')[-1]]}.{leaf}"


def _add_tokenizer(writer):
    tokenizer = Tiny().load(0).tokenizer
    tokens = [tokenizer.convert_ids_to_tokens(number) for number in range(VOCAB - 1)]
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*tokens, "ĠĠ"])
    writer.add_token_types([3 if token in special else 1 for token in tokens] + [1])
    writer.add_token_merges(["Ġ Ġ"])
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_unk_token_id(end)
    writer.add_chat_template(tokenizer.chat_template)
