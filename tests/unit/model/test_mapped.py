"""A part that is read from the file is the part that is cut from the whole, bit by bit."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fedgen.errors import ModelError
from fedgen.model.causal_lm import CausalLM
from fedgen.model.mapped import each_weight, load_as
from fedgen.model.tiny import Tiny
from fedgen.types import Encoded
from tests.unit.model.families import FAMILIES, gpt2, llama, qwen2, unequal

BATCH = [Encoded((7, 3, 9, 27, 5), 2), Encoded((7, 3, 11, 4), 3)]


def saved(module, folder, **how):
    module.save_pretrained(folder, **how)
    Tiny().load(0).tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder for each way in which weights lie on a disk."""
    root, vocab = tmp_path_factory.mktemp("models"), {"vocab_size": 260}
    folders = {
        "tied": saved(llama(**vocab), root / "tied"),
        "untied": saved(llama(**vocab, tie_word_embeddings=False), root / "untied"),
        "in pieces": saved(llama(**vocab), root / "in-pieces", max_shard_size="12KB"),
        "untied in pieces": saved(
            llama(**vocab, tie_word_embeddings=False), root / "untied-in-pieces", max_shard_size="12KB"
        ),
        "two kinds of layers": saved(qwen2(**vocab, sliding_window=64), root / "two-kinds"),
        "fused": saved(gpt2(**vocab), root / "fused"),
        "fused without prefix": saved(gpt2(**vocab).transformer, root / "without-prefix"),
    }
    assert len(list(folders["in pieces"].glob("*.safetensors"))) > 2
    assert "lm_head.weight" not in load_file(folders["tied"] / "model.safetensors")
    assert "lm_head.weight" in load_file(folders["untied"] / "model.safetensors")
    assert "transformer.wte.weight" in load_file(folders["fused"] / "model.safetensors")
    assert "wte.weight" in load_file(folders["fused without prefix"] / "model.safetensors")
    return folders


KINDS = ("tied", "untied", "in pieces", "untied in pieces", "two kinds of layers", "fused", "fused without prefix")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("with_tokens", [False, True])
def test_a_part_read_from_the_file_is_the_part_of_the_whole(folders, kind, dtype, with_tokens):
    option = CausalLM(source=str(folders[kind]), dtype=dtype)
    family = FAMILIES["gpt2" if "fused" in kind else "qwen2" if "kinds" in kind else "llama"]
    kept = unequal(family)
    if with_tokens:
        # All of the batch and of the prompt are among them.
        kept["vocab"] = torch.tensor([token for token in range(260) if token % 8 != 6])
    read, cut = option.load(0, kept), option.load(0).part(kept)
    assert read.weights.keys() == cut.weights.keys()
    for name, tensor in cut.weights.items():
        assert read.weights[name].dtype == tensor.dtype == getattr(torch, dtype)
        assert torch.equal(read.weights[name], tensor), name
        assert read.weights[name].is_contiguous()
    buffers = dict(cut.module.named_buffers())
    assert dict(read.module.named_buffers()).keys() == buffers.keys()
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in read.module.named_buffers())
    tied = kind not in ("untied", "untied in pieces", "two kinds of layers")
    head, embedding = read.module.get_output_embeddings(), read.module.get_input_embeddings()
    assert (head.weight is embedding.weight) == tied
    assert read.fingerprint == cut.fingerprint
    assert read.tokens is kept.get("vocab")
    assert cut.tokens is kept.get("vocab")
    assert read.max_length == cut.max_length
    assert type(read.module) is type(cut.module)
    assert read.module.config.to_dict() == cut.module.config.to_dict()
    assert not read.module.training
    assert not any(p.requires_grad for p in read.module.parameters())
    assert read.axes == cut.axes
    learners = [base.learner(base.replica(private=False), {}) for base in (read, cut)]
    assert torch.equal(learners[0].loss(BATCH), learners[1].loss(BATCH))
    assert learners[0].generate("lamp", 5) == learners[1].generate("lamp", 5)


def test_nothing_is_cut_of_a_part_of_everything(folders):
    option = CausalLM(source=str(folders["tied"]), dtype="float32")
    whole = option.load(0, {})
    assert torch.equal(whole.module.model.norm.weight, option.load(0).module.model.norm.weight)
    assert len(whole.module.model.layers) == 4


def mapped_file(tensor):
    """The file that a tensor's numbers lie in, as the system has it; None for plain memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split()
        begin, end = (int(edge, 16) for edge in fields[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return Path(fields[5]) if len(fields) > 5 and fields[5].startswith("/") else None
    return None


def test_weights_stay_in_the_file_until_they_are_used(folders):
    file = folders["untied"] / "model.safetensors"
    stored = load_file(file)
    found = dict(each_weight(folders["untied"], stored, "model"))
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in stored.items())
    assert {mapped_file(tensor) for tensor in found.values()} == {file}
    # So do weights of a part of which nothing is cut, or of which one stretch of rows is kept.
    kept = {"ffn.0": torch.tensor([2, 3, 4]), "ffn.1": torch.tensor([0, 5])}
    weights = CausalLM(source=str(folders["untied"]), dtype="float32").load(0, kept).weights
    assert mapped_file(weights["model.embed_tokens.weight"]) == file
    assert mapped_file(weights["model.layers.0.mlp.up_proj.weight"]) == file
    assert mapped_file(weights["model.layers.1.mlp.up_proj.weight"]) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_of_another_type_is_that_of_transformers(folders, kind, dtype):
    ours = load_as(folders[kind], dtype, "eager")
    theirs = AutoModelForCausalLM.from_pretrained(
        folders[kind], dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    assert type(ours) is type(theirs)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for (name, tensor), wanted in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert tensor.dtype == wanted.dtype
        assert torch.equal(tensor, wanted), name
    assert ours.config.to_dict() == theirs.config.to_dict()
    if (folders[kind] / "generation_config.json").is_file():
        assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    assert (ours.training, ours.name_or_path) == (theirs.training, str(folders[kind]))


def test_a_whole_is_mapped_if_the_file_holds_its_type_and_else_no_map_stays(folders):
    file = folders["two kinds of layers"] / "model.safetensors"
    mapped, converted = (load_as(file.parent, dtype, "eager") for dtype in ("float32", "bfloat16"))
    assert {mapped_file(parameter) for parameter in mapped.parameters()} == {file}
    assert {mapped_file(parameter) for parameter in converted.parameters()} == {None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_private_copy_is_made_straight_in_fp32(dtype):
    base = Tiny(hidden_size=32).load(0)
    base = replace(base, module=base.module.to(dtype))
    private = base.replica(private=True)
    wanted = copy.deepcopy(base.module).float().state_dict()
    assert private.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in private.state_dict().items())
    assert {tensor.dtype for tensor in (*private.parameters(), *private.buffers())} == {torch.float32}
    assert private.lm_head.weight is private.model.embed_tokens.weight
    assert not any(parameter.requires_grad for parameter in private.parameters())
    assert base.module.lm_head.weight.dtype == dtype
    shared = {tensor.data_ptr() for tensor in (*base.module.parameters(), *base.module.buffers())}
    assert not shared & {tensor.data_ptr() for tensor in (*private.parameters(), *private.buffers())}


def test_a_part_answers_as_the_folder_says(tmp_path):
    module = llama(vocab_size=260)
    module.generation_config.repetition_penalty = 1.5
    option = CausalLM(source=str(saved(module, tmp_path)), dtype="float32")
    kept = {"ffn.0": torch.tensor([0, 1])}
    read, cut = (
        base.learner(base.replica(private=False), {}) for base in (option.load(0, kept), option.load(0).part(kept))
    )
    assert read.module.generation_config.repetition_penalty == 1.5
    assert read.generate("lamp", 12) == cut.generate("lamp", 12)


def test_a_folder_of_another_kind_is_a_message(folders, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(folders["tied"], folder)
    (folder / "config.json").write_text('{"model_type": "no_such_type"}')
    with pytest.raises(ModelError, match="cannot load a causal language model"):
        CausalLM(source=str(folder)).load(0, {"ffn.0": torch.tensor([0])})


def test_only_what_the_model_names_is_given(folders):
    found = dict(each_weight(folders["fused without prefix"], ["transformer.ln_f.bias"], "transformer"))
    assert found.keys() == {"transformer.ln_f.bias"}


def test_a_missing_weight_is_named(folders, tmp_path):
    folder = tmp_path / "torn"
    shutil.copytree(folders["tied"], folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"holds no weight model\.layers\.1\.mlp\.up_proj\.weight.*config\.json"):
        CausalLM(source=str(folder), dtype="float32").load(0, {"ffn.0": torch.tensor([0])})


def test_a_head_that_the_configuration_unties_must_be_there(folders, tmp_path):
    folder = tmp_path / "untied"
    shutil.copytree(folders["tied"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(ModelError, match=r"holds no weight lm_head\.weight"):
        CausalLM(source=str(folder), dtype="float32").load(0, {"ffn.0": torch.tensor([0])})
