"""What the package offers by name, what importing it costs, and that every module can be imported on its own."""

import inspect
import subprocess
import sys
from pathlib import Path

import fedgen

ROOT = Path(__file__).parent.parent
HEAVY = ("flwr", "hydra", "hassil", "matplotlib", "omegaconf", "peft", "rich", "transformers")

ALONE = """
import importlib, sys, traceback
import torch  # by far the slowest; what is under test is the order among fedgen's own modules
failed = []
for name in sys.argv[1:]:
    for own in [module for module in sys.modules if module.partition(".")[0] == "fedgen"]:
        del sys.modules[own]
    try:
        importlib.import_module(name)
    except BaseException:
        failed.append(name)
        traceback.print_exc()
sys.exit(", ".join(failed) or 0)
"""


def test_the_public_names():
    assert set(fedgen.__all__) == {"__version__"}


def test_public_names_exist_and_say_what_they_are():
    for name in fedgen.__all__:
        value = getattr(fedgen, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert inspect.getdoc(value), f"fedgen.{name} has no docstring"


def test_the_package_loads_nothing_heavy():
    probe = f"import sys, fedgen.types, fedgen; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_package_by_itself_loads_no_torch():
    probe = "import sys, fedgen; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_every_module_can_be_imported_first():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "fedgen").rglob("*.py"))
    ]
    assert len(names) > 20
    # Flower's command line asks click by names that click is about to drop.
    strict = ("-W", "error", "-W", "ignore:'click.utils.get_:DeprecationWarning")
    result = subprocess.run(
        [sys.executable, *strict, "-c", ALONE, *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
