"""The README is true: its commands run, its table is the catalogue's, its example of an option works."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedgen.cli.catalogue import options_table_markdown
from fedgen.cli.main import _parser, main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
STAYS = {"server", "client", "status", "dashboard"}
"""Verbs that go on until they are told to stop, or look at what does; tests of their own start them."""

QUICK = ["recipe=tiny", "num_rounds=1", "client.num_steps=1", "data.num_train=8", "data.num_eval=8"]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands():
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if shlex.split(line, comments=True)]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with two finished runs, a model and data of one's own under the names that the README uses."""
    from fedgen.model.tiny import Tiny

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDGEN_RUNS", raising=False)
    base = Tiny(hidden_size=16, num_heads=2, num_kv_heads=1).load(0)
    base.module.save_pretrained("my-model")
    base.tokenizer.save_pretrained("my-model")
    Path("my-data").mkdir()
    rows = [{"prompt": f"Dim lamp {n}. ", "completion": "LightSet(brightness=30)"} for n in range(8)]
    Path("my-data/anna.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["train", *QUICK]) == 0
    (run,) = Path("runs").iterdir()
    return run


def test_every_command_runs(workplace, capsys):
    """Options are replaced by small ones where a command would train the real model; the words stay as they are."""
    ran = []
    for command in commands():
        if command[0] == "make":
            subprocess.run(["make", "-n", *command[1:]], cwd=ROOT, check=True, capture_output=True)
        else:
            assert command[0] == "fedgen", command
            words = [str(workplace) if word == "runs/RUN" else word for word in command[1:]]
            if words[0] in STAYS:
                _parser().parse_args(words)
                continue
            if "federation=superlink" in words:
                words += ["--cfg", "job"]
            elif "data=jsonl" in words:
                words += ["num_rounds=1", "client.num_steps=1"]
            elif words[0] in ("train", "plan"):
                words = [word for word in words if word != "recipe=tiny"]
                words += [*QUICK[1:], "model=tiny", "data=synthetic", "partition=by_owner"]
                words += ["seeding.num_examples=80", "seeding.num_turns=1"]
                words = list(dict.fromkeys(words))
            assert main(words) == 0, (command, capsys.readouterr().err)
        ran.append(command[:2])
    assert ["make", "run"] in ran
    assert len(ran) >= 8
    assert (Path("tuned") / "config.json").is_file()


def test_the_first_command_stands_before_line_20_and_the_page_is_short():
    lines = TEXT.splitlines()
    assert next(number for number, line in enumerate(lines, 1) if line == "make run") <= 20
    assert len(lines) <= 160


def test_the_table_of_options_is_the_catalogues():
    table = re.search(r"<!-- options: \S+ -->\n(.*?)\n<!-- end of options -->", TEXT, re.DOTALL)
    assert table is not None
    assert table[1].strip() == options_table_markdown().strip()


def test_what_the_tree_names_exists():
    tree = next(block for block in blocks("text") if block.startswith("fedgen/\n"))
    named = re.findall(r"(?<![\w.])(\w+\.py|\w+/)", tree)
    known = {path.name for path in (ROOT / "fedgen").glob("*.py")}
    known |= {f"{path.name}/" for folder in (ROOT, ROOT / "fedgen", ROOT / "tests") for path in folder.iterdir()}
    assert len(named) > 25
    assert set(named) <= known, set(named) - known


def test_every_stage_is_drawn_and_linked_pages_exist():
    drawing = next(block for block in blocks("text") if "data ─►" in block)
    stages = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()} - {"recipe", "task", "federation"}
    assert stages <= {*re.findall(r"\w+", drawing), "model"}
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_lines_of_ones_own_data_are_as_shown(tmp_path):
    from fedgen.data.jsonl import Jsonl

    for number, line in enumerate(blocks("json")[0].splitlines()):
        (tmp_path / f"{number}.jsonl").write_text(f"{line}\n{line}\n")
        assert Jsonl(path=str(tmp_path / f"{number}.jsonl")).load(0).train


def test_the_example_of_an_option_is_found_and_runs(tmp_path):
    """In a copy of the package, as a newcomer would add it."""
    for name in ("fedgen", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    imports = (
        '"""One client per label."""\n\nfrom collections.abc import Sequence\nfrom dataclasses import dataclass\n\n'
        "import torch\n\nfrom fedgen.types import Example\n\n\n"
    )
    (tmp_path / "fedgen/partition/by_label.py").write_text(imports + blocks("python")[0])
    (tmp_path / "configs/partition/by_label.yaml").write_text(blocks("yaml")[0])
    words = [word for word in QUICK if "recipe" not in word]
    command = [sys.executable, "-m", "fedgen", "train", "partition=by_label", "model=tiny", "data=synthetic", *words]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["client"] for line in lines if line["kind"] == "client"} <= {"on", "off", "dim", "boost"}
