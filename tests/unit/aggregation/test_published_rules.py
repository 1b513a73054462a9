"""Masked mean against the rules that were published, as the programs in tests/golden/aggregation work them out."""

import json
from pathlib import Path

import pytest
import torch

from fedgen import tree
from fedgen.aggregation.masked_mean import MaskedMean
from fedgen.types import Update
from tests.golden.aggregation import fedrolex, fjord

PROGRAMS = {"fedrolex": fedrolex, "fjord": fjord}
GOLDEN = Path(fedrolex.__file__).parent
ROUNDS = [record for name in PROGRAMS for record in json.loads((GOLDEN / f"{name}.json").read_text())]


def tensors(nested):
    return {name: torch.tensor(values) for name, values in nested.items()}


def plan_of(client):
    return {name: tuple(map(torch.tensor, kept)) for name, kept in client["kept"].items()}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_numbers_are_those_that_the_program_makes(name):
    assert PROGRAMS[name].text() == (GOLDEN / f"{name}.json").read_text()


@pytest.mark.parametrize("record", ROUNDS, ids=lambda record: f"{record['rule']}-{record['round']}")
def test_a_round_gives_what_the_published_rule_gives(record):
    option = MaskedMean(weighting="num_examples" if record["rule"] == "fjord" else "uniform")
    before, expected = tensors(record["before"]), tensors(record["after"])
    total = option.zero(before)
    for client in record["clients"]:
        plan = plan_of(client)
        change = tree.subtract(tensors(client["values"]), tree.cut(before, plan))
        option.add(total, Update(plan, change, client.get("num_examples", 1)))
    after, _ = option.apply(before, {}, total)
    assert after.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(after[name], expected[name], rtol=0, atol=1e-6), name


def test_the_numbers_have_what_the_rules_differ_in():
    """Entries that nobody held, that one held, that several held, and windows that have wrapped around."""
    counts, wrapped = set(), 0
    for record in ROUNDS:
        for name, values in tensors(record["before"]).items():
            held = {name: torch.zeros(values.shape)}
            for client in record["clients"]:
                plan = {name: plan_of(client)[name]}
                tree.paste(plan, tree.cut({name: torch.ones(values.shape)}, plan), held)
                wrapped += any((torch.diff(index) < 0).any() for index in plan[name])
            counts |= set(held[name].flatten().tolist())
    assert {0.0, 1.0, 2.0, 3.0, 4.0} <= counts
    assert wrapped
