"""Names of dimensions against what is written down by hand for one layer of each family."""

import pytest
import torch
import torch_pruning
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from fedgen import tree
from fedgen.errors import ModelError
from fedgen.model.axes import axes_of, layers_of
from fedgen.types import Dim
from tests.unit.model.families import (
    FAMILIES,
    FFN,
    HEAD,
    IDS,
    LAYERS,
    VOCAB,
    gpt2,
    kept_of,
    llama,
    mistral,
    qwen2,
    qwen3,
    some_of,
)

RESIDUAL, VOCABULARY, F, K = Dim("residual"), Dim("vocab"), Dim("ffn.1"), Dim("kv.1", HEAD)

LLAMA = {
    "model.layers.1.input_layernorm.weight": (RESIDUAL,),
    "model.layers.1.post_attention_layernorm.weight": (RESIDUAL,),
    "model.layers.1.self_attn.k_proj.weight": (K, RESIDUAL),
    "model.layers.1.self_attn.v_proj.weight": (K, RESIDUAL),
    "model.layers.1.mlp.gate_proj.weight": (F, RESIDUAL),
    "model.layers.1.mlp.up_proj.weight": (F, RESIDUAL),
    "model.layers.1.mlp.down_proj.weight": (RESIDUAL, F),
    "model.embed_tokens.weight": (VOCABULARY, RESIDUAL),
    "model.norm.weight": (RESIDUAL,),
}
"""What the families that follow Llama have in common, of the second layer and around the layers."""


def queries(num_heads):
    """Queries and what closes attention; a unit is a key-value head with so many query heads."""
    own = Dim("kv.1", num_heads * HEAD)
    return {
        "model.layers.1.self_attn.q_proj.weight": (own, RESIDUAL),
        "model.layers.1.self_attn.o_proj.weight": (RESIDUAL, own),
    }


OWN_HEAD = {"lm_head.weight": (VOCABULARY, RESIDUAL)}

FUSED = Dim("kv.1", HEAD, (0, 12, 24))
GPT2 = {
    "transformer.wte.weight": (VOCABULARY, RESIDUAL),
    "transformer.wpe.weight": (None, RESIDUAL),
    "transformer.ln_f.weight": (RESIDUAL,),
    "transformer.ln_f.bias": (RESIDUAL,),
    "transformer.h.1.ln_1.weight": (RESIDUAL,),
    "transformer.h.1.ln_1.bias": (RESIDUAL,),
    "transformer.h.1.attn.c_attn.weight": (RESIDUAL, FUSED),
    "transformer.h.1.attn.c_attn.bias": (FUSED,),
    "transformer.h.1.attn.c_proj.weight": (K, RESIDUAL),
    "transformer.h.1.attn.c_proj.bias": (RESIDUAL,),
    "transformer.h.1.ln_2.weight": (RESIDUAL,),
    "transformer.h.1.ln_2.bias": (RESIDUAL,),
    "transformer.h.1.mlp.c_fc.weight": (RESIDUAL, F),
    "transformer.h.1.mlp.c_fc.bias": (F,),
    "transformer.h.1.mlp.c_proj.weight": (F, RESIDUAL),
    "transformer.h.1.mlp.c_proj.bias": (RESIDUAL,),
}

QWEN2_BIASES = {
    "model.layers.1.self_attn.q_proj.bias": (Dim("kv.1", 2 * HEAD),),
    "model.layers.1.self_attn.k_proj.bias": (K,),
    "model.layers.1.self_attn.v_proj.bias": (K,),
}

# As long as a head, and the same for all of them: never cut.
QWEN3_NORMS = {
    "model.layers.1.self_attn.q_norm.weight": (None,),
    "model.layers.1.self_attn.k_norm.weight": (None,),
}


@pytest.mark.parametrize(
    ("make", "expected", "residual", "groups"),
    [
        (llama, LLAMA | queries(3), 36, 3),
        (mistral, LLAMA | queries(2) | OWN_HEAD, 16, 2),
        (qwen2, LLAMA | queries(2) | OWN_HEAD | QWEN2_BIASES, 24, 3),
        (qwen3, LLAMA | queries(2) | OWN_HEAD | QWEN3_NORMS, 20, 3),
        (gpt2, GPT2, 12, 3),
    ],
)
def test_dimensions_are_named_as_by_hand(make, expected, residual, groups):
    module = make()
    axes = axes_of(module)
    second = {
        name: dims
        for name, dims in axes.dims.items()
        if not name.startswith(("model.layers.", "transformer.h.")) or ".1." in name
    }
    assert second == expected
    assert axes.dims.keys() == dict(module.named_parameters()).keys()
    inner = {f"{kind}.{n}": size for n in range(LAYERS) for kind, size in (("ffn", FFN), ("kv", groups))}
    assert axes.units == {"layer": LAYERS, "residual": residual, "vocab": VOCAB, **inner}


def test_weights_of_a_layer_are_members_of_it():
    axes = axes_of(llama())
    assert axes.members["model.layers.2.mlp.up_proj.weight"] == ("layer", 2)
    assert axes.members["model.layers.3.input_layernorm.weight"] == ("layer", 3)
    assert len(axes.members) == 9 * LAYERS
    assert "model.norm.weight" not in axes.members
    assert axes_of(gpt2()).members["transformer.h.0.attn.c_attn.bias"] == ("layer", 0)


def test_every_inner_axis_has_a_weight_that_reads_it():
    assert axes_of(llama()).closings == {
        f"{kind}.{n}": f"model.layers.{n}.{name}.weight"
        for n in range(LAYERS)
        for kind, name in (("kv", "self_attn.o_proj"), ("ffn", "mlp.down_proj"))
    }
    assert axes_of(gpt2()).closings["kv.3"] == "transformer.h.3.attn.c_proj.weight"
    assert axes_of(gpt2()).closings["ffn.0"] == "transformer.h.0.mlp.c_proj.weight"


def test_only_gpt2_has_the_inputs_first():
    assert axes_of(llama()).input_first == frozenset()
    assert axes_of(gpt2()).input_first == {
        f"transformer.h.{n}.{name}.weight"
        for n in range(LAYERS)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_the_meta_device_is_enough(name):
    module = FAMILIES[name].make()
    with torch.device("meta"):
        bare = type(module)(module.config)
    assert axes_of(bare) == axes_of(module)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_beside_the_projections_changes_no_axis(name):
    from fedgen.adapter.lora import Lora

    module = FAMILIES[name].make()
    before = axes_of(module)
    Lora(rank=2).attach(module)
    after = axes_of(module)
    assert (after.units, after.closings, after.input_first) == (before.units, before.closings, before.input_first)
    cut = {weight: dims for weight, dims in before.dims.items() if any(d and d.axis != "residual" for d in dims)}
    assert {weight: after.dims[weight] for weight in cut if weight.endswith(".weight")} == {
        weight: dims for weight, dims in cut.items() if weight.endswith(".weight")
    }


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=10)
@given(data=st.data())
def test_each_key_value_head_stays_with_all_its_query_heads_and_no_head_is_cut(name, data):
    family = FAMILIES[name]
    module = family.make()
    axes = axes_of(module)
    kept = data.draw(kept_of(family, ("kv",)))
    plan = tree.plan_of(axes, kept)
    cut = {weight for weight, dims in plan.items() if any(index is not None for index in dims)}
    assert bool(cut) == bool(kept)
    for weight in cut:
        dims = [d for d in axes.dims[weight] if d is not None and d.axis in kept]
        [(dim, index)] = zip(dims, [index for index in plan[weight] if index is not None], strict=True)
        heads = index.view(-1, HEAD)
        # Whole heads: they begin where a head begins, and are of consecutive positions.
        assert torch.equal(heads, heads[:, :1] + torch.arange(HEAD))
        assert not (heads[:, 0] % HEAD).any()
        # As many for each kept group as there are for each group of the whole, and just these.
        groups = kept[dim.axis].tolist()
        per_group = family.queries if dim.span > HEAD else 1
        heads_per_tensor = family.groups * per_group
        expected = [
            (chunk * heads_per_tensor + group * per_group + place) * HEAD
            for chunk in range(len(dim.starts))
            for group in groups
            for place in range(per_group)
        ]
        assert heads[:, 0].tolist() == expected


@settings(max_examples=20)
@given(groups=some_of(3))
def test_there_are_three_queries_to_a_key_whatever_is_kept(groups):
    axes = axes_of(llama())
    plan = tree.plan_of(axes, {"kv.1": groups})
    sizes = {p: len(plan[f"model.layers.1.self_attn.{p}_proj.weight"][0]) for p in "qkv"}
    assert sizes == {"q": 3 * HEAD * len(groups), "k": HEAD * len(groups), "v": HEAD * len(groups)}
    assert len(plan["model.layers.1.self_attn.o_proj.weight"][1]) == sizes["q"]


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (GPTNeoXForCausalLM, GPTNeoXConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=9)),
        (
            Phi3ForCausalLM,
            Phi3Config(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=9, pad_token_id=None),
        ),
    ],
)
def test_a_family_of_which_nothing_is_known_is_refused_with_what_to_declare(model, config):
    with torch.device("meta"):
        module = model(config)
    with pytest.raises(ModelError) as caught:
        axes_of(module)
    said = str(caught.value)
    assert said.startswith(f"parts of a {config.model_type} model cannot be made: nothing says which dimensions")
    assert f"add {config.model_type!r} to TABLE" in said
    assert "fedgen/model/axes.py" in said
    assert "extraction=full" in said


def test_rotary_positions_in_sections_are_refused():
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1]}
    config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9)
    with torch.device("meta"):
        module = LlamaForCausalLM(config)
    module.config.rope_parameters = rope
    with pytest.raises(ModelError, match=r"mrope_section.*not supported; use extraction=full"):
        axes_of(module)


def test_layers_that_are_not_alike_are_refused():
    module = llama()
    module.model.layers[2].self_attn = nn.Identity()
    with pytest.raises(ModelError, match=r"not alike.*LlamaDecoderLayer.*no self_attn\.o_proj; use extraction=full"):
        axes_of(module)


def test_a_decoder_without_a_list_of_layers_is_refused():
    module = llama()
    module.model.layers = nn.Sequential(*module.model.layers)
    with pytest.raises(ModelError, match="LlamaForCausalLM has no list of layers"):
        axes_of(module)


def test_layers_have_their_numbers():
    prefix, layers = layers_of(gpt2())
    assert prefix == "transformer.h."
    assert [number for number, _ in layers] == [0, 1, 2, 3]


# --- another way to the same names --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def traced():
    """One layer, and what DepGraph finds out about it by following a forward pass (Fang et al., CVPR 2023)."""
    module = llama(
        num_hidden_layers=1, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False
    )
    module.requires_grad_(True)
    graph = torch_pruning.DependencyGraph().build_dependency(
        module, IDS[:1], forward_fn=lambda model, ids: model(ids, use_cache=False).logits, verbose=False
    )
    return module, graph


def coupled(traced, module, units):
    """Positions of each dimension that have to go along with some outputs of a projection, as DepGraph has it."""
    model, graph = traced
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for step, positions in graph.get_pruning_group(module, torch_pruning.prune_linear_out_channels, idxs=units):
        target = step.target.module
        if isinstance(target, nn.Parameter):
            found[names[id(target)], 0] = sorted(positions)
        elif isinstance(target, nn.Linear | nn.Embedding):
            # An embedding's outputs are its second dimension.
            outputs = graph.is_out_channel_pruning_fn(step.handler) != isinstance(target, nn.Embedding)
            found[names[id(target.weight)], 0 if outputs else 1] = sorted(positions)
    return found


# Attention is not asked about: it takes DepGraph very long to follow the halves of rotary positions.
@pytest.mark.parametrize(
    ("axis", "path"), [("ffn.0", "mlp.gate_proj"), ("ffn.0", "mlp.up_proj"), ("residual", "mlp.down_proj")]
)
def test_a_graph_that_is_traced_couples_the_same_dimensions(traced, axis, path):
    axes, units = axes_of(traced[0]), [3, 5, 6]
    plan = tree.plan_of(axes, {axis: torch.tensor(units)})
    ours = {
        (name, dim): index.tolist()
        for name, kept in plan.items()
        for dim, index in enumerate(kept)
        if index is not None
    }
    theirs = coupled(traced, traced[0].model.layers[0].get_submodule(path), units)
    assert ours == theirs
    assert len(ours) == (3 if axis == "ffn.0" else 12)
