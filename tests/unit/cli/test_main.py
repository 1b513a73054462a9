"""The command as a user meets it: real processes, exit codes, what is printed where."""

import os
import shlex
import subprocess
import sys
import time

import pytest

import fedgen

HELP_SECONDS = 0.5


def run(*arguments, cwd, env=None, check=False):
    return subprocess.run(
        [sys.executable, "-m", "fedgen", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(fedgen.__file__)), **(env or {})},
        capture_output=True,
        text=True,
        check=check,
    )


def imported_by(arguments, tmp_path):
    """Names of the modules that a command imports."""
    probe = (
        "import sys\nfrom fedgen.cli.main import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print(' '.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(fedgen.__file__))},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.splitlines()[-1].split())


def test_help_teaches_and_is_quick(tmp_path):
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = run("--help", cwd=tmp_path, check=True)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < HELP_SECONDS
    for verb in ("train", "resume", "report", "export", "generate", "options", "benchmark"):
        assert f"\n  {verb} " in done.stdout
    assert done.stdout.count("\n  fedgen ") >= 3
    assert "runs/<date>-<name>/" in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"], ["resume", "--help"]])
def test_help_imports_neither_torch_nor_hydra(arguments, tmp_path):
    assert not {"torch", "hydra", "omegaconf", "rich", "numpy"} & imported_by(arguments, tmp_path)


@pytest.mark.parametrize(
    "arguments", [["train", "--cfg", "job"], ["options", "model.causal_lm"], ["resume", "gone"], ["report", "gone"]]
)
def test_looking_imports_no_torch(arguments, tmp_path):
    assert not {"torch", "transformers", "numpy"} & imported_by(arguments, tmp_path)


def test_the_help_of_train_teaches_overrides_sweeps_and_recipes(tmp_path):
    text = run("train", "--help", cwd=tmp_path, check=True).stdout
    for part in ("-m seed=1,2,3", "fedgen options", "recipe=tiny", "data=jsonl data.path=", "--cfg job", "FEDGEN_RUNS"):
        assert part in text


def test_the_version_is_the_packages(tmp_path):
    assert run("--version", cwd=tmp_path, check=True).stdout == f"fedgen {fedgen.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "model=tinny"], "fedgen: model=tinny: there is no such option; did you mean 'tiny'?"),
        (["train", "recipe=tiny", "client.learning_rate=fast"], "client.learning_rate: 'fast' is not a number"),
        (["resume", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["export", "nowhere"], "nowhere"),
        (["generate", "nowhere", "hello"], "nowhere"),
        (["options", "modle"], "there is no stage 'modle'; did you mean 'model'?"),
        (["benchmark", "speeed"], "there is no benchmark 'speeed'"),
        (["generate", "run", "hello", "--max-new-tokens", "0"], "0 is not at least 1"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "the following arguments are required: VERB"),
    ],
)
def test_mistakes_exit_with_2_and_a_message_without_traceback(arguments, message, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "Error executing job" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_closes_the_pipe_hears_no_complaint(tmp_path):
    command = f"{shlex.quote(sys.executable)} -m fedgen options | head -n 1"
    env = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(fedgen.__file__))}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_benchmark_is_found_by_name_and_decides_the_exit_code(tmp_path, monkeypatch, capsys):
    from fedgen.cli import benchmark
    from fedgen.cli.main import main

    (tmp_path / "size.py").write_text("def main(as_json: bool) -> int:\n    print('json', as_json)\n    return 1\n")
    (tmp_path / "plain_loop.py").write_text("X = 1\n")
    monkeypatch.setattr(benchmark, "shipped", lambda name: tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["benchmark", "size", "--json"]) == 1
    assert capsys.readouterr().out == "json True\n"
    assert main(["benchmark", "sise"]) == 2
    assert capsys.readouterr().err == "fedgen: there is no benchmark 'sise'; did you mean 'size'?; known: size\n"
