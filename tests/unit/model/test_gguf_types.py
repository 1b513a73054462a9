"""Bytes decode to llama.cpp's own numbers, bit by bit."""

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from fedgen.model.gguf_file import open_file
from fedgen.model.gguf_rows import GgufRows
from fedgen.model.gguf_types import TYPES
from fedgen.model.source import EMBEDDED


def bits(values):
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


@pytest.mark.parametrize("number", TYPES)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_random_blocks_decode_to_the_same_bits(number):
    """Any bytes do, infinite scales included; which NaN comes of them is nobody's matter."""
    kind = gguf.GGMLQuantizationType(number)
    assert kind.name == TYPES[number].name
    assert gguf.GGML_QUANT_SIZES[kind] == (TYPES[number].num_entries, TYPES[number].num_bytes)
    content = np.random.default_rng(0).integers(0, 256, (64, 5 * TYPES[number].num_bytes), dtype=np.uint8)
    theirs = dequantize(content, kind)
    ours = GgufRows("w", TYPES[number], torch.from_numpy(content)).block(0, 64, torch.float32)[0].numpy()
    numbers = ~np.isnan(theirs)
    assert numbers.sum() > theirs.size // 2
    assert np.array_equal(np.isnan(ours), ~numbers)
    assert np.array_equal(bits(ours)[numbers], bits(theirs)[numbers])


@pytest.fixture(scope="module")
def embedded():
    package, _, rest = EMBEDDED.partition("/")
    return open_file(Path(importlib.util.find_spec(package).submodule_search_locations[0]) / rest)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("blk.7.ffn_down.weight", "Q4_1"), ("output_norm.weight", "F32"), ("token_embd.weight", "Q8_0")],
)
def test_so_do_tensors_of_the_embedded_file(embedded, name, kind):
    stored = embedded.tensors[name]
    assert stored.type.name == kind
    some = stored.bytes[:300]
    ours = GgufRows(name, stored.type, some).block(0, len(some), torch.float32)[0].numpy()
    theirs = dequantize(some.numpy(), gguf.GGMLQuantizationType[kind])
    assert np.array_equal(bits(ours), bits(theirs))
    assert 0 < np.abs(theirs).max() < 100
