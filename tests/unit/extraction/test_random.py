"""Federated Dropout: how often each unit is drawn, and that one draw serves all tensors of an axis."""

import pytest
import torch

from fedgen import seeds, tree
from fedgen.extraction.random import Random
from fedgen.types import Axes, Choice, Dim


def drawn(option, num_kept=5, axis="ffn.0", round=1, client="a", seed=0):
    return option.keep(Choice(axis, 20, num_kept, round, client, seed=seed)).tolist()


def test_the_draw_is_the_first_part_of_a_permutation_that_the_path_fixes():
    order = torch.randperm(20, generator=seeds.derive(7, "extraction kv.3", 4, "b")).tolist()
    assert drawn(Random(), 6, "kv.3", 4, "b", seed=7) == sorted(order[:6])
    shared = torch.randperm(20, generator=seeds.derive(7, "extraction kv.3", 4, "")).tolist()
    assert drawn(Random(shared=True), 6, "kv.3", 4, "b", seed=7) == sorted(shared[:6])


@pytest.mark.parametrize("other", [{"axis": "ffn.1"}, {"round": 2}, {"client": "b"}, {"seed": 1}])
def test_axis_round_client_and_seed_each_draw_for_themselves(other):
    assert drawn(Random(), **other) != drawn(Random())


def test_a_shared_draw_is_one_for_all_clients_and_nested():
    shared = Random(shared=True)
    assert drawn(shared, client="b") == drawn(shared, client="a")
    assert drawn(shared, round=2) != drawn(shared)
    assert set(drawn(shared, 3, client="b")) < set(drawn(shared, 5, client="a"))


def test_every_unit_is_drawn_as_often_as_chance_would_have_it():
    """Per unit Binomial(rounds, k / n); over all units the scaled squares add up as chi-square with n - 1 degrees."""
    units, num_kept, rounds = 40, 10, 2000
    times = torch.zeros(units)
    for round in range(1, rounds + 1):
        times[Random().keep(Choice("ffn.0", units, num_kept, round, "a"))] += 1
    share = num_kept / units
    deviations = (times - rounds * share) / (rounds * share * (1 - share)) ** 0.5
    assert deviations.abs().max() < 4  # standard deviations; beyond with a chance of 40 * 6e-5 = 0.3 percent
    chi_square = float(deviations.square().sum()) * (units - 1) / units
    assert 15.0 < chi_square < 76.0  # 39 degrees of freedom: beyond with a chance of 0.1 percent


def test_pairs_of_units_are_drawn_together_as_chance_would_have_it():
    units, num_kept, rounds = 10, 5, 2000
    together = torch.zeros(units, units)
    for round in range(1, rounds + 1):
        kept = Random().keep(Choice("ffn.0", units, num_kept, round, "a"))
        together[kept[:, None], kept] += 1
    share = num_kept / units * (num_kept - 1) / (units - 1)
    pairs = together[torch.triu_indices(units, units, 1).unbind()]
    assert ((pairs - rounds * share) / (rounds * share * (1 - share)) ** 0.5).abs().max() < 4


def test_all_tensors_of_an_axis_lose_the_same_units():
    axes = Axes(
        {
            "gate": (Dim("ffn.0"), None),
            "up": (Dim("ffn.0"), None),
            "down": (None, Dim("ffn.0")),
            "bias": (Dim("ffn.0"),),
        },
        {"ffn.0": 20},
    )
    kept = Random().keep(Choice("ffn.0", 20, 5, round=1, client="a"))
    plan = tree.plan_of(axes, {"ffn.0": kept})
    for index in (plan["gate"][0], plan["up"][0], plan["down"][1], plan["bias"][0]):
        assert index.tolist() == kept.tolist()
    # asked again for the same axis, as the other end does for each of its tensors, it says the same
    assert all(drawn(Random()) == kept.tolist() for _ in range(3))
