"""Whether the planner lets in what fits, on configurations that its constants have never seen.

As ``planner`` does it, each in a process of its own. They are drawn from all that can be combined: families, types of
weights, adapters, clients, lengths, batches, pieces, parts. What fedgen refuses is drawn anew. Whoever changes a
constant of the planner after a look at these draws others, with another ``SEED``.
"""

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from planner import Probe, judged, row_of

SEED = 2028
NUM_PROBES = 30
MAX_TOKENS = 1024
"""Of a batch, so that no configuration takes more than half a minute."""

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

LLAMA = ["[q_proj,v_proj]", "[q_proj,k_proj,v_proj,o_proj]", "[gate_proj,down_proj]", "[o_proj,up_proj]", "all-linear"]
TARGETS = {"gpt2": ["[c_attn]", "[c_fc,c_proj]", "all-linear"]}
"""Matrices that get factors; of other families those of Llama."""

METHODS = ["lora", "lora", "lora", "frozen_a", "full", "zeroth"]
DTYPES = ["float32", "bfloat16", "int8", "gguf"]


def drawn(generator: random.Random, folder: Path) -> Probe:
    """A configuration, which fedgen may refuse.

    Args:
        generator: draws it.
        folder: holds the models of ``MADE``, by family.
    """
    pick = generator.choice
    family = pick(["smollm2", "tiny", *MADE])
    chosen = _model(generator, family, folder)
    method, batch_size = pick(METHODS), pick([1, 2, 3, 4, 6, 8])
    length = min(generator.randrange(32, 513), MAX_TOKENS // batch_size)
    chosen.append(f"client.batch_size={batch_size}")
    if method == "full":
        chosen += ["adapter=full", "export=merged"]
    else:
        chosen += [
            f"adapter={'frozen_a' if method == 'frozen_a' else 'lora'}",
            f"adapter.rank={pick([2, 4, 8, 16, 32])}",
        ]
        chosen += [f"adapter.targets={pick(TARGETS.get(family, LLAMA))}", f"adapter.top_layers={pick([1.0, 1.0, 0.5])}"]
    if method == "zeroth":
        chosen.insert(0, "client=zeroth_order")
    else:
        chosen += [f"client.optimizer={pick(['adamw', 'sgd'])}", f"client.micro_batch={pick(['null', 'null', 1, 2])}"]
    width = pick([1.0, 1.0, 1.0, 0.75, 0.5, 0.25])
    if width < 1:
        chosen += ["extraction=static", f"extraction.axes={pick(['[ffn]', '[ffn,kv]', '[vocab]'])}"]
    return Probe(chosen, length, pick([False, False, True]), width)


def _model(generator: random.Random, family: str, folder: Path) -> list[str]:
    pick = generator.choice
    chosen = [f"model.dtype={pick(DTYPES)}", f"model.checkpointing={pick(['true', 'false'])}"]
    chosen.append(f"model.chunk_tokens={pick([32, 128, 128, 'null'])}")
    if family == "tiny":
        sizes = [f"model.hidden_size={pick([128, 256, 384])}", f"model.num_layers={pick([4, 8, 12])}"]
        return ["model=tiny", "model.max_length=512", *sizes, *chosen]
    return chosen if family == "smollm2" else [f"model.source={folder / family}", *chosen]


def rows(seed: int, number: int, folder: Path) -> Iterator[dict[str, Any]]:
    """What was predicted and measured of so many configurations that fedgen takes."""
    from fedgen.errors import ConfigError, ModelError

    generator = random.Random(seed)
    while number:
        probe = drawn(generator, folder)
        try:
            row = row_of(probe)
        except (ConfigError, ModelError):
            continue
        number -= 1
        yield {**row, "configuration": row["configuration"].replace(f"{folder}/", ""), "width": probe.width}


def main(as_json: bool) -> int:
    """Prints the figures; 1 if one is above its bound."""
    from fedgen.cli.figures import report

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for family in MADE:
            make(family, Path(folder) / family)
        for row in rows(SEED, NUM_PROBES, Path(folder)):
            found.append(row)
            if not as_json:
                print(json.dumps(row), flush=True)
    return report("The planner's word on what it has never seen", judged(found), as_json)


def make(family: str, folder: Path) -> None:
    """Writes a random model of a family, with the tokenizer of the tiny one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from fedgen.model.tiny import Tiny

    tokenizer = Tiny().load(0).tokenizer
    end = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(family, vocab_size=32_000, **MADE[family], **end)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
