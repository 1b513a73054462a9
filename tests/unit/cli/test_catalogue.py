"""Tables of what there is."""

import io

import pytest
from rich.console import Console

from fedgen.cli.catalogue import options_table_markdown, show
from fedgen.config import catalogue
from fedgen.errors import ConfigError


def shown(what, width=160):
    console = Console(file=io.StringIO(), width=width)
    show(what, console)
    return console.file.getvalue()


def test_the_overview_names_every_stage_and_option_with_its_summary():
    text = shown(None)
    for stage in catalogue.defaults():
        for name, schema in catalogue.options(stage).items():
            assert any(name in line and schema.summary[:40] in line for line in text.splitlines()), (stage, name)
    assert text.count("(default)") == sum(option != "null" for option in catalogue.defaults().values())


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
    rows = options_table_markdown().splitlines()
    assert len(rows) == 2 + len(catalogue.defaults())
    assert "| `model` | Loads a model | **causal_lm**, tiny |" in rows
