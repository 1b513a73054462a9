"""Which parts of the model the clients held: stretches of every kind of axis over rounds, and what nobody has held yet.

A run whose clients hold everything says nothing about it, and then there is nothing here either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fedgen.report import text
from fedgen.report.charts import MOST_LINES, Chart, Curve, Plot, curves
from fedgen.report.heat import heat_map
from fedgen.report.records import Number, Record, Records, finite
from fedgen.report.series import Points
from fedgen.report.text import natural

Stretches = dict[int, list[Number | None]]
"""Round → held share of each of the equal stretches of an axis, from its first unit on; None where it is unknown."""

_AXES = {
    "ffn": "feed-forward units",
    "kv": "attention heads",
    "layer": "layers",
    "rank": "adapter ranks",
    "residual": "residual stream",
    "vocab": "vocabulary",
}
_HOW_TO_READ = "share of the clients' weight, from the first unit (0 %) to the last; mean over axes of this kind"
_LEFT = "share of the entries of each kind of tensor that no client has held so far"
_MOST_GROUPS = 8
_SHARES = ("held", "never")


@dataclass(frozen=True)
class Group:
    """Tensors whose names differ only in their numbers: those of one kind in all layers.

    Attributes:
        name: what their names have in common.
        num_tensors: how many they are.
        held: (round, share of the round's weight that held an entry), mean over the tensors.
        never: (round, share of the entries that nobody has held so far), mean over the tensors.
        worst: the same of the tensor in which it is largest.
    """

    name: str
    num_tensors: int
    held: Points
    never: Points
    worst: Points


def stretches(records: Records) -> dict[str, Stretches]:
    """Kind of axis → what was held of it in every round.

    A round that divides an axis otherwise than the newest round does is left out.
    """
    kinds: dict[str, Stretches] = {}
    for record in records.rounds:
        for kind, values in _part(record, "units").items():
            if isinstance(values, list) and values:
                kinds.setdefault(str(kind), {})[record["round"]] = [finite(value) for value in values]
    return {kind: _alike(kinds[kind]) for kind in sorted(kinds, key=natural)}


def groups(records: Records) -> list[Group]:
    """The groups of tensors, those with the most entries that nobody has held first."""
    shares: dict[str, dict[int, list[Mapping[str, object]]]] = {}
    tensors: dict[str, set[str]] = {}
    for record in records.rounds:
        for name, share in _part(record, "tensors").items():
            if isinstance(share, Mapping):
                kind = _without_numbers(str(name))
                tensors.setdefault(kind, set()).add(str(name))
                shares.setdefault(kind, {}).setdefault(record["round"], []).append(share)
    labels = _labels(tensors)
    found = [_group(labels[kind], len(tensors[kind]), shares[kind]) for kind in shares]
    return sorted(found, key=_most_left)


def plots(records: Records) -> list[Plot]:
    """A heat map of every kind of axis, and what nobody has held yet."""
    maps = [(_AXES.get(kind, text.words(kind)), heat_map(rows)) for kind, rows in stretches(records).items()]
    drawn = [Plot(f"{name} held", chart, _HOW_TO_READ) for name, chart in maps if chart is not None]
    left = never_chart(groups(records))
    return drawn + ([Plot("entries nobody has trained yet", left, _LEFT)] if left is not None else [])


def sentence(summary: Record | None) -> str:
    """How much of the model was held, and how much never was."""
    if summary is None or summary["never"] is None:
        return ""
    told = f"In round {summary['round']} an entry was held by {text.percent(summary['held'])} of the clients' weight"
    if summary["never"] == 0:
        return f"{told}, and by then every entry had been held by some client."
    return f"{told}, and {text.percent(summary['never'])} of the entries had never been held; means over all tensors."


def uncovered(summary: Record | None) -> list[Record]:
    """The groups of tensors with the most entries that nobody has held, the largest first; none without any."""
    return [row for row in summary["groups"] if row["never"]][:_MOST_GROUPS] if summary else []


def never_chart(found: Sequence[Group]) -> Chart | None:
    """Share of the entries that nobody has held, over rounds: a line for each course that it takes.

    Groups that lie on the same axes take the same course and share a line; those that were held from the first round
    have none, and of too many lines the highest are drawn.

    Args:
        found: the groups, in the order in which their lines are wanted.
    """
    courses: dict[tuple[tuple[int, Number], ...], list[str]] = {}
    for group in found:
        if any(value for _, value in group.never):
            courses.setdefault(tuple((at, round(value, 6)) for at, value in group.never), []).append(group.name)
    drawn = [
        Curve(names[0] + (f" and {len(names) - 1} alike" if len(names) > 1 else ""), list(course))
        for course, names in courses.items()
    ]
    return curves(drawn[:MOST_LINES], share=True)


def summary_of_coverage(records: Records) -> Record | None:
    """Where the run stands, as `fedgen.report.summarise` tells it; None if no round says what was held."""
    found = groups(records)
    covered = [record["round"] for record in records.rounds if _part(record, "units") or _part(record, "tensors")]
    if not found and not stretches(records):
        return None
    rows = [
        {
            "tensors": group.name,
            "num_tensors": group.num_tensors,
            "held": _newest(group.held),
            "never": _newest(group.never),
            "never_max": _newest(group.worst),
        }
        for group in found
    ]
    return {
        "round": covered[-1],
        "held": _mean_of_groups(rows, "held"),
        "never": _mean_of_groups(rows, "never"),
        "groups": rows,
    }


def _part(record: Record, key: str) -> Mapping[object, object]:
    """One of the two parts of what a round says about coverage; empty if it says nothing."""
    said = record.get("coverage")
    part = said.get(key) if isinstance(said, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _alike(rounds: Stretches) -> Stretches:
    num_stretches = len(rounds[max(rounds)])
    return {at: values for at, values in rounds.items() if len(values) == num_stretches}


def _group(name: str, num_tensors: int, shares: Mapping[int, list[Mapping[str, object]]]) -> Group:
    held, never, worst = [], [], []
    for at, of_round in shares.items():
        helds, nevers = ([n for share in of_round if (n := finite(share.get(key))) is not None] for key in _SHARES)
        if helds:
            held.append((at, fmean(helds)))
        if nevers:
            never.append((at, fmean(nevers)))
            worst.append((at, max(nevers)))
    return Group(name, num_tensors, held, never, worst)


def _most_left(group: Group) -> tuple[Number, Number, Number, list[tuple[int, int, str]]]:
    left, worst, most = _newest(group.never), _newest(group.worst), max((value for _, value in group.never), default=0)
    return -(left or 0), -(worst or 0), -most, natural(group.name)


def _newest(points: Points) -> Number | None:
    return points[-1][1] if points else None


def _mean_of_groups(rows: Sequence[Record], key: str) -> float | None:
    """Mean over all tensors."""
    known = [row for row in rows if row[key] is not None]
    return fmean([row[key] for row in known], [row["num_tensors"] for row in known]) if known else None


def _without_numbers(name: str) -> str:
    """A tensor's name with a star in place of every part that is a number.

    >>> _without_numbers("model.layers.12.mlp.down_proj.weight")
    'model.layers.*.mlp.down_proj.weight'
    """
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def _labels(kinds: Mapping[str, object]) -> dict[str, str]:
    """What follows the last number in a name, which says enough where no other kind ends alike; else the whole name."""
    ends = {kind: kind.rpartition("*.")[2] for kind in kinds}
    common = list(ends.values())
    return {kind: end if end and common.count(end) == 1 else kind for kind, end in ends.items()}
