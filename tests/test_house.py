"""The rules of the house that no linter knows: sizes, names, and what must not occur."""

import ast
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "fedgen").rglob("*.py"))
TEXTS = sorted(
    path
    for folder in ("fedgen", "configs", "benchmarks")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".yaml", ".jinja", ".md", ".toml"}
)

MAX_MODULE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 7
NAMES_THAT_SAY_NOTHING = {"base", "common", "core", "helpers", "helper", "manager", "misc", "util", "utils"}
MODULES_THAT_RUN_CODE = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def functions(module: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len([argument for argument in given if argument.arg not in {"self", "cls"}])


def imported(module: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def place(module: Path, line: int) -> str:
    return f"{module.relative_to(ROOT)}:{line}"


def test_there_is_something_to_look_at():
    assert len(MODULES) > 20
    assert len(TEXTS) > len(MODULES)


def test_a_module_is_a_sitting():
    sizes = {str(module.relative_to(ROOT)): len(module.read_text().splitlines()) for module in MODULES}
    assert {name: size for name, size in sizes.items() if size > MAX_MODULE_LINES} == {}


def test_a_function_is_a_screen():
    sizes = {
        f"{place(module, function.lineno)} {function.name}": (function.end_lineno or 0) - function.lineno + 1
        for module in MODULES
        for function in functions(module)
    }
    assert {name: size for name, size in sizes.items() if size > MAX_FUNCTION_LINES} == {}


def test_a_function_takes_seven_arguments_at_most():
    counts = {
        f"{place(module, function.lineno)} {function.name}": num_parameters(function)
        for module in MODULES
        for function in functions(module)
    }
    assert {name: count for name, count in counts.items() if count > MAX_PARAMETERS} == {}


def test_names_say_something():
    folders = {path for path in (ROOT / "fedgen").rglob("*") if path.is_dir()}
    assert [str(path) for path in {*MODULES, *folders} if path.stem in NAMES_THAT_SAY_NOTHING] == []


def test_nothing_that_is_read_can_run():
    loads = [
        place(module, node.lineno)
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "yaml.load", "eval", "exec"}
    ]
    imports = [
        f"{module.relative_to(ROOT)} imports {name}"
        for module in MODULES
        for name in imported(module)
        if name.partition(".")[0] in MODULES_THAT_RUN_CODE
    ]
    assert loads + imports == []


def test_nothing_is_left_for_later():
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError|pragma: no cover")
    assert [*matches(TEXTS, marks)] == []


def test_no_path_of_one_machine():
    assert [*matches(TEXTS, re.compile(r"(?<![\w.$}])/(home|root|work|tmp|Users|mnt)/"))] == []


def matches(paths: list[Path], pattern: re.Pattern[str]) -> Iterator[str]:
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if pattern.search(line):
                yield f"{place(path, number)}: {line.strip()}"


def test_options_are_frozen_and_inherit_from_nothing():
    wrong = []
    for config in sorted((ROOT / "configs").glob("*/*.yaml")):
        module = ROOT / "fedgen" / config.parent.name / f"{config.stem}.py"
        if config.parent.name in ("recipe", "task"):
            continue
        wanted = config.stem.replace("_", "").lower()
        option = next(
            node
            for node in ast.parse(module.read_text()).body
            if isinstance(node, ast.ClassDef) and node.name.lower() == wanted
        )
        decorators = {ast.unparse(decorator) for decorator in option.decorator_list}
        if not any(text.startswith("dataclass") and "frozen=True" in text for text in decorators) or option.bases:
            wrong.append(place(module, option.lineno))
    assert wrong == []


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_the_tests_cannot_reach_the_network(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as outward, pytest.raises(RuntimeError, match="reached for the network"):
        outward.connect((host, 80))


def test_the_tests_cannot_look_names_up():
    with pytest.raises(RuntimeError, match="reached for the network"):
        socket.getaddrinfo("example.org", 80)


def test_the_tests_can_reach_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())
