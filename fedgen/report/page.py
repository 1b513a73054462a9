"""The page of one run: report.html, which stands alone, and report.json beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgen import disk
from fedgen.report import coverage, gate, seeding, series, text
from fedgen.report.charts import Chart, Curve, Plot, curves, is_share, spread, stack
from fedgen.report.devices import has_late, has_parts
from fedgen.report.records import Number, Record, Records, finite, read
from fedgen.report.series import SECONDS, Followed, Points
from fedgen.report.summary import summary_of

PAGE_FILE, SUMMARY_FILE = "report.html", "report.json"


def write(folder: Path) -> Path:
    """Writes report.html and report.json into a run folder; each is replaced as a whole or not at all.

    Args:
        folder: the run folder; the run may still be going on.

    Returns:
        The path of report.html.

    Raises:
        RunError: the folder is not a run folder, is damaged, or cannot be written.
    """
    records = read(folder)
    summary = summary_of(records)
    page = _page(records, summary)
    disk.write_atomic(folder / SUMMARY_FILE, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    disk.write_atomic(folder / PAGE_FILE, page)
    return folder / PAGE_FILE


def render(template: str, **values: object) -> bytes:
    """A page from one of the templates, in UTF-8; every value is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fedgen.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    for formatter in (text.number, text.percent, text.num_bytes, text.seconds, text.words, text.clean):
        environment.filters[formatter.__name__] = formatter
    # Names come from clients and may hold half of a surrogate pair, which has no UTF-8 form.
    return environment.get_template(template).render(values).encode("utf-8", "replace")


def _page(records: Records, summary: Record) -> bytes:
    follow = summary["followed"]
    clients, owners = _people(summary)
    return render(
        "run.html.jinja",
        title=summary["name"],
        run=summary,
        sentence=_sentence(summary),
        tiles=_tiles(summary),
        plots={
            "learning": _learning(records),
            "clients": _spreads(records),
            "coverage": coverage.plots(records),
            "costs": _costs(records),
        },
        measured=follow["metric"] if follow else "",
        clients=clients,
        owners=owners,
        has_parts=has_parts(summary["device_classes"]),
        has_late=has_late(summary["device_classes"]),
        seeding_sentence=seeding.sentence(summary["seeding"]),
        gate_sentence=gate.sentence(summary["gate"]),
        coverage_sentence=coverage.sentence(summary["coverage"]),
        uncovered=coverage.uncovered(summary["coverage"]),
        incidents=_incidents(summary),
        parts=[part for part in SECONDS if any(row["seconds"][part] is not None for row in summary["history"])],
        splits=list(dict.fromkeys(row["split"] for row in summary["quality"])),
        metrics=list(dict.fromkeys(row["metric"] for row in summary["quality"])),
        quality={(row["split"], row["metric"]): row for row in summary["quality"]},
        config_text=records.config_text,
        environment=_flat(summary["environment"]),
    )


def _sentence(summary: Record) -> str:
    rounds, people = text.plural(summary["rounds_done"], "round"), text.plural(len(summary["clients"]), "client")
    if summary["rounds_done"] == 0:
        return "No round of training has finished yet."
    said = f"{people} trained one model together for {rounds}, without sharing their data"
    follow, before, after = summary["followed"], summary["before"], summary["after"]
    if after is None:
        return f"{said}."
    judged = f"{text.words(follow['metric'])} on {text.words(follow['split'])}"
    if before is None:
        return f"{said}; {judged} is now {text.number(after['value'])}."
    return f"{said}; {judged} went from {text.number(before['value'])} to {text.number(after['value'])}."


def _tiles(summary: Record) -> list[Record]:
    """The followed number on every split."""
    follow = summary["followed"]
    if follow is None:
        return []
    rows = [row for row in summary["quality"] if row["metric"] == follow["metric"]]
    return [
        {**row, "change": text.change(row["before"], row["after"]), "improved": _improved(row, follow)} for row in rows
    ]


def _improved(row: Record, follow: Record) -> bool | None:
    """Whether a number got better; None if it did not move or one side is unknown."""
    before, after = row["before"], row["after"]
    if before is None or after is None or before == after:
        return None
    return bool((after > before) == follow["higher_is_better"])


def _learning(records: Records) -> list[Plot]:
    plots = []
    follow = series.followed(records)
    if follow is not None:
        splits = dict.fromkeys(split for record in records.rounds for split in series.evaluation(record))
        drawn = [
            Curve(text.words(split), series.quality(records, split, follow.metric), sparse=split != follow.split)
            for split in sorted(splits, key=lambda split: split != follow.split)
        ]
        everything = [point for curve in drawn for point in curve.points]
        share = is_share(everything, higher_is_better=follow.higher_is_better)
        plots.append(_plot(text.words(follow.metric), curves(drawn, share=share), _how_measured(records, follow)))
    drawn = [Curve("training, mean of the clients", series.of_rounds(records, "loss"))]
    if follow is not None and follow.metric != "loss":
        measured = series.quality(records, follow.split, "loss")
        drawn += [Curve(text.words(follow.split), measured)] if measured else []
    plots.append(_plot("loss", curves(drawn), "nats per token"))
    diversity = series.of_rounds(records, "gradient_diversity")
    if diversity:
        note = "sum of squared norms of the changes over the squared norm of their sum; lower: they agree more"
        plots.append(_plot("gradient diversity", curves([Curve("of the clients' changes", diversity)]), note))
    return [plot for plot in plots if plot is not None]


def _how_measured(records: Records, follow: Followed) -> str:
    """Which way is better, and whether rounds are measured on fewer examples than the two ends of the run."""
    note = "higher is better" if follow.higher_is_better else "lower is better"
    whole, few = (finite(records.config.get(key)) for key in ("num_evaluated", "num_evaluated_per_round"))
    if whole is not None and few is not None and few < whole:
        note += f"; first and last on up to {whole} examples of a split, the rounds between on up to {few} of one"
    return note


def _spreads(records: Records) -> list[Plot]:
    plots = []
    follow = series.followed(records)
    if follow is not None:
        owners = series.quality_by_owner(records, follow.split, follow.metric)
        share = is_share(_all(owners), higher_is_better=follow.higher_is_better)
        note = f"{text.words(follow.split)}, each owner's examples apart"
        plots.append(_plot(f"{text.words(follow.metric)} per owner", spread(owners, share=share), note))
    losses = series.of_clients(records, "loss")
    plots.append(_plot("training loss per client", spread(losses, colour=1), "in the rounds in which it took part"))
    return [plot for plot in plots if plot is not None]


def _costs(records: Records) -> list[Plot]:
    sent = {"to clients": series.of_rounds(records, "bytes_down"), "back": series.of_rounds(records, "bytes_up")}
    spent = {part: series.seconds_of_rounds(records, part) for part in SECONDS}
    peaks = [Curve("process that runs the rounds", series.of_rounds(records, "peak_memory_bytes"))]
    largest = _largest_by_round(series.of_clients(records, "peak_memory_bytes"))
    peaks += [Curve("largest client", largest)] if largest else []
    turns = series.seconds_by_client(records, "compute")
    note = "compute, wire and wait are sums over clients, who may work side by side"
    plots = [
        _plot("bytes per round", stack(sent, unit="bytes")),
        _plot(
            "seconds per round",
            stack(spent, unit="seconds", marked=("by the clock", series.seconds_of_rounds(records, "total"))),
            note,
        ),
        _plot("compute per client", spread(turns, colour=2, unit="seconds"), "seconds of training in each round"),
        _plot("peak memory", curves(peaks, unit="bytes")),
    ]
    return [plot for plot in plots if plot is not None]


def _plot(title: str, chart: Chart | None, note: str = "") -> Plot | None:
    return None if chart is None else Plot(title, chart, note)


def _largest_by_round(clients: Mapping[str, Points]) -> Points:
    largest: dict[int, Number] = {}
    for at, value in _all(clients):
        largest[at] = max(value, largest.get(at, value))
    return sorted(largest.items())


def _all(points: Mapping[str, Points]) -> Points:
    return [point for values in points.values() for point in values]


def _people(summary: Record) -> tuple[list[Record], list[Record]]:
    """Rows for clients, with their own examples' quality where they are owners, and for the other owners."""
    owners = {row["owner"]: row for row in summary["owners"]}
    values = [value for row in owners.values() for value in (row["before"], row["after"]) if value is not None]
    low, high = min([*values, 0]), max([*values, 1 if max(values, default=0) <= 1 else 0])

    def place(value: Number | None) -> float | None:
        return None if value is None else round(100 * (value - low) / (high - low), 1)

    def row(name: str, turns: Record | None) -> Record:
        before, after = (owners.get(name, {}).get(key) for key in ("before", "after"))
        ends = [end for end in (place(before), place(after)) if end is not None]
        bar = (
            {"before": place(before), "after": place(after), "left": min(ends), "width": max(ends) - min(ends)}
            if ends
            else None
        )
        return {"name": name, "turns": turns, "before": before, "after": after, "range": bar}

    names = {turns["client"] for turns in summary["clients"]}
    clients = [row(turns["client"], turns) for turns in summary["clients"]]
    return clients, [row(name, None) for name in owners if name not in names]


def _incidents(summary: Record) -> list[Record]:
    refused = [
        {"round": entry["round"], "text": f"{entry['client']} was refused: {entry['reason'].replace('_', ' ')}"}
        for entry in summary["refusals"]
    ]
    warned = [{"round": entry["round"], "text": entry["text"] or ""} for entry in summary["warnings"]]
    return sorted(refused + gate.incidents(summary["gate"]) + warned, key=lambda entry: entry["round"])


def _flat(value: Any, key: str = "") -> list[tuple[str, str]]:  # noqa: ANN401 - any JSON value
    """Nested values as (dotted key, text) rows."""
    if isinstance(value, Mapping):
        return [row for name, entry in value.items() for row in _flat(entry, f"{key}.{name}" if key else str(name))]
    if isinstance(value, list):
        return [(key, ", ".join(map(str, value)))]
    return [(key, "–" if value is None else str(value))]
