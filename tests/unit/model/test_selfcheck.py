"""The check that a family's parts are right: it passes where they are, and notices where the table is wrong."""

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from fedgen.errors import ModelError
from fedgen.model import axes, selfcheck
from fedgen.model.axes import TABLE, Group
from fedgen.model.shared import TextBase
from tests.unit.model.families import FAMILIES, IDS, gpt2, llama, qwen2

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION = Group("kv", QKV, "self_attn.o_proj")
FEED_FORWARD = Group("ffn", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")


@pytest.fixture(autouse=True)
def nothing_is_known_before():
    selfcheck._verify.cache_clear()
    yield
    selfcheck._verify.cache_clear()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_pass(name):
    module = FAMILIES[name].make()
    selfcheck.verify(module)
    assert TextBase(module, None, "", 64).axes == axes.axes_of(module)


def test_large_activations_are_no_fault():
    """Gemma multiplies embeddings by the root of the width; what counts is the difference as a share of them."""
    with torch.device("meta"):
        module = GemmaForCausalLM(GemmaConfig(num_hidden_layers=1))
    selfcheck.verify(module)


@pytest.mark.parametrize(
    "groups",
    [
        # Values keep all of their heads.
        (Group("kv", QKV[:2], "self_attn.o_proj"), FEED_FORWARD),
        # Queries and keys do.
        (Group("kv", ("self_attn.v_proj",), "self_attn.o_proj"), FEED_FORWARD),
        (ATTENTION, Group("ffn", ("mlp.gate_proj",), "mlp.down_proj")),
        # Closed by one that opens.
        (ATTENTION, Group("ffn", ("mlp.gate_proj", "mlp.down_proj"), "mlp.up_proj")),
    ],
)
def test_projections_that_are_not_cut_together_are_noticed(groups, monkeypatch):
    monkeypatch.setitem(TABLE, "llama", groups)
    with pytest.raises(ModelError, match=r"parts of LlamaForCausalLM cannot be made.*use extraction=full"):
        selfcheck.verify(llama())
    with pytest.raises(ModelError, match="LlamaForCausalLM"):
        _ = TextBase(llama(), None, "", 64).axes


def test_the_right_table_passes(monkeypatch):
    monkeypatch.setitem(TABLE, "llama", (ATTENTION, FEED_FORWARD))
    selfcheck.verify(llama())


def test_units_at_the_wrong_places_are_noticed_although_all_shapes_fit(monkeypatch):
    """GPT-NeoX lays query, key and value of one head beside each other, and not all queries first as GPT-2 does."""
    like_gpt2 = (
        Group("kv", ("attention.query_key_value",), "attention.dense", fused=3),
        Group("ffn", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
    )
    monkeypatch.setitem(TABLE, "gpt_neox", like_gpt2)
    module = GPTNeoXForCausalLM(GPTNeoXConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=9))
    monkeypatch.setattr(type(module.gpt_neox.layers[0].attention), "head_dim", 8, raising=False)
    with pytest.raises(ModelError, match=r"a part of a small random model differs from the masked whole \(output \d"):
        selfcheck.verify(module)


def test_a_part_that_gives_no_numbers_is_noticed(monkeypatch):
    wrong = {"output": 0.0, "gradient": float("nan"), "outside": 0.0}
    monkeypatch.setattr(selfcheck, "differences", lambda *_: wrong)
    with pytest.raises(ModelError, match="gradient nan"):
        selfcheck.verify(llama())


def test_layers_of_several_kinds_are_a_message():
    """Only every fourth layer has attention as it is known."""
    config = Qwen3NextConfig(num_hidden_layers=4, hidden_size=16, vocab_size=9, num_experts=2, num_experts_per_tok=1)
    with torch.device("meta"):
        module = Qwen3NextForCausalLM(config)
    with pytest.raises(ModelError, match="its layers are not alike"):
        selfcheck.verify(module)


def test_a_family_that_cannot_be_made_small_is_a_message():
    module = llama()
    module.config.hidden_act = "no such activation"
    with pytest.raises(ModelError, match=r"a part of a small random model of its kind does not run \(.*no such"):
        selfcheck.verify(module)


def test_a_family_is_checked_once(monkeypatch):
    runs, differences = [], selfcheck.differences

    def counted(module, *rest):
        runs.append(type(module).__name__)
        return differences(module, *rest)

    monkeypatch.setattr(selfcheck, "differences", counted)
    for module in (
        llama(),
        llama(hidden_size=72, num_hidden_layers=2),
        llama(intermediate_size=7),
        gpt2(),
        gpt2(n_layer=2),
    ):
        selfcheck.verify(module)
    assert runs == ["LlamaForCausalLM", "GPT2LMHeadModel"]
    # A part is of the family of its whole.
    base = TextBase(llama(), None, "", 64)
    assert base.part({"layer": torch.tensor([0, 2]), "ffn.0": torch.tensor([1])}).axes.units["ffn.0"] == 1
    assert len(runs) == 2
    # What changes the arithmetic makes another family.
    selfcheck.verify(llama(hidden_act="gelu"))
    assert len(runs) == 3


def test_a_refusal_is_not_remembered_as_a_pass(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(TABLE, "llama", (Group("kv", QKV[:2], "self_attn.o_proj"), FEED_FORWARD))
        for _ in range(2):
            with pytest.raises(ModelError):
                selfcheck.verify(llama())
    selfcheck.verify(llama())


def test_the_small_model_has_the_kinds_of_layers_of_the_whole():
    two = qwen2(num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"])
    small = selfcheck.small(type(two), selfcheck.json_of(two))
    assert small.config.layer_types == ["full_attention", "sliding_attention"] * 2
    assert len(small.model.layers) == 4
    assert small.config.sliding_window == 4
    assert {p.dtype for p in small.parameters()} == {torch.float32}


def test_the_small_model_is_the_same_every_time():
    text = selfcheck.json_of(llama())
    first = selfcheck.small(type(llama()), text)
    torch.manual_seed(1)
    second = dict(selfcheck.small(type(llama()), text).named_parameters())
    assert all(torch.equal(p, second[name]) for name, p in first.named_parameters())


def test_masking_makes_closing_weights_nought_where_units_are_dropped():
    module = gpt2()
    kept = {"ffn.0": torch.tensor([1, 3]), "kv.1": torch.tensor([0, 2]), "layer": torch.tensor([0, 1, 2])}
    masked = selfcheck.masked(module, axes.axes_of(module), kept).transformer.h
    whole = module.transformer.h
    assert torch.equal(masked[0].mlp.c_proj.weight[[1, 3]], whole[0].mlp.c_proj.weight[[1, 3]])
    assert not masked[0].mlp.c_proj.weight[[0, 2, *range(4, 10)]].any()
    assert torch.equal(masked[0].mlp.c_proj.bias, whole[0].mlp.c_proj.bias)
    assert not masked[1].attn.c_proj.weight[4:8].any()
    assert torch.equal(masked[1].attn.c_proj.weight[8:], whole[1].attn.c_proj.weight[8:])
    # A dropped layer adds nothing, its biases included.
    for closing in (masked[3].attn.c_proj, masked[3].mlp.c_proj):
        assert not closing.weight.any()
        assert not closing.bias.any()
    assert torch.equal(masked[2].mlp.c_proj.weight, whole[2].mlp.c_proj.weight)


def test_differences_of_a_part_that_is_none_are_large(monkeypatch):
    """A part of other units than the masked whole's."""
    module, shrink = llama(), selfcheck.shrink
    kept = {"ffn.0": torch.tensor([0, 1, 2])}
    assert max(selfcheck.differences(module, kept, IDS).values()) < 1e-5

    def another(whole, tensors, kept):
        return shrink(whole, {name: t.flip(0) if "up_proj" in name else t for name, t in tensors.items()}, kept)

    monkeypatch.setattr(selfcheck, "shrink", another)
    found = selfcheck.differences(module, kept, IDS)
    assert found["output"] > 0.01
    assert found["gradient"] > 0.01
