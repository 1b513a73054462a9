"""Who held what, by hand; and what nobody will ever hold, found beforehand."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

from fedgen import coverage as auditor
from fedgen.adapter.frozen_a import FrozenA
from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.coverage import Coverage, warn_of_gaps
from fedgen.devices import Device
from fedgen.errors import ConfigError
from fedgen.extraction.depth import Depth
from fedgen.extraction.full import Full as FullExtraction
from fedgen.extraction.importance import Importance
from fedgen.extraction.random import Random
from fedgen.extraction.rolling import Rolling
from fedgen.extraction.static import Static
from fedgen.fleet.levels import Levels
from fedgen.fleet.uniform import Uniform
from fedgen.learner import Base
from fedgen.model.tiny import Tiny
from fedgen.types import Choice, Part
from tests.conformance.grounds import CLIENTS, make_ground

UP, DOWN, QUERY = "mlp.up_proj.weight", "mlp.down_proj.weight", "self_attn.q_proj.weight"


def tiny(num_units):
    """Two layers of so many feed-forward units with two key-value groups, on vectors of 16."""
    return Tiny(hidden_size=16, num_heads=2, num_kv_heads=2, intermediate_size=num_units).load(0)


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny(8)


def ffn(*units, width=0.5):
    """A part with these feed-forward units of both layers, and everything else."""
    return Part(width, {f"ffn.{n}": torch.tensor(units) for n in range(2)})


def name(weight, layer=0):
    return f"model.layers.{layer}.{weight}"


def test_held_and_never_of_a_tensor_with_one_cut_dimension(base):
    coverage = Coverage(make_ground(base, Full(), extraction=Static(axes=("ffn",))))
    coverage.add(ffn(0, 1, 2, 3), 3)
    coverage.add(ffn(0, 1), 1)
    told = coverage.end_round()
    # Units 0 and 1 are held by all of a mass of 4, 2 and 3 by three quarters, the other half by nobody.
    assert told["units"] == {"ffn": [1, 1, 0.75, 0.75, 0, 0, 0, 0]}
    for tensor in (name(UP), name(DOWN), name(UP, 1)):
        assert told["tensors"][tensor] == {"held": (2 * 1 + 2 * 0.75) / 8, "never": 0.5}
    for tensor in (name(QUERY), "model.embed_tokens.weight", "model.norm.weight"):
        assert told["tensors"][tensor] == {"held": 1.0, "never": 0.0}
    assert told["tensors"].keys() == base.weights.keys()


def test_what_was_held_is_of_one_round_and_what_never_was_of_all(base):
    coverage = Coverage(make_ground(base, Full(), extraction=Static(axes=("ffn",))))
    coverage.add(ffn(0, 1, 2, 3), 3)
    coverage.end_round()
    coverage.add(ffn(3, 4), 5)
    told = coverage.end_round()
    assert told["units"] == {"ffn": [0, 0, 0, 1, 1, 0, 0, 0]}
    assert told["tensors"][name(UP)] == {"held": 0.25, "never": 0.375}
    assert coverage.never() == {"ffn": 0.375}


def test_a_round_without_any_update_tells_nothing(base):
    coverage = Coverage(make_ground(base, Full(), extraction=Static()))
    coverage.add(ffn(0), 1)
    coverage.end_round()
    assert coverage.end_round() == {}
    assert Coverage(make_ground(base, Full(), extraction=FullExtraction())).end_round() == {}


def test_held_and_never_of_a_tensor_with_two_cut_dimensions(base):
    coverage = Coverage(make_ground(base, Full(), extraction=Static(axes=("ffn", "residual"))))
    coverage.add(Part(0.5, ffn(0, 1, 2, 3).kept | {"residual": torch.arange(0, 8)}), 1)
    coverage.add(Part(0.5, ffn(2, 3, 4, 5).kept | {"residual": torch.arange(8, 12)}), 3)
    told = coverage.end_round()
    # Blocks of 4 × 8 and 4 × 4 entries out of 8 × 16 that do not meet.
    assert told["tensors"][name(UP)] == {"held": (1 * 0.5 * 0.5 + 3 * 0.5 * 0.25) / 4, "never": 1 - (32 + 16) / 128}
    assert told["tensors"][name(DOWN)] == told["tensors"][name(UP)]
    # A query projection has one of the two axes; the mass of its columns is 1/4, 3/4 and nothing.
    assert told["tensors"][name(QUERY)] == {"held": (8 * 0.25 + 4 * 0.75) / 16, "never": 0.25}
    assert coverage.never() == {"ffn": 0.25, "residual": 0.25, "ffn × residual": 0.625}


def test_whole_clients_hold_every_pair(base):
    coverage = Coverage(make_ground(base, Full(), extraction=Static(axes=("ffn", "residual"))))
    coverage.add(Part(), 2)
    told = coverage.end_round()
    assert set(map(str, told["tensors"].values())) == {str({"held": 1.0, "never": 0.0})}
    assert coverage.never() == {"ffn": 0.0, "residual": 0.0, "ffn × residual": 0.0}


def test_held_and_never_of_layers(base):
    coverage = Coverage(make_ground(base, Full(), extraction=Depth()))
    coverage.add(Part(0.5, {"layer": torch.tensor([0])}), 1)
    told = coverage.end_round()
    assert told["units"] == {"layer": [1, 0]}
    assert [told["tensors"][name(UP, layer)] for layer in (0, 1)] == [
        {"held": 1.0, "never": 0.0},
        {"held": 0.0, "never": 1.0},
    ]
    assert told["tensors"]["model.embed_tokens.weight"] == {"held": 1.0, "never": 0.0}
    coverage.add(Part(0.5, {"layer": torch.tensor([0])}), 3)
    coverage.add(Part(), 1)
    assert coverage.end_round()["tensors"][name(UP, 1)] == {"held": 0.25, "never": 0.0}
    assert coverage.never() == {"layer": 0.0}


def test_of_factors_those_are_told_that_travel(base):
    coverage = Coverage(make_ground(base, FrozenA(rank=4), extraction=Static(axes=("ffn", "rank"))))
    coverage.add(Part(0.5, ffn(0, 1, 2, 3).kept | {"rank": torch.tensor([0, 1])}), 1)
    told = coverage.end_round()
    up, down = (f"base_model.model.{name(w)}".replace(".weight", ".lora_B.weight") for w in (UP, DOWN))
    # The B of an opening projection lies on its outputs and the rank, that of a closing one on the rank alone.
    assert told["tensors"][up] == {"held": 0.25, "never": 0.75}
    assert told["tensors"][down] == {"held": 0.5, "never": 0.5}
    assert all(".lora_B." in tensor for tensor in told["tensors"])


def test_an_axis_is_told_in_32_stretches():
    coverage = Coverage(make_ground(tiny(64), Full(), extraction=Static(axes=("ffn",))))
    coverage.add(ffn(*range(33)), 1)
    # 16 pairs of units are held, of the next the first.
    assert coverage.end_round()["units"] == {"ffn": [1] * 16 + [0.5] + [0] * 15}


def test_stretches_that_do_not_come_out_even_are_means_of_what_is_in_them():
    coverage = Coverage(make_ground(tiny(33), Full(), extraction=Static(axes=("ffn",))))
    coverage.add(Part(0.5, {"ffn.0": torch.arange(32), "ffn.1": torch.tensor([0, 32])}), 1)
    # The last of the 32 holds units 31 and 32. Layers are averaged: of the first all but unit 32 is held.
    assert coverage.end_round()["units"] == {"ffn": [1.0] + [0.5] * 30 + [0.5]}


@pytest.mark.parametrize("extraction", [Rolling(axes=("ffn", "residual")), Random(), Depth(order="prefix")])
def test_a_journal_gives_what_living_through_it_gave(base, extraction):
    ground = make_ground(base, Lora(rank=2), extraction=extraction)
    lived, lines = Coverage(ground), []
    for round in (1, 2, 3):
        for place, client in enumerate(CLIENTS):
            part = ground.part(client, round, (0.25, 0.5, 1.0)[(place + round) % 3])
            if client == "cellar" and part.width == 1.0:
                continue  # has not been asked
            lived.last[client] = part
            refused = "non_finite" if (client, round) == ("barn", 2) else None
            lines.append(
                {"kind": "client", "client": client, "round": round, "width": part.width, "refused": refused}
                | {"num_examples": place + 1}
            )
            if refused is None:
                lived.add(part, place + 1)
        lived.end_round()
        lines.append({"kind": "round", "round": round})
    replayed = Coverage(ground)
    replayed.replay(lines)
    assert replayed.never() == lived.never()
    assert {c: str(p) for c, p in replayed.last.items()} == {c: str(p) for c, p in lived.last.items()}
    for coverage in (replayed, lived):
        coverage.add(ground.part("attic", 4, 0.25), 7)
    assert replayed.end_round() == lived.end_round()


def test_halves_that_nobody_ever_holds_are_warned_of(base):
    ground = make_ground(base, Full(), extraction=Static(), fleet=Levels(widths=(0.5, 0.25)), num_rounds=20)
    (text,) = warn_of_gaps(ground)
    assert text.startswith("50.0% of kv, 50.0% of ffn will never be trained in this run: the widest device holds 0.5")
    assert warn_of_gaps(make_ground(base, Full(), extraction=Static(), fleet=Levels(widths=(1.0, 0.25)))) == []


def test_windows_that_get_round_are_silent_and_a_run_too_short_for_them_is_not(base):
    fields = {"extraction": Rolling(stride=None), "fleet": Uniform(width=0.25)}
    assert warn_of_gaps(make_ground(base, Full(), num_rounds=4, **fields)) == []
    (text,) = warn_of_gaps(make_ground(base, Full(), num_rounds=3, **fields))
    assert text.startswith("25.0% of ffn will never be trained")


def test_units_that_do_not_matter_enough_are_warned_of(base):
    ground = make_ground(base, Full(), extraction=Importance(axes=("ffn",)), fleet=Uniform(width=0.25), num_rounds=9)
    ground = dataclasses.replace(ground, scores={f"ffn.{n}": torch.arange(8.0) for n in range(2)})
    (text,) = warn_of_gaps(ground)
    assert text.startswith("75.0% of ffn will never be trained")


def test_a_stride_that_cannot_reach_all_is_refused_beforehand(base):
    ground = make_ground(base, Full(), extraction=Rolling(axes=("ffn",), stride=4), fleet=Uniform(width=0.25))
    with pytest.raises(ConfigError, match=r"extraction\.stride is 4: windows of 2 out of 8 units .* never in a window"):
        warn_of_gaps(ground)


def test_two_dimensions_that_roll_in_phase_leave_a_hole():
    """FedRolex with both axes of a matrix: entries further apart than a window are never held together."""
    fields = {"extraction": Rolling(axes=("ffn", "residual")), "fleet": Uniform(width=0.25), "num_rounds": 40}
    ground = make_ground(tiny(16), Full(), **fields)
    coverage = Coverage(ground)
    for round in range(1, 41):
        coverage.reach(ground.part("attic", round, 0.25))
    # Windows of 4 out of 16 hold the pairs at a cyclic distance below 4: 7 of 16 diagonals.
    assert coverage.never() == {"residual": 0.0, "ffn": 0.0, "ffn × residual": 9 / 16}
    (text,) = warn_of_gaps(ground)
    assert text.startswith("56.2% of ffn × residual will never be trained")
    assert warn_of_gaps(make_ground(tiny(16), Full(), **{**fields, "extraction": Rolling(axes=("ffn",))})) == []


@dataclass(frozen=True)
class Scripted:
    """Devices of widths that are given, by client, or for a round besides."""

    widths: Mapping[str, float]
    later: Mapping[int, float]

    def devices(self, clients, round, seed):
        return {client: Device(self.later.get(round, self.widths.get(client, 0.0))) for client in clients}


def test_a_width_that_comes_late_is_looked_at_as_well(base):
    extraction = Rolling(axes=("ffn",), stride=4)
    wide = dict.fromkeys(CLIENTS, 1.0)
    assert warn_of_gaps(make_ground(base, Full(), extraction=extraction, fleet=Scripted(wide, {}), num_rounds=9)) == []
    late = make_ground(base, Full(), extraction=extraction, fleet=Scripted(wide, {8: 0.25}), num_rounds=9)
    with pytest.raises(ConfigError, match=r"extraction\.stride is 4"):
        warn_of_gaps(late)


def test_a_device_that_is_never_asked_reaches_nothing(base):
    fields = {"extraction": Static(), "cohort_size": 1, "num_rounds": 2}
    grounds = {
        wide: make_ground(base, Full(), fleet=Scripted({**dict.fromkeys(CLIENTS, 0.5), wide: 1.0}, {}), **fields)
        for wide in CLIENTS
    }
    asked = {client for round in (1, 2) for client in grounds["barn"].experiment.cohort(CLIENTS, round)}
    assert {wide for wide, ground in grounds.items() if warn_of_gaps(ground)} == set(CLIENTS) - asked
    assert 0 < len(asked) < 3


def test_nobody_who_takes_part_reaches_nothing(base):
    (text,) = warn_of_gaps(make_ground(base, Full(), extraction=Static(), fleet=Scripted({}, {})))
    assert text.startswith("100.0% of kv, 100.0% of ffn will never be trained in this run: the widest device holds 0 ")


def test_of_very_many_clients_so_many_are_looked_at_that_no_false_alarm_is_given(base, monkeypatch):
    monkeypatch.setattr(auditor, "MOST_TURNS", 80)
    fields = {"extraction": Random(axes=("ffn",)), "fleet": Levels(widths=(0.25, 0.125)), "num_rounds": 2}
    ground = dataclasses.replace(
        make_ground(base, Full(), **fields), clients=tuple(f"client-{n:03}" for n in range(200))
    )
    turns = []
    counting = dataclasses.replace(ground, experiment=dataclasses.replace(ground.experiment, extraction=Noting(turns)))
    assert warn_of_gaps(counting) == []
    assert 0 < len(turns) <= 2 * 80


@dataclass(frozen=True)
class Noting:
    """Random parts, of which it is noted for whom they are."""

    turns: list

    axes = ("ffn",)
    needs_scores = False

    def keep(self, choice):
        self.turns.append((choice.client, choice.round))
        return Random().keep(choice)

    def steps(self, width):
        return Random().steps(width)


# --- replies that come in rounds after they were asked for -----------------------------------------------------------


def test_windows_of_late_devices_get_round_and_what_comes_after_the_end_does_not_count(base):
    fields = {"extraction": Rolling(stride=None), "fleet": Uniform(width=0.5, delay=1)}
    # Asked in rounds 1 and 3, and the second tile comes in in round 4.
    assert warn_of_gaps(make_ground(base, Full(), num_rounds=4, **fields)) == []
    (text,) = warn_of_gaps(make_ground(base, Full(), num_rounds=3, **fields))
    assert text.startswith("50.0% of kv, 50.0% of ffn will never be trained in this run: the widest device holds 0.5")
    (text,) = warn_of_gaps(make_ground(base, Full(), num_rounds=1, **fields))
    assert text.startswith("100.0% of")


def test_a_width_that_is_refused_is_refused_even_if_its_reply_would_come_too_late(base):
    fields = {"extraction": Rolling(axes=("ffn",), stride=4), "fleet": Uniform(width=0.25, delay=9), "num_rounds": 2}
    with pytest.raises(ConfigError, match=r"extraction\.stride is 4"):
        warn_of_gaps(make_ground(base, Full(), **fields))


def test_a_journal_with_late_replies_gives_what_living_through_it_gave(base):
    ground = make_ground(base, Full(), extraction=Rolling(stride=3))
    lived, lines = Coverage(ground), []
    # attic is asked in rounds 1, 4, 6 and its replies come in in 3, 5 and 9; cellar is never late.
    turns = [("attic", 1, 3), ("cellar", 2, 2), ("attic", 4, 5), ("cellar", 5, 5), ("attic", 6, 9)]
    missed = {"attic": {1: 0, 4: 2, 6: 3}, "cellar": {2: 0, 5: 0}}
    for client, asked, due in turns:
        line = {"kind": "client", "client": client, "asked": asked, "round": due, "width": 0.25, "refused": None}
        lines.append(line)
        part = ground.part(client, asked, 0.25, missed[client][asked])
        assert part.kept["ffn.0"].tolist() == Rolling(stride=3).keep(
            Choice("ffn.0", 8, 2, asked - missed[client][asked], client)
        ).tolist()  # fmt: skip
        lived.last[client] = part
        if due <= 5:
            assert str(lived.come_in(line)) == str(part)
            lived.add(part, 1)
    replayed = Coverage(ground)
    replayed.replay(lines[:-1], lines[-1:])
    assert replayed.never() == lived.never()
    assert replayed.missed == lived.missed == Counter({"attic": 3})
    assert {c: str(p) for c, p in replayed.last.items()} == {c: str(p) for c, p in lived.last.items()}
