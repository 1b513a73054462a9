"""Whether the planner lets in what fits, on configurations that its constants have never seen.

As ``planner`` does it, each in a process of its own: other ranks, targets, lengths, batches, adapters, families and
parts. Whoever changes a constant of the planner after a look at these has to write others here.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from planner import Probe, judged, row_of

FULL = ["adapter=full", "export=merged", "client.max_grad_norm=null", "model.dtype=float32"]
TINY = ["model=tiny", "model.hidden_size=256", "model.num_layers=8", "model.max_length=1024"]
MADE = {
    "gpt2": {"n_embd": 512, "n_layer": 8, "n_head": 8, "n_positions": 512},
    "qwen2": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 10,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
}
"""Families whose models are made here, of random numbers."""


def probes(folder: Path) -> Iterator[Probe]:
    """Eighteen configurations.

    Args:
        folder: holds the models of ``MADE``, by family.
    """
    attention, gates = "adapter.targets=[q_proj,k_proj,v_proj,o_proj]", "adapter.targets=[gate_proj,down_proj]"
    bf16, int8, gguf = (f"model.dtype={dtype}" for dtype in ("bfloat16", "int8", "gguf"))
    recomputed, light, frozen = "model.checkpointing=true", "client=zeroth_order", "adapter=frozen_a"
    yield Probe(["adapter.rank=32", "client.batch_size=2", bf16], 100, False)
    yield Probe(["adapter.rank=2", gates, "client.batch_size=1", gguf, recomputed], 320, True)
    yield Probe(["adapter.rank=64", attention, "client.batch_size=8", int8, recomputed], 48, False)
    yield Probe([frozen, "adapter.rank=16", "client.batch_size=1", bf16], 224, False)
    yield Probe([frozen, "adapter.targets=[o_proj,up_proj]", "client.batch_size=3", int8, recomputed], 96, False)
    yield Probe(["adapter.top_layers=0.5", "client.batch_size=2", gguf], 160, False)
    yield Probe(["client.batch_size=6", "client.micro_batch=2", bf16], 200, False)
    yield Probe([attention, "client.batch_size=1", "model.chunk_tokens=null", int8], 500, False)
    yield Probe([*FULL, "client.batch_size=1", recomputed], 64, False)
    yield Probe([*FULL, "client.batch_size=2", "client.optimizer=sgd"], 80, True)
    yield Probe([light, "adapter.rank=4", "client.batch_size=8", int8], 160, False)
    yield Probe([light, attention, "client.batch_size=4", gguf], 512, True)
    yield Probe([*TINY, "client.batch_size=16"], 128, False)
    yield Probe([*TINY, light, "client.batch_size=2", int8], 700, False)
    for family in MADE:
        source = [f"model.source={folder / family}", "adapter.rank=16", "client.batch_size=2"]
        yield Probe([*source, "model.dtype=float32"], 256, False)
    static = ["extraction=static", "client.batch_size=1", bf16]
    yield Probe([*static, "extraction.axes=[ffn,kv]"], 256, False, 0.5)
    yield Probe([*static, "extraction.axes=[vocab]", recomputed], 144, False, 0.25)


def main(as_json: bool) -> int:
    """Prints the figures; 1 if one is above its bound."""
    from fedgen.cli.figures import report

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for family in MADE:
            make(family, Path(folder) / family)
        for probe in probes(Path(folder)):
            rows.append(row_of(probe))
            if not as_json:
                print(json.dumps(rows[-1]), flush=True)
    return report("The planner's word on what it has never seen", judged(rows), as_json)


def make(family: str, folder: Path) -> None:
    """Writes a random model of a family, with the tokenizer of the tiny one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from fedgen.model.tiny import Tiny

    tokenizer = Tiny().load(0).tokenizer
    end = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(family, vocab_size=32_000, **MADE[family], **end)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
