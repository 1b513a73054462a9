"""Results pages say what their csv says, and name commands that exist."""

import csv
import itertools
import re
import shlex
import statistics
from pathlib import Path

import pytest
import yaml

from fedgen.cli.train import compose
from fedgen.config.catalogue import recipes
from fedgen.config.check import build

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


def tables(page):
    """Tables of a page whose first column is that of settings: headers, and rows of cells without their marks."""
    lines = [[cell.strip(" *`") for cell in line.strip("|").split("|")] for line in page.read_text().splitlines()]
    for number, cells in enumerate(lines):
        if cells[0] == "setting":
            body = list(itertools.takewhile(lambda row: len(row) == len(cells), lines[number + 2 :]))  # noqa: B023
            yield cells, body


def told(values, decimals):
    """`mean ± sd` over seeds, in so many decimals; the value itself of one seed."""
    mean = f"{statistics.mean(values):.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{decimals}f}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_tables_are_computed_from_the_csv(page):
    """A column of the csv that a table has too is averaged over what one seed has several of, then over seeds."""
    found = 0
    for headers, body in tables(page):
        for cells in body:
            for header, cell in zip(headers, cells, strict=True):
                own = [row for row in rows(page) if row["setting"] == cells[0]]
                if header == "seeds":
                    assert int(cell) == len({row["seed"] for row in own}), cells
                elif header in rows(page)[0] and header != "setting":
                    seeds = {}
                    for row in own:
                        if row[header]:
                            seeds.setdefault(row["seed"], []).append(float(row[header]))
                    decimals = len(cell.split(" ")[0].partition(".")[2])
                    expected = told([statistics.mean(values) for values in seeds.values()], decimals) if seeds else ""
                    assert cell == expected, (cells[0], header)
                    found += 1
    assert found >= 6


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_pictures_and_links_of_a_page_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_table_of_drills_is_the_csv_and_every_fault_had_the_outcome_that_was_expected():
    page = ROOT / "simulations" / "deployment" / "drills.md"
    with (page.parent / "drills.csv").open(newline="") as file:
        drills = list(csv.DictReader(file))
    table = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    expected = [f"| {row['fault']} | {row['expected']} | {row['seen']} |" for row in drills]
    start = table.index("| fault | expected | seen |") + 1
    assert table[start : start + len(expected)] == expected
    assert len(expected) > 20
    assert [row for row in drills if row["as expected"] != "yes"] == []
