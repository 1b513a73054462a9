"""A run from the command line, whole: trained, resumed, reported, exported, talked to, swept. All on the tiny model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import fedgen
from fedgen.cli.load import load
from fedgen.cli.main import main

SMALL = ["recipe=tiny", "client.num_steps=2", "adapter.rank=4", "data.num_train=8", "data.num_eval=4"]

# The model has no hub id, and PEFT looks for one when it saves.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


def train(root, *arguments):
    """Exit code of a training, with runs kept in `root`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDGEN_RUNS", str(root))
        return main(["train", *SMALL, *arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of two rounds."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        assert train(root, "num_rounds=2") == 0
        assert list(Path.cwd().iterdir()) == [], "Hydra must leave nothing behind"
    (run,) = root.iterdir()
    return run


def test_a_run_leaves_behind_what_it_should(trained):
    assert trained.name.endswith("-tiny")
    left = {path.name for path in trained.iterdir()}
    wanted = {"experiment.yaml", "environment.json", "metrics.jsonl", "checkpoints", "adapter", "report.html"}
    assert wanted | {"report.json"} <= left
    assert json.loads((trained / "report.json").read_text())["status"] == "finished"


def test_the_config_of_a_run_is_whole_and_builds_the_experiment(trained):
    config = yaml.safe_load((trained / "experiment.yaml").read_text())
    assert config["num_rounds"] == 2
    assert config["client"]["batch_size"] == 4, "values that nobody typed are written down too"
    assert load(trained / "experiment.yaml").client.num_steps == 2


def test_generate_prints_the_answer_and_nothing_else(trained, capsys):
    assert main(["generate", str(trained), "lamp 3 on", "--max-new-tokens", "4"]) == 0
    answer = capsys.readouterr().out
    assert answer.endswith("\n")
    assert len(answer.encode()) <= 4 * 4 + 1
    assert main(["generate", str(trained), "lamp 3 on", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out == answer


def test_export_writes_the_option_that_is_asked_for(trained, tmp_path, capsys):
    assert main(["export", str(trained), "merged", "--to", str(tmp_path / "whole")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'whole'}\n"
    assert (tmp_path / "whole" / "model.safetensors").exists()
    assert "exact_match" in (tmp_path / "whole" / "README.md").read_text()


def test_export_again_gives_the_same_adapter(trained, tmp_path):
    assert main(["export", str(trained), "--to", str(tmp_path / "again")]) == 0
    for file in (trained / "adapter").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_export_overwrites_nobodys_files(trained, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["export", str(trained), "--to", str(tmp_path)]) == 2
    assert "is no empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unknown_export_is_refused(trained, capsys):
    assert main(["export", str(trained), "adaptor"]) == 2
    assert "did you mean 'adapter'?; it has adapter, merged" in capsys.readouterr().err


def test_resuming_a_finished_run_changes_no_result(trained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    before = (copy / "metrics.jsonl").read_bytes()
    (copy / "report.html").unlink()
    assert main(["resume", str(copy)]) == 0
    assert (copy / "metrics.jsonl").read_bytes() == before
    assert (copy / "report.html").exists()


def test_report_of_one_run_names_its_page(trained, capsys):
    assert main(["report", str(trained)]) == 0
    assert capsys.readouterr().out == f"{trained / 'report.html'}\n"


def test_report_of_several_runs_compares_them(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "other")
    page = tmp_path / "both.html"
    assert main(["report", str(trained), str(tmp_path / "other"), "--out", str(page)]) == 0
    assert "<html" in page.read_text()
    assert capsys.readouterr().out.endswith(f"{page}\n")


def test_report_says_where_it_cannot_write(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["report", str(trained), "--out", str(tmp_path / "file" / "page.html")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_run_that_never_began_leaves_no_folder(tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDGEN_RUNS", str(tmp_path / "runs"))
        assert main(["train", "recipe=tiny", "data=jsonl", "data.path=gone"]) == 2
    assert "gone" in capsys.readouterr().err
    assert [path for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["'../out'", "'a b'", "''"])
def test_a_name_that_is_no_folders_name_is_refused(tmp_path, capsys, name):
    assert train(tmp_path / "runs", f"name={name}") == 2
    assert "name" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_root_that_is_a_file_is_named(tmp_path, capsys):
    (tmp_path / "runs").write_text("")
    assert train(tmp_path / "runs") == 2
    assert str(tmp_path / "runs") in capsys.readouterr().err
    assert train(tmp_path / "runs", "-m", "seed=1,2") == 2
    assert "set FEDGEN_RUNS to a folder for runs" in capsys.readouterr().err


def test_a_sweep_is_one_folder_with_a_run_per_job_and_a_comparison(tmp_path, capsys):
    assert train(tmp_path, "-m", "num_rounds=1", "seed=1,2") == 0
    (sweep,) = tmp_path.iterdir()
    jobs = sorted(path.name[len("2026-11-23T2215-") :] for path in sweep.iterdir() if path.is_dir())
    assert jobs == ["seed=1", "seed=2"]
    assert {path.name for path in sweep.iterdir() if path.is_file()} == {"report.html"}
    printed = capsys.readouterr().out
    assert f"fedgen report {sweep}" in printed
    seeds = {yaml.safe_load(file.read_text())["seed"] for file in sweep.glob("*/experiment.yaml")}
    assert seeds == {1, 2}


def test_a_job_that_fails_loses_no_other_and_shows_in_the_exit_code(tmp_path, capsys):
    assert train(tmp_path, "-m", "num_rounds=1", "client.learning_rate=-1,1e-3") == 2
    (sweep,) = tmp_path.iterdir()
    assert [path.name.partition("=")[2] for path in sweep.iterdir() if path.is_dir()] == ["0.001"]
    (failed,) = [json.loads(line) for line in (sweep / "failed.jsonl").read_text().splitlines()]
    assert failed["job"] == "client.learning_rate=-1"
    assert "client.learning_rate is -1.0; it must be positive" in failed["message"]
    assert "client.learning_rate=-1" in capsys.readouterr().err


def test_a_sweep_in_which_all_jobs_fail_says_so(tmp_path, capsys):
    assert train(tmp_path, "-m", "client.learning_rate=-1,-2") == 2
    assert "2 of the jobs failed" in capsys.readouterr().err


def test_a_defect_in_a_job_keeps_its_traceback_and_exits_with_1(tmp_path, capsys, monkeypatch):
    from fedgen.federation.local import Local

    def broken(self, experiment, run, observe):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Local, "run", broken)
    assert train(tmp_path, "-m", "seed=1,2") == 1
    assert capsys.readouterr().err.count("ZeroDivisionError: a defect") >= 2


def test_interrupting_says_how_to_go_on_and_leaves_a_model_to_talk_to(tmp_path):
    env = {**os.environ, "FEDGEN_RUNS": str(tmp_path), "PYTHONPATH": str(Path(fedgen.__file__).parent.parent)}
    command = [sys.executable, "-m", "fedgen", "train", *SMALL, "num_rounds=500"]
    process = subprocess.Popen(
        command,
        env=env,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has them ignore interrupts, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/checkpoints/round-0002")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    (run,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert f"fedgen resume {run}" in err
    assert "Traceback" not in err
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["kind"] != "end"
    assert main(["generate", str(run), "lamp 3 on", "--max-new-tokens", "2"]) == 0
