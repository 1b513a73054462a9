"""What every export keeps: the recipient gets the very model that was trained, without fedgen."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedgen.stages import Export
from fedgen.types import Card
from tests.conformance.options import build, options

CASES = [
    (export, adapter)
    for export in options("export")
    for adapter in options("adapter")
    if not (build("export", export).needs_adapter and build("adapter", adapter).trains_base)
]


@pytest.fixture(params=CASES, ids=lambda case: " of ".join(case))
def case(request: pytest.FixtureRequest) -> tuple[Export, object, Card]:
    export, adapter = request.param
    settings = {"adapter": adapter, "num_rounds": "3"}
    card = Card("kitchen", "owner/base", "Some homes.", settings, {"new_homes": {"exact_match": (0.125, 0.875)}})
    return build("export", export), build("adapter", adapter), card


@pytest.fixture
def learner(case, make_learner):
    """One whose state is not that of the beginning, so that leaving it out would be seen."""
    learner = make_learner(case[1])
    generator = torch.Generator().manual_seed(1)
    learner.load({n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in learner.state().items()})
    return learner


def received(folder, base):
    """The model, loaded as its model card says."""
    if (folder / "adapter_config.json").exists():
        return PeftModel.from_pretrained(base.replica(private=True), folder).eval()
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(module):
    with torch.no_grad():
        return module(input_ids=torch.tensor([[5, 60, 7, 80, 9]]), use_cache=False).logits


def test_it_is_an_export(case):
    assert isinstance(case[0], Export)
    assert case[0].folder_name


def test_the_recipient_gets_the_model_that_was_trained(case, learner, base, tmp_path):
    export, _, card = case
    plain = logits(base.replica(private=False))
    ours = logits(learner.module)
    export.write(learner, tmp_path, card)
    theirs = logits(received(tmp_path, base))
    assert torch.allclose(theirs, ours, atol=1e-4)
    assert not torch.allclose(theirs, plain, atol=1e-2)


def test_the_tokenizer_comes_along(case, learner, tmp_path):
    export, _, card = case
    export.write(learner, tmp_path, card)
    text = "turn on the lamp"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == learner.tokenizer(text)["input_ids"]


def test_the_learner_can_go_on(case, learner, tmp_path):
    export, _, card = case
    before, said = learner.state(), logits(learner.module)
    export.write(learner, tmp_path, card)
    after = learner.state()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(logits(learner.module), said)


def test_the_card_tells_data_settings_and_results(case, learner, tmp_path):
    export, _, card = case
    export.write(learner, tmp_path, card)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\n")
    for wanted in ("owner/base", "Some homes.", "num_rounds", "0.125", "0.875"):
        assert wanted in text


def test_nothing_in_it_can_run_code_or_names_this_machine(case, learner, tmp_path):
    export, _, card = case
    export.write(learner, tmp_path, card)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert not [path.name for path in files if path.suffix in {".bin", ".pt", ".pth", ".pkl", ".py"}]
    for path in files:
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
