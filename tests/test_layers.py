"""Imports point downwards, and the contract that says so would notice if they did not."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOOR = {
    "fedgen.directions",
    "fedgen.errors",
    "fedgen.messages",
    "fedgen.seeds",
    "fedgen.stages",
    "fedgen.tree",
    "fedgen.types",
}
ARITHMETIC = ("aggregation", "extraction", "wire")
LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the package in a folder, told by the pyproject.toml there."""
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, to break."""
    shutil.copytree(ROOT / "fedgen", tmp_path / "fedgen", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_point_downwards():
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "statement", "broken"),
    [
        ("tree.py", "import fedgen.rounds", "fedgen.tree is not allowed to import fedgen.rounds"),
        ("types.py", "from fedgen import errors", "fedgen.types is not allowed to import fedgen.errors"),
        (
            "wire/dense.py",
            "from fedgen.aggregation import mean",
            "fedgen.wire is not allowed to import fedgen.aggregation",
        ),
        ("wire/dense.py", "def lazy():\n    import peft", "fedgen.wire is not allowed to import peft"),
        ("selection/perplexity.py", "import transformers", "fedgen.selection is not allowed to import transformers"),
        ("client/first_order.py", "import omegaconf", "fedgen is not allowed to import omegaconf"),
        ("rounds.py", "import flwr", "fedgen is not allowed to import flwr"),
        ("report/records.py", "from fedgen import types", "fedgen.report is not allowed to import torch"),
    ],
)
def test_a_wrong_import_is_noticed(copy, module, statement, broken):
    path = copy / "fedgen" / module
    path.write_text(path.read_text() + f"\n\n{statement}\n")
    result = lint(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    assert broken in " ".join(result.stdout.split())


def test_a_module_without_a_place_is_noticed(copy):
    (copy / "fedgen" / "elsewhere.py").write_text('"""Where does it belong?"""\n')
    result = lint(copy)
    assert result.returncode == 1
    assert "elsewhere" in result.stdout + result.stderr


@pytest.mark.parametrize("stage", ARITHMETIC)
def test_the_arithmetic_imports_only_torch_and_the_floor(stage):
    modules = sorted((ROOT / "fedgen" / stage).glob("*.py"))
    assert modules
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {f"fedgen.{alias.name}" for alias in node.names} if node.module == "fedgen" else {node.module}
            else:
                continue
            for name in names:
                root = name.partition(".")[0]
                own = name in FLOOR or name.startswith(f"fedgen.{stage}")
                assert own or root in {"torch", "jaxtyping"} or root in sys.stdlib_module_names, f"{module}: {name}"
