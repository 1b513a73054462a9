"""Classes read from their source: the same as what Python says after importing them."""

import dataclasses
import importlib
import subprocess
import sys

import pytest

from fedgen.config import catalogue
from fedgen.config.schema import REQUIRED, attribute_texts, read

OPTIONS = [schema.target for stage in catalogue.defaults() for schema in catalogue.options(stage).values()]


def as_yaml(value):
    """Tuples as lists: yaml has no tuples."""
    return [as_yaml(item) for item in value] if isinstance(value, tuple | list) else value


@pytest.mark.parametrize("target", [*OPTIONS, "fedgen.experiment.Experiment"])
def test_fields_and_defaults_are_those_of_the_class(target):
    module, _, name = target.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    wanted = {
        field.name: REQUIRED if field.default is dataclasses.MISSING else as_yaml(field.default)
        for field in dataclasses.fields(cls)
    }
    schema = read(target)
    assert {field.name: field.default for field in schema.fields} == wanted
    assert schema.summary == cls.__doc__.partition("\n")[0]


@pytest.mark.parametrize("target", [*OPTIONS, "fedgen.experiment.Experiment"])
def test_every_field_is_documented(target):
    assert [field.name for field in read(target).fields if not field.text] == []


def test_a_class_is_read_without_importing_it():
    probe = (
        "import sys; from fedgen.config.schema import read; read('fedgen.client.first_order.FirstOrder');"
        "print('torch' in sys.modules, 'fedgen.client.first_order' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "False"]


def test_defaults_may_be_constants_of_another_module(tmp_path, monkeypatch):
    (tmp_path / "standin_constants.py").write_text("WHERE = 'here'\nSIZES: tuple[int, ...] = (1, 2)\n")
    (tmp_path / "standin_option.py").write_text(
        '"""Cites somebody."""\n'
        "from dataclasses import dataclass\n"
        "import standin_constants\n"
        "from standin_constants import SIZES\n"
        "OWN = -1.5\n"
        "@dataclass(frozen=True)\n"
        "class Option:\n"
        '    """First line.\n\n    Attributes:\n        path: where.\n'
        '        sizes: how large,\n            in rows.\n    """\n'
        "    path: str\n"
        "    sizes: tuple[int, ...] = SIZES\n"
        "    own: float = OWN\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    schema = read("standin_option.Option")
    assert schema.summary == "First line."
    assert schema.citation == "Cites somebody."
    assert [(f.name, f.annotation, f.default, f.text) for f in schema.fields] == [
        ("path", "str", REQUIRED, "where."),
        ("sizes", "tuple[int, ...]", [1, 2], "how large, in rows."),
        ("own", "float", -1.5, ""),
    ]


def test_a_default_that_only_running_tells_is_refused(tmp_path, monkeypatch):
    (tmp_path / "standin_runs.py").write_text("import os\nclass Option:\n    cores: int = os.cpu_count()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(LookupError, match=r"os\.cpu_count\(\) is not a literal"):
        read("standin_runs.Option")


@pytest.mark.parametrize(
    ("target", "message"),
    [("fedgen.nothing.Here", "no module fedgen.nothing"), ("fedgen.wire.dense.Sparse", "has no class Sparse")],
)
def test_what_does_not_exist_is_named(target, message):
    with pytest.raises(LookupError, match=message):
        read(target)


def test_attributes_end_where_another_section_begins():
    assert attribute_texts("A.\n\n    Attributes:\n        x: one.\n\n    Raises:\n        y: two.\n") == {"x": "one."}
