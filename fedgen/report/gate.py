"""What the transfer gate decided about the parts of the model that were to be sent."""

from collections.abc import Mapping

from fedgen.report import text
from fedgen.report.records import Number, Record, Records, finite

REFUSED = "refused"


def summary_of_gate(records: Records) -> Record | None:
    """All that the gate did, as `fedgen.report.summarise` tells it; None if no round had one."""
    rounds = [(record["round"], record["gate"]) for record in records.rounds if isinstance(record.get("gate"), Mapping)]
    if not rounds:
        return None
    totals = {word: {"num_plans": 0, "num_clients": 0} for word in ("kept", "enlarged", REFUSED)}
    refusals = []
    for at, gate in rounds:
        for plan in _plans(gate):
            total = totals.setdefault(plan["decision"], {"num_plans": 0, "num_clients": 0})
            total["num_plans"] += 1
            total["num_clients"] += plan["num_clients"] or 0
            if plan["decision"] == REFUSED:
                told = ("width", "loss", "num_clients", "reason")
                refusals.append({"round": at, **{key: plan[key] for key in told if key in plan}, **_measure(gate)})
    at, gate = rounds[-1]
    return {"round": at, **_measure(gate), "plans": _plans(gate), "totals": totals, "refusals": refusals}


def sentence(summary: Record | None) -> str:
    """What the gate measured against, and how much it stopped."""
    if summary is None:
        return ""
    totals = summary["totals"]
    stopped = [
        f"{text.plural(totals[word]['num_plans'], 'plan')} {word} ({text.plural(totals[word]['num_clients'], 'turn')})"
        for word in ("enlarged", REFUSED)
    ]
    return (
        "Before a part of the model is sent, its loss on public examples tells whether training it can help. "
        f"The whole model's was {text.number(summary['base_loss'])} in round {summary['round']}, and the limit "
        f"{text.number(summary['limit'])}. Over the whole run: {' and '.join(stopped)}."
    )


def incidents(summary: Record | None) -> list[Record]:
    """What was refused, in the words of the page."""
    return [
        {
            "round": entry["round"],
            "text": f"the transfer gate refused width {text.percent(entry['width'])}"
            f" ({text.plural(entry['num_clients'] or 0, 'client')}): {_why(entry)}",
        }
        for entry in (summary["refusals"] if summary else ())
    ]


def _why(entry: Record) -> str:
    if "reason" in entry:
        return str(entry["reason"])
    return (
        f"its loss was {text.number(entry['loss'])}, the whole model's {text.number(entry['base_loss'])}, "
        f"the limit {text.number(entry['limit'])}"
    )


def _measure(gate: Mapping[str, object]) -> Record:
    return {"limit": finite(gate.get("limit")), "base_loss": finite(gate.get("base_loss"))}


def _plans(gate: Mapping[str, object]) -> list[Record]:
    plans = gate.get("plans")
    base = finite(gate.get("base_loss"))
    return [_plan(plan, base) for plan in plans if isinstance(plan, Mapping)] if isinstance(plans, list) else []


def _plan(plan: Mapping[str, object], base: Number | None) -> Record:
    decision, loss = plan.get("decision"), finite(plan.get("loss"))
    return {
        "width": finite(plan.get("width")),
        "loss": loss,
        "num_clients": finite(plan.get("clients")),
        "above": None if loss is None or base is None else loss - base,
        "decision": decision if isinstance(decision, str) else "unknown",
        "to": finite(plan.get("to")),
    } | ({"reason": plan["reason"]} if isinstance(plan.get("reason"), str) else {})
