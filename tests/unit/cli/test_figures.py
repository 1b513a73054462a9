"""Figures of benchmarks against their bounds."""

import json

import pytest

from fedgen.cli.figures import report


@pytest.mark.parametrize(("value", "holds"), [(1.04, True), (1.05, True), (1.06, False), (float("nan"), False)])
def test_a_bound_holds_up_to_itself(value, holds, capsys):
    assert report("loop", {"ratio": {"value": value, "bound": 1.05}}, as_json=True) == (0 if holds else 1)
    printed = json.loads(capsys.readouterr().out)
    assert printed["ratio"]["holds"] is holds
    assert printed["ratio"]["value"] == (None if value != value else value)


def test_one_broken_bound_breaks_all_and_the_table_says_which(capsys):
    figures = {"fine": {"value": 1.0, "bound": 2.0}, "broken": {"value": 3.0, "bound": 2.0}}
    assert report("A title", figures, as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any("A title" in line for line in lines)
    assert any("fine" in line and "yes" in line for line in lines)
    assert any("broken" in line and "NO" in line for line in lines)
