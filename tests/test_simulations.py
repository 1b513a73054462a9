"""Results pages say what their csv says, and name commands that exist."""

import csv
import re
import shlex
import statistics
from pathlib import Path

import pytest
import yaml

from fedgen.cli.catalogue import recipes
from fedgen.cli.check import build
from fedgen.cli.train import compose

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "simulations").glob("*/README.md"))
FACTS = {"paper", "command", "machine", "seconds", "memory_mib", "expected", "got"}


def front(page):
    return yaml.safe_load(page.read_text().split("---\n")[1])


def rows(page):
    with (page.parent / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_there_are_pages_and_no_python_beside_them():
    assert PAGES
    assert not list((ROOT / "simulations").rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_a_page_is_that_of_a_recipe_and_its_commands_compose(page):
    assert page.parent.name in recipes()
    assert front(page).keys() >= FACTS
    commands = [front(page)["command"], *re.findall(r"^fedgen train (.*)$", page.read_text(), re.MULTILINE)]
    assert len(commands) > 1
    for command in commands:
        words = [word for word in shlex.split(command.removeprefix("fedgen train ")) if word != "-m"]
        first = [word.split(",")[0] if "[" not in word else word for word in words]
        build(compose(first))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_table_is_computed_from_the_csv(page):
    """Mean and sample standard deviation over seeds; several homes of one seed are averaged first."""
    found = 0
    for line in page.read_text().splitlines():
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        settings = {row["setting"] for row in rows(page)}
        if cells[0] not in settings:
            continue
        for split, cell in zip(("new_utterances", "new_templates", "new_home"), cells[2:5], strict=True):
            seeds = {}
            for row in rows(page):
                if row["setting"] == cells[0] and row["split"] == split:
                    seeds.setdefault(row["seed"], []).append(float(row["exact_match"]))
            values = [statistics.mean(values) for values in seeds.values()]
            assert int(cells[1]) == len(values)
            expected = f"{statistics.mean(values):.3f}"
            if len(values) > 1:
                expected += f" ± {statistics.stdev(values):.3f}"
            assert cell == expected, (line, expected)
            found += 1
    assert found >= 6


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_pictures_and_links_of_a_page_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
