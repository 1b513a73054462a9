"""`fedgen synthesize` as it is typed: what it makes, shows, exports and refuses."""

import json
from pathlib import Path

import pytest

from fedgen.cli.main import main
from fedgen.cli.synthesize import task_file
from fedgen.errors import ConfigError

QUICK = ["filters.perplexity_quantiles=null"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def told(capsys, *arguments):
    assert main(["synthesize", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def texts(made):
    lines = (Path(made["folder"]) / "examples.jsonl").read_text().splitlines()
    return {json.loads(line)["messages"][0]["content"] for line in lines}


def refusal(capsys, *arguments):
    assert main(["synthesize", *arguments]) == 2
    return capsys.readouterr().err


def test_a_set_is_made_shown_and_exported(cache, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["synthesize", "smart_home", *QUICK, "--num", "80", "--seed", "2", "--to", str(out)]) == 0
    shown = capsys.readouterr().out
    assert main(["synthesize", *QUICK, "--num", "80", "--surplus", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["drafts"] == 160
    for text in (
        "duplicates",
        "HassVacuumStart",
        "wanted",
        "of 100 drafts kept",
        f"fedgen train data=jsonl data.path={out}",
    ):
        assert text in shown
    folder = next(path for path in (cache / "synthetic").iterdir() if str(path) in "".join(shown.split()))
    assert sorted(path.name for path in out.iterdir()) == ["examples.jsonl", "manifest.json"]
    assert (out / "examples.jsonl").read_bytes() == (folder / "examples.jsonl").read_bytes()
    assert json.loads((out / "manifest.json").read_text())["inputs"]["seed"] == 2


def test_the_second_time_it_is_found(capsys):
    arguments = [*QUICK, "generator.per_order=4", "--num", "16"]
    first = told(capsys, *arguments)
    assert first["labels"].keys() >= {"HassTurnOn", "HassSetVolume"}
    assert "per_order=4" in first["generator"]
    assert main(["synthesize", *arguments]) == 0
    assert "has this set already" in capsys.readouterr().err
    assert told(capsys, *arguments) == first


def test_a_model_says_what_is_surprising(capsys):
    found = told(capsys, "model=tiny", "model.hidden_size=32", "--num", "80")
    notes = {row["filter"]: row["notes"] for row in found["filters"]}
    assert notes["perplexity"].keys() == {"lowest", "highest"}


def test_examples_to_be_measured_on_are_kept_out(tmp_path, capsys):
    first = told(capsys, *QUICK, "--num", "160", "--to", str(tmp_path / "held_out"))
    second = told(capsys, *QUICK, "--num", "320", "--seed", "1", "--against", str(tmp_path / "held_out"))
    (overlap,) = [row for row in second["filters"] if row["filter"] == "overlap"]
    assert overlap["notes"] == {"evaluation_examples": first["kept"]}
    assert overlap["reasons"]["the text overlaps with an evaluation example"] > 5
    assert not texts(first) & texts(second)


def test_a_task_of_ones_own_is_a_file(tmp_path, capsys):
    text = task_file("smart_home").read_text()
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("name: smart_home", "name: mine"))
    assert told(capsys, str(file), *QUICK, "--num", "16")["kept"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smart_hom"], "did you mean 'smart_home'?"),
        (["smart_home", "sensor"], "got 2 tasks"),
        (["filters.near_dup=0.5"], "filters.near_dup: Filters has no such key; did you mean 'near_duplicate'?"),
        (["filters.near_duplicate=7"], "filters.near_duplicate is 7.0"),
        (["filters.near_duplicate=x", "filters.overlap_n=1.5"], "2 faults"),
        (["generator.per_orde=3"], "generator.per_orde"),
        ([*QUICK, "--num", "3"], "the task has 8 labels"),
        ([*QUICK, "--surplus", "0.9"], "surplus is 0.9"),
        ([*QUICK, "--against", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
    ],
)
def test_mistakes_are_told_and_nothing_is_made(cache, capsys, arguments, message):
    assert message in refusal(capsys, *arguments)
    assert not (cache / "synthetic").exists()


def test_a_folder_that_is_in_use_is_refused_before_anything_is_made(cache, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert "no empty folder" in refusal(capsys, *QUICK, "--to", str(tmp_path))
    assert not (cache / "synthetic").exists()
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDGEN_CACHE", str(tmp_path / "file"))
    assert "cannot write" in refusal(capsys, *QUICK, "--num", "16")


def test_an_unknown_task_names_those_that_come_with_fedgen():
    with pytest.raises(ConfigError, match="sensor, smart_home"):
        task_file("nothing")


def test_what_a_model_wrote_cannot_steer_the_terminal(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    long = "begin cleaning \\e[2J" + " very" * 40
    file.write_text(task_file("smart_home").read_text().replace("begin cleaning with", long))
    assert main(["synthesize", str(file), *QUICK, "filters.max_characters=150", "--num", "160"]) == 0
    shown = capsys.readouterr().out
    assert "begin cleaning \ufffd[2J very" in " ".join(shown.split())
    assert "\x1b" not in shown
