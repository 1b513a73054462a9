"""A folder of the user's own files, one per owner, trains unchanged."""

import json

import pytest

from fedgen.cli.main import main
from fedgen.journal import read


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDGEN_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def write(folder, rows):
    folder.mkdir()
    for owner, examples in rows.items():
        (folder / f"{owner}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    return folder


QUICK = ["model=tiny", "num_rounds=1", "client.num_steps=1", "client.batch_size=4"]


@pytest.mark.parametrize(
    "row",
    [
        lambda n: {"prompt": f"say {n}", "completion": str(n)},
        lambda n: {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": str(n)}]},
    ],
    ids=["prompt", "messages"],
)
def test_one_file_per_owner_is_one_client_each(tmp_path, root, row):
    folder = write(tmp_path / "mine", {"anna": [row(n) for n in range(12)], "ben": [row(n) for n in range(20, 32)]})
    assert main(["train", "data=jsonl", f"data.path={folder}", *QUICK]) == 0
    (run,) = root.iterdir()
    clients = [r["client"] for r in read(run / "metrics.jsonl") if r["kind"] == "client"]
    assert clients == ["anna", "ben"]


def test_an_owner_with_fewer_examples_than_a_batch_takes_part(tmp_path, root):
    row = {"prompt": "p", "completion": "c"}
    rows = {"anna": [{**row, "prompt": f"p{n}"} for n in range(8)], "ben": [row]}
    assert main(["train", "data=jsonl", f"data.path={write(tmp_path / 'mine', rows)}", *QUICK]) == 0
    (run,) = root.iterdir()
    assert [r["refused"] for r in read(run / "metrics.jsonl") if r["kind"] == "client"] == [None, None]


def test_a_malformed_line_is_named_and_leaves_no_run(tmp_path, root, capsys):
    folder = write(tmp_path / "mine", {"anna": [{"prompt": "p", "completion": "c"}] * 3})
    with (folder / "anna.jsonl").open("a") as file:
        file.write('{"prompt": "p"\n')
    assert main(["train", "data=jsonl", f"data.path={folder}", *QUICK]) == 2
    message = capsys.readouterr().err
    assert "anna.jsonl" in message
    assert "4" in message
    assert "Traceback" not in message
    assert not root.exists() or not list(root.glob("[!.]*"))


def test_a_model_without_a_chat_template_is_refused_for_conversations(tmp_path, root, capsys):
    from fedgen.model.tiny import Tiny

    base = Tiny(hidden_size=16, num_heads=2, num_kv_heads=1).load(0)
    base.tokenizer.chat_template = None
    model = tmp_path / "model"
    base.module.save_pretrained(model)
    base.tokenizer.save_pretrained(model)
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]
    folder = write(tmp_path / "mine", {"anna": [{"messages": turns}] * 4})
    arguments = ["data=jsonl", f"data.path={folder}", f"model.source={model}", "num_rounds=1"]
    assert main(["train", *arguments]) == 2
    message = capsys.readouterr().err
    assert "no chat template" in message
    assert "Traceback" not in message
