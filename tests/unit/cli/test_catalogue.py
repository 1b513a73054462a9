"""What there is: stages, options, recipes."""

import io

import pytest
from rich.console import Console

from fedgen.cli import catalogue
from fedgen.errors import ConfigError


def shown(what, width=160):
    console = Console(file=io.StringIO(), width=width)
    catalogue.show(what, console)
    return console.file.getvalue()


def test_stages_come_in_the_order_in_which_data_flows():
    assert list(catalogue.defaults()) == [
        "fleet",
        "data",
        "partition",
        "model",
        "adapter",
        "extraction",
        "client",
        "selection",
        "wire",
        "aggregation",
        "evaluation",
        "export",
        "federation",
    ]


def test_every_folder_of_configs_is_a_stage_or_holds_recipes_or_tasks():
    folders = {path.name for path in catalogue.shipped("configs").iterdir() if path.is_dir()}
    assert folders == {*catalogue.defaults(), "generator", "recipe", "task"}


def test_the_overview_names_every_stage_and_option_with_its_summary():
    text = shown(None)
    for stage in catalogue.defaults():
        for name, schema in catalogue.options(stage).items():
            assert any(name in line and schema.summary[:40] in line for line in text.splitlines()), (stage, name)
    assert text.count("(default)") == len(catalogue.defaults())


def test_one_option_shows_keys_defaults_and_texts():
    text = shown("client.first_order", width=200)
    line = next(line for line in text.splitlines() if "client.num_epochs" in line)
    assert "null" in line
    assert "passes over the local examples" in line
    assert "McMahan" in text


def test_a_key_that_must_be_given_says_so():
    assert any("data.path" in line and "(must be given)" in line for line in shown("data.jsonl").splitlines())


def test_an_option_without_keys_says_so():
    assert "no fields" in shown("extraction.full")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("modle", r"no stage 'modle'; did you mean 'model'\?; stages: fleet, data, partition"),
        ("model.tinny", r"model has no option 'tinny'; did you mean 'tiny'\?; it has causal_lm, tiny"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(what, message):
    with pytest.raises(ConfigError, match=message):
        shown(what)


def test_the_markdown_table_has_a_row_per_stage_and_marks_the_default():
    rows = catalogue.options_table_markdown().splitlines()
    assert len(rows) == 2 + len(catalogue.defaults())
    assert "| `model` | Loads a model | **causal_lm**, tiny |" in rows


def test_recipes_say_what_they_are():
    assert "random two-layer model" in catalogue.recipes()["tiny"]
