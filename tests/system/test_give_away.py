"""What a run gives away answers as the run does, in plain peft and plain transformers."""

import json

import pytest
import torch

from fedgen.cli.main import main
from fedgen.model.tiny import Tiny

SENTENCES = ("lamp 3 on", "set fan 7 off", "boost oven 2")


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """A model folder as a user would have it on the disk."""
    folder = tmp_path_factory.mktemp("model") / "small-llama"
    base = Tiny(hidden_size=32, num_heads=2, num_kv_heads=1).load(5)
    base.module.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(base_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDGEN_RUNS", str(root))
        code = main(
            [
                "train",
                "data=synthetic",
                "model.dtype=float32",
                f"model.source={base_folder}",
                "num_rounds=2",
                "client.learning_rate=0.02",
                "data.num_train=32",
                "data.num_eval=16",
            ]
        )
    assert code == 0
    (path,) = root.iterdir()
    return path


def answers(run, capsys):
    found = []
    for sentence in SENTENCES:
        assert main(["generate", str(run), sentence, "--max-new-tokens", "8"]) == 0
        found.append(capsys.readouterr().out.strip())
    return found


def plainly(model, tokenizer):
    """Greedy answers with nothing of fedgen."""
    found = []
    for sentence in SENTENCES:
        ids = tokenizer(f"{sentence}: ", return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=8, do_sample=False)
        found.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return found


def test_the_adapter_answers_the_same_in_plain_peft(run, base_folder, capsys):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    before = plainly(base, AutoTokenizer.from_pretrained(base_folder))
    model = PeftModel.from_pretrained(base, run / "adapter")
    found = plainly(model, AutoTokenizer.from_pretrained(run / "adapter"))
    assert found == answers(run, capsys)
    assert found != before


def test_the_merged_model_answers_the_same_in_plain_transformers(run, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main(["export", str(run), "merged", "--to", str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert plainly(model, AutoTokenizer.from_pretrained(tmp_path / "merged")) == answers(run, capsys)


def test_the_model_card_tells_data_settings_and_results(run):
    card = (run / "adapter" / "README.md").read_text()
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = next(r for r in reversed(last) if r["kind"] == "round")["evaluation"]["new_utterances"]["loss"]
    assert f"→ {result:.3f}" in card
    assert "A synthetic command language" in card
    assert "| `client.learning_rate` | 0.02 |" in card
    assert "peft" in card
