"""Every yaml in configs/: found by glob, composed, checked, built. And every option has one."""

import ast
import dataclasses
import importlib
import inspect
import typing
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

import fedgen
from fedgen import stages
from fedgen.cli.load import load
from fedgen.cli.source import completed
from fedgen.cli.train import compose
from fedgen.config import check
from fedgen.config.catalogue import defaults, shipped
from fedgen.config.fit import fit
from fedgen.task_file import read_task

CONFIGS = shipped("configs")
STAGE_NAMES = list(defaults())
OPTION_FILES = sorted(file for file in CONFIGS.glob("*/*.yaml") if file.parent.name not in ("recipe", "task"))
RECIPE_FILES = sorted((CONFIGS / "recipe").rglob("*.yaml"))
TASK_FILES = sorted((CONFIGS / "task").glob("*.yaml"))
REQUIRED_VALUES = {
    "jsonl": ["data.path=examples.jsonl"],
    "superlink": ["federation.home=server"],
    "deployment": ["federation.home=server"],
}
"""What an option cannot do without, in the words of a user."""


def name_of(file):
    return f"{file.parent.name}={file.stem}"


def class_of(file):
    module, _, name = yaml.safe_load(file.read_text())["_target_"].rpartition(".")
    return module, getattr(importlib.import_module(module), name)


def test_nothing_lies_in_configs_that_no_test_here_touches():
    found = {file for file in CONFIGS.rglob("*") if file.is_file()}
    assert found == {
        CONFIGS / "experiment.yaml",
        CONFIGS / "synthesize.yaml",
        *OPTION_FILES,
        *RECIPE_FILES,
        *TASK_FILES,
    }


@pytest.mark.parametrize("stage", [*STAGE_NAMES, "recipe"])
def test_no_group_is_empty(stage):
    assert list((CONFIGS / stage).glob("*.yaml"))


def test_the_defaults_list_has_every_stage_of_an_experiment_in_its_order():
    fields = {field.name: field.default for field in dataclasses.fields(check.Experiment)}
    assert [name for name in fields if name in STAGE_NAMES] == STAGE_NAMES
    required = [name for name, default in fields.items() if default is dataclasses.MISSING]
    assert required == [stage for stage, option in defaults().items() if option != "null"]


@pytest.mark.parametrize("file", OPTION_FILES, ids=name_of)
def test_an_option_is_a_class_of_its_name_in_a_module_of_its_name(file):
    module, cls = class_of(file)
    assert module == f"fedgen.{file.parent.name}.{file.stem}"
    assert cls.__module__ == module
    assert cls.__name__.lower() == file.stem.replace("_", "")
    assert cls.__name__[0].isupper()


@pytest.mark.parametrize("file", OPTION_FILES, ids=name_of)
def test_an_option_is_a_final_frozen_dataclass_with_a_line_about_itself(file):
    _, cls = class_of(file)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    assert cls.__bases__ == (object,)
    assert cls.__doc__.partition("\n")[0].endswith(".")


@pytest.mark.parametrize("file", OPTION_FILES, ids=name_of)
def test_an_options_file_is_a_comment_a_class_and_what_differs_from_it(file):
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[1].startswith("_target_: ")
    assert not any(line.startswith("#") for line in lines[1:])
    _, cls = class_of(file)
    given = {key: value for key, value in yaml.safe_load(file.read_text()).items() if key != "_target_"}
    fields = {field.name: field.default for field in dataclasses.fields(cls)}
    assert [key for key, value in given.items() if fields[key] == value] == []


@pytest.mark.parametrize("file", OPTION_FILES, ids=name_of)
def test_an_option_alone_is_checked_and_built(file):
    node = OmegaConf.to_container(completed(OmegaConf.load(file)))
    for override in REQUIRED_VALUES.get(file.stem, []):
        key, _, value = override.partition("=")
        node[key.partition(".")[2]] = value
    built = check.build_node(node, file.parent.name)
    assert type(built).__module__ == f"fedgen.{file.parent.name}.{file.stem}"
    assert isinstance(built, getattr(stages, file.parent.name.capitalize()))


@pytest.mark.parametrize("file", OPTION_FILES, ids=name_of)
def test_the_defaults_of_a_class_fit_its_own_annotations(file):
    _, cls = class_of(file)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            assert fit(field.default, hints[field.name]) == field.default


@pytest.mark.parametrize("file", TASK_FILES, ids=name_of)
def test_a_task_is_read_and_is_called_like_its_file(file):
    assert file.read_text().startswith("# ")
    assert read_task(file).name == file.stem


@pytest.mark.parametrize("file", [*OPTION_FILES, *RECIPE_FILES], ids=name_of)
def test_a_file_is_composed_into_the_whole_and_survives_being_written_down(file, tmp_path):
    overrides = [name_of(file), *REQUIRED_VALUES.get(file.stem, [])]
    if name_of(file) == "adapter=full":
        overrides.append("export=merged")
    config = compose(overrides)
    experiment = check.build(config)
    if file in RECIPE_FILES:
        assert file.read_text().startswith("# @package _global_\n# ")
        assert experiment.name == file.stem
    else:
        assert type(getattr(experiment, file.parent.name)).__module__ == f"fedgen.{file.parent.name}.{file.stem}"
    (tmp_path / "experiment.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert load(tmp_path / "experiment.yaml") == experiment


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_every_class_that_could_be_an_option_has_its_yaml(stage):
    """A class that is named like its module and has what the stage's Protocol asks for is an option."""
    protocol = getattr(stages, stage.capitalize())
    wanted = {name for name, _ in inspect.getmembers(protocol) if not name.startswith("_")}
    found = []
    for file in sorted((Path(fedgen.__file__).parent / stage).glob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name.lower() == file.stem.replace("_", ""):
                members = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
                # A field answers a property of the Protocol as well as a method does.
                members |= {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
                found += [file.stem] if wanted <= members else []
    assert found == sorted(file.stem for file in OPTION_FILES if file.parent.name == stage)
