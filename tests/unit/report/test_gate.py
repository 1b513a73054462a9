from pathlib import Path

import pytest

from fedgen.report import gate
from fedgen.report.records import Records


def run(*gates):
    """Records of a run whose rounds, counted from 1, had these gates; None for a round without."""
    lines = [{"kind": "round", "round": at} | ({} if g is None else {"gate": g}) for at, g in enumerate(gates, 1)]
    return Records(Path("run"), {}, "", {}, rounds=tuple(lines))


def plan(width, loss, clients, decision, to=None):
    return {"width": width, "loss": loss, "clients": clients, "decision": decision, "to": to}


FIRST = {"limit": 1.0, "base_loss": 3.0, "plans": [plan(0.25, 7.5, 3, "refused"), plan(0.5, 5.0, 2, "enlarged", 1.0)]}
LAST = {"limit": 1.0, "base_loss": 2.5, "plans": [plan(0.25, 3.0, 4, "kept"), plan(0.125, 6.0, 1, "refused")]}


def test_plans_are_of_the_last_round_and_totals_of_the_run():
    summary = gate.summary_of_gate(run(FIRST, None, LAST, None))
    assert (summary["round"], summary["limit"], summary["base_loss"]) == (3, 1.0, 2.5)
    assert summary["plans"] == [
        {"width": 0.25, "loss": 3.0, "num_clients": 4, "above": 0.5, "decision": "kept", "to": None},
        {"width": 0.125, "loss": 6.0, "num_clients": 1, "above": 3.5, "decision": "refused", "to": None},
    ]
    assert summary["totals"] == {
        "kept": {"num_plans": 1, "num_clients": 4},
        "enlarged": {"num_plans": 1, "num_clients": 2},
        "refused": {"num_plans": 2, "num_clients": 4},
    }
    assert summary["refusals"] == [
        {"round": 1, "width": 0.25, "loss": 7.5, "num_clients": 3, "limit": 1.0, "base_loss": 3.0},
        {"round": 3, "width": 0.125, "loss": 6.0, "num_clients": 1, "limit": 1.0, "base_loss": 2.5},
    ]


def test_in_words():
    summary = gate.summary_of_gate(run(FIRST, LAST))
    assert gate.incidents(summary)[0] == {
        "round": 1,
        "text": "the transfer gate refused width 25 % (3 clients): its loss was 7.500, the whole model's 3.000, "
        "the limit 1.000",
    }
    said = gate.sentence(summary)
    assert "The whole model's was 2.500 in round 2, and the limit 1.000." in said
    assert said.endswith("Over the whole run: 1 plan enlarged (2 turns) and 2 plans refused (4 turns).")


def test_a_part_without_a_loss_has_a_reason_for_that():
    silent = {**plan(0.25, None, 1, "refused"), "reason": "it can say nothing"}
    summary = gate.summary_of_gate(run({**FIRST, "plans": [silent]}))
    assert summary["plans"][0]["reason"] == summary["refusals"][0]["reason"] == "it can say nothing"
    assert gate.incidents(summary)[0]["text"] == ("the transfer gate refused width 25 % (1 client): it can say nothing")


@pytest.mark.parametrize("said", [None, 3, [], "open"])
def test_no_gate_is_nothing(said):
    assert gate.summary_of_gate(run(said)) is None
    assert gate.sentence(None) == ""
    assert gate.incidents(None) == []


@pytest.mark.parametrize("plans", [None, 3, {}, [], [None, 3, "x"]])
def test_a_gate_without_plans_stopped_nothing(plans):
    summary = gate.summary_of_gate(run({"plans": plans}))
    assert summary["plans"] == summary["refusals"] == []
    assert {total["num_plans"] for total in summary["totals"].values()} == {0}
    assert "0 plans enlarged (0 turns)" in gate.sentence(summary)


def test_what_is_unknown_is_none():
    summary = gate.summary_of_gate(run({"limit": "x", "plans": [{}, {"decision": "refused", "loss": float("nan")}]}))
    assert summary["plans"][0] == {
        "width": None, "loss": None, "num_clients": None, "above": None, "decision": "unknown", "to": None,
    }  # fmt: skip
    assert summary["totals"]["unknown"] == {"num_plans": 1, "num_clients": 0}
    assert gate.incidents(summary)[0]["text"].startswith("the transfer gate refused width – (0 clients)")
