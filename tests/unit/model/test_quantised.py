"""A matrix in few bits does what the decoded matrix does, and is never decoded as a whole on the way."""

import copy

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from fedgen import tree
from fedgen.errors import ModelError
from fedgen.model import gguf_rows, int8, quantised
from fedgen.model.gguf_rows import GgufRows
from fedgen.model.gguf_types import TYPES
from fedgen.model.loss import mean_loss, restrict, token_losses
from fedgen.model.quantised import Quantised

ROWS, COLUMNS = 40, 96
BLOCK_ROWS = 7


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def as_int8(dtype):
    """A matrix as integers, and decoded by hand."""
    weight = drawn(ROWS, COLUMNS)
    scales = weight.abs().max(1, keepdim=True).values / 127
    return int8.quantise(weight, dtype), (weight / scales).round() * scales


def as_gguf(number):
    """A matrix in blocks whose rows lie in another order, and decoded by llama.cpp's own package."""

    def make(dtype):
        packed = quantize(drawn(ROWS, COLUMNS).numpy(), GGMLQuantizationType(number))
        stored = torch.from_numpy(packed.view(np.uint8).copy())
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
        whole = torch.from_numpy(dequantize(packed, GGMLQuantizationType(number)).copy())
        return Quantised(GgufRows("w", TYPES[number], stored, order), dtype), whole[order]

    return make


KINDS = {"int8": as_int8, "Q4_0": as_gguf(2), "Q4_1": as_gguf(3), "Q8_0": as_gguf(8), "F16": as_gguf(1)}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks, of which the last one is shorter."""
    monkeypatch.setattr(quantised, "BLOCK_ENTRIES", BLOCK_ROWS * COLUMNS + 1)
    monkeypatch.setattr(gguf_rows, "DECODED_ENTRIES", 3 * COLUMNS)
    monkeypatch.setattr(int8, "QUANTISED_ENTRIES", 3 * COLUMNS)


@pytest.fixture(params=KINDS)
def make(request):
    return KINDS[request.param]


@pytest.fixture
def pair(make):
    return make(torch.float32)


def close(a, b, share=1e-5):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= share * float(b.abs().max())


def with_gradient(function, x, weight):
    """What a function of input and weight gives, and its gradient at the input for a drawn incoming one."""
    x = x.clone().requires_grad_()
    y = function(x, weight)
    y.backward(drawn(*y.shape, seed=3).to(y.dtype))
    return y.detach(), x.grad


def test_it_decodes_to_the_numbers_that_it_stands_for(pair):
    matrix, decoded = pair
    assert torch.equal(matrix.float(), decoded)
    assert torch.equal(matrix.to(torch.bfloat16), decoded.bfloat16())
    assert matrix.shape == decoded.shape
    assert matrix.dtype == torch.float32


PRODUCTS = {
    "linear": (lambda x, w: functional.linear(x, w, drawn(ROWS, seed=5).to(x.dtype)), (3, 5, COLUMNS)),
    "x @ W.T": (lambda x, w: x @ w.T, (9, COLUMNS)),
    "x @ W": (lambda x, w: x @ w, (2, 3, ROWS)),
    "matmul": (torch.matmul, (9, ROWS)),
    "mm": (torch.mm, (9, ROWS)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_and_gradients_are_those_of_the_decoded_matrix(pair, name):
    function, shape = PRODUCTS[name]
    matrix, decoded = pair
    for ours, theirs in zip(
        with_gradient(function, drawn(*shape, seed=2), matrix),
        with_gradient(function, drawn(*shape, seed=2), decoded),
        strict=True,
    ):
        close(ours, theirs)


def test_so_are_they_in_bfloat16_beyond_its_rounding(make):
    """Against fp32 on the same inputs: inputs and results have 8 bits, and so have decoded blocks."""
    matrix, decoded = make(torch.bfloat16)
    x = drawn(9, COLUMNS, seed=2).bfloat16()
    for ours, exact in zip(
        with_gradient(functional.linear, x, matrix), with_gradient(functional.linear, x.float(), decoded), strict=True
    ):
        assert ours.dtype == torch.bfloat16
        close(ours.float(), exact, 2**-6)


def test_an_embedding_looks_rows_up(pair):
    matrix, decoded = pair
    module = nn.Embedding(ROWS, COLUMNS)
    module.weight = nn.Parameter(matrix, requires_grad=False)
    ids = torch.tensor([[3, 0, 39], [3, 7, 7]])
    assert torch.equal(module(ids), decoded[ids])


def test_a_projection_with_the_inputs_first_is_one_too():
    """GPT-2's; a scale belongs to an output here as well."""
    module = Conv1D(12, 8)
    weight = drawn(8, 12)
    scales = weight.abs().amax(0) / 127
    x = drawn(3, 5, 8, seed=2)
    module.weight = nn.Parameter(int8.quantise(weight, torch.float32, input_first=True), requires_grad=False)
    assert module.weight.shape == (8, 12)
    close(module(x).detach(), x @ ((weight / scales).round() * scales) + module.bias.detach())


# --- losses -------------------------------------------------------------------------------------------------------


def test_losses_on_such_a_head_are_those_on_the_decoded_one(pair):
    matrix, decoded = pair
    targets = torch.arange(300) % ROWS
    for ours, theirs in zip(
        with_gradient(lambda x, head: mean_loss(x, head, targets), drawn(300, COLUMNS, seed=2), matrix),
        with_gradient(lambda x, head: mean_loss(x, head, targets), drawn(300, COLUMNS, seed=2), decoded),
        strict=True,
    ):
        close(ours, theirs)
    hidden = drawn(300, COLUMNS, seed=2)
    losses, right = token_losses(hidden, matrix, targets)
    wanted, wanted_right = token_losses(hidden, decoded, targets)
    close(losses, wanted)
    assert torch.equal(right, wanted_right)


def test_some_tokens_of_a_head_are_taken_without_the_others(pair):
    matrix, decoded = pair
    among = torch.tensor([0, 5, 6, 39])
    head, places = restrict(matrix, among, among)
    assert isinstance(head, Quantised)
    assert torch.equal(head.float(), decoded[among])
    assert places.tolist() == [0, 1, 2, 3]


# --- what is kept, and what is not --------------------------------------------------------------------------------


def test_no_more_than_a_block_is_decoded_at_once(pair, monkeypatch):
    matrix, _ = pair
    asked = []
    original = type(matrix.rows).block

    def block(self, start, stop, dtype):
        asked.append((start, stop))
        return original(self, start, stop, dtype)

    monkeypatch.setattr(type(matrix.rows), "block", block)
    with_gradient(functional.linear, drawn(9, COLUMNS), matrix)
    edges = [(start, min(start + BLOCK_ROWS, ROWS)) for start in range(0, ROWS, BLOCK_ROWS)]
    assert asked == edges + edges, "once in the forward pass and once in the backward pass"


def test_nothing_is_kept_for_the_backward_pass(pair):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        functional.linear(drawn(9, COLUMNS).requires_grad_(), pair[0])
    assert kept == []


def test_its_bytes_are_those_of_the_few_bits():
    sizes = {name: make(torch.float32)[0].nbytes for name, make in KINDS.items()}
    blocks = ROWS * COLUMNS // 32
    assert sizes == {
        "int8": ROWS * COLUMNS + 4 * ROWS,
        "Q4_0": 18 * blocks,
        "Q4_1": 20 * blocks,
        "Q8_0": 34 * blocks,
        "F16": 64 * blocks,
    }


def test_copies_share_what_never_changes(pair):
    module = nn.Module()
    module.first = module.second = nn.Parameter(pair[0], requires_grad=False)
    copied = copy.deepcopy(module)
    assert copied.first is copied.second
    assert copied.first is not module.first
    assert isinstance(copied.first, nn.Parameter)
    assert copied.first.rows is module.first.rows


def test_a_module_that_is_made_fp32_gets_plain_weights_and_the_original_keeps_its_own(pair):
    module = nn.Linear(COLUMNS, ROWS)
    module.weight = nn.Parameter(pair[0], requires_grad=False)
    plain = copy.deepcopy(module).float()
    assert type(plain.weight) is nn.Parameter
    assert torch.equal(plain.weight, pair[1])
    assert isinstance(module.weight, Quantised)


@pytest.mark.parametrize(
    "function", [lambda w: torch.add(w, 1), torch.sum, lambda w: torch.matmul(w, w), torch.Tensor.norm]
)
def test_whatever_would_decode_it_by_the_way_is_refused(pair, function):
    with pytest.raises(TypeError, match="few bits"):
        function(pair[0])


# --- cuts ---------------------------------------------------------------------------------------------------------


def some_of(size):
    """Nothing cut, or some positions in ascending order."""
    return st.none() | st.sets(st.integers(0, size - 1), min_size=1).map(lambda found: torch.tensor(sorted(found)))


@given(some_of(ROWS), some_of(COLUMNS), st.booleans())
def test_integers_are_cut_by_rows_and_columns(rows, columns, transposed):
    matrix, decoded = as_int8(torch.float32)
    if transposed:
        matrix, decoded, rows, columns = matrix.T, decoded.T, columns, rows
    cut = tree.cut({"w": matrix}, {"w": (rows, columns)})["w"]
    assert isinstance(cut, Quantised)
    assert torch.equal(cut.float(), tree.cut({"w": decoded}, {"w": (rows, columns)})["w"])
    assert torch.equal(cut.clone().float(), cut.float())


@given(st.sampled_from(["Q4_0", "Q4_1", "Q8_0"]), some_of(ROWS), some_of(COLUMNS // 32))
def test_blocks_are_cut_by_rows_and_by_whole_blocks_of_columns(kind, rows, blocks):
    matrix, decoded = KINDS[kind](torch.float32)
    columns = None if blocks is None else (blocks[:, None] * 32 + torch.arange(32)).view(-1)
    cut = tree.cut({"w": matrix}, {"w": (rows, columns)})["w"]
    assert isinstance(cut, Quantised)
    assert torch.equal(cut.float(), tree.cut({"w": decoded}, {"w": (rows, columns)})["w"])
    assert torch.equal(cut.clone().float(), cut.float())


@pytest.mark.parametrize(
    "columns", [range(16), range(16, 48), range(0, 96, 3), [*range(31), 32], [*range(16), *range(32, 48)]]
)
def test_columns_that_cut_through_blocks_are_refused(columns):
    matrix, _ = KINDS["Q4_1"](torch.float32)
    for cut in (lambda i: tree.cut({"w": matrix}, {"w": (None, i)}), lambda i: matrix.index_select(1, i)):
        with pytest.raises(ModelError, match=r"whole blocks of 32 inputs \(Q4_1\).*extraction\.block=32.*window"):
            cut(torch.tensor(columns))


def test_plain_numbers_in_a_file_are_cut_anywhere():
    matrix, decoded = KINDS["F16"](torch.float32)
    columns = torch.tensor([0, 3, 50])
    assert torch.equal(matrix.index_select(1, columns).float(), decoded[:, columns])


def test_rows_that_are_picked_out_of_a_file_stay_where_they_are():
    matrix, _ = KINDS["Q4_1"](torch.float32)
    picked = matrix.index_select(0, torch.tensor([1, 2, 30]))
    assert picked.rows.bytes is matrix.rows.bytes
    assert picked.nbytes == 3 * matrix.nbytes // ROWS
