"""Runs a benchmark by name: a file of ``benchmarks/`` with a function ``main(as_json: bool) -> int``; no registry."""

import importlib.util
import sys

from fedgen.config.catalogue import nearest, shipped
from fedgen.errors import ConfigError


def benchmark(name: str, *, as_json: bool) -> int:
    """Runs one and returns its exit code: 0 if every bound holds, else 1.

    Raises:
        ConfigError: there is no such benchmark.
    """
    known = {file.stem: file for file in sorted(shipped("benchmarks").glob("*.py")) if "def main(" in file.read_text()}
    if name not in known:
        raise ConfigError(f"there is no benchmark {name!r}{nearest(name, known)}; known: {', '.join(known) or 'none'}")
    # Benchmarks share code by plain imports of each other, as scripts of one folder do.
    sys.path.insert(0, str(known[name].parent))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", known[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code: int = module.main(as_json)
    return code
