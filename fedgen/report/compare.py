"""Several runs side by side: one table and one plot, with runs that differ only in their seed taken together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from fedgen import disk
from fedgen.report import series, text
from fedgen.report.charts import Curve, Plot, curves, is_share
from fedgen.report.page import render
from fedgen.report.records import Number, Record, Records, expand, read
from fedgen.report.series import Followed, Points
from fedgen.report.summary import summary_of

_NOT_COMPARED = ("name", "seed")
MEASURES = ("before", "after", "best", "loss", "bytes", "seconds", "refused")


@dataclass(frozen=True)
class Row:
    """One line of a comparison: a run, or the runs that differ from each other in nothing but their seed.

    Attributes:
        run: name of the run's folder, or of the first run and how many there are.
        seeds: the seed of each run.
        differing: value of each configuration key in which the compared runs differ.
        values: measure → its value in each run, None where it is unknown. `before`, `after` and `best` are of the
            followed number, `loss` is the last mean training loss, `bytes` goes both ways, `seconds` is by the clock.
        followed: what the runs are judged by; None before any evaluation.
        curves: quality over rounds of each run.
    """

    run: str
    seeds: tuple[str, ...]
    differing: Mapping[str, str]
    values: Mapping[str, tuple[Number | None, ...]]
    followed: Followed | None
    curves: tuple[Points, ...]

    @property
    def label(self) -> str:
        """What tells this row from the others."""
        return ", ".join(f"{key}={value}" for key, value in self.differing.items()) or self.run

    def middle(self, measure: str) -> Number | None:
        """Mean of a measure over the runs where it is known; None if it is known nowhere."""
        known = [value for value in self.values[measure] if value is not None]
        return mean(known) if known else None

    def deviation(self, measure: str) -> Number | None:
        """Sample standard deviation over the runs; None with fewer than two of them."""
        known = [value for value in self.values[measure] if value is not None]
        return stdev(known) if len(known) > 1 else None


def comparison_rows(folders: Sequence[Path]) -> list[Row]:
    """The rows of a comparison, in the order of the folders.

    Args:
        folders: run folders, and sweeps (folders of run folders).

    Returns:
        One row per run, or per group of runs whose configurations are equal but for the seed.

    Raises:
        RunError: a folder is missing or no run folder, or one of its files is damaged.
    """
    runs = [read(folder) for folder in expand(folders)]
    settings = [_settings(records.config) for records in runs]
    groups: dict[str, list[int]] = {}
    for index, known in enumerate(settings):
        alike = {key: value for key, value in known.items() if key not in _NOT_COMPARED}
        groups.setdefault(json.dumps(alike, sort_keys=True), []).append(index)
    keys = dict.fromkeys(key for known in settings for key in known if key not in _NOT_COMPARED)
    differing = [key for key in keys if len({known.get(key, text.MISSING) for known in settings}) > 1]
    return [
        _row(
            [runs[index] for index in members],
            tuple(settings[index].get("seed", text.MISSING) for index in members),
            {key: settings[members[0]].get(key, text.MISSING) for key in differing},
        )
        for members in groups.values()
    ]


def comparison_table(folders: Sequence[Path]) -> tuple[list[str], list[list[str]]]:
    """The comparison as text.

    Returns:
        The headers, and one list of cells per row. Cells hold no control characters; `mean ± sd` over seeds.

    Raises:
        RunError: as `comparison_rows`.
    """
    return _table(comparison_rows(folders))


def compare(folders: Sequence[Path], out: Path) -> Path:
    """Writes the comparison as a page that stands alone, with one table and one plot.

    Args:
        folders: run folders, and sweeps (folders of run folders).
        out: the file to write; it is replaced as a whole or not at all.

    Returns:
        `out`.

    Raises:
        RunError: as `comparison_rows`, or `out` cannot be written.
    """
    rows = comparison_rows(folders)
    headers, cells = _table(rows)
    num_runs = sum(len(row.seeds) for row in rows)
    page = render(
        "comparison.html.jinja",
        title=f"{text.plural(num_runs, 'run')} compared",
        headers=headers,
        cells=cells,
        num_names=len(headers) - len(MEASURES),
        best=_best(rows),
        followed=_shared(rows),
        plot=_plot(rows),
        grouped=num_runs > len(rows),
    )
    disk.write_atomic(out, page)
    return out


def _row(runs: Sequence[Records], seeds: tuple[str, ...], differing: Mapping[str, str]) -> Row:
    follow = next((found for records in runs if (found := series.followed(records)) is not None), None)
    measured = [_measures(summary_of(records)) for records in runs]
    more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    return Row(
        run=runs[0].folder.resolve().name + more,
        seeds=seeds,
        differing=differing,
        values={measure: tuple(values[measure] for values in measured) for measure in MEASURES},
        followed=follow,
        curves=tuple(series.quality(records, follow.split, follow.metric) if follow else [] for records in runs),
    )


def _measures(summary: Record) -> dict[str, Number | None]:
    totals = summary["totals"]
    sent = [value for value in (totals["bytes_down"], totals["bytes_up"]) if value is not None]
    quality = {key: summary[key]["value"] if summary[key] else None for key in ("before", "after", "best")}
    return {
        **quality,
        "loss": summary["loss"],
        "bytes": sum(sent) if sent else None,
        "seconds": totals["seconds"]["total"],
        "refused": totals["num_refused"],
    }


def _settings(value: object, key: str = "") -> dict[str, str]:
    """Dotted key → value of a configuration; an option stands as the last part of its module, under its stage's key.

    >>> _settings({"seed": 1, "wire": {"_target_": "fedgen.wire.dense.Dense"}})
    {'seed': '1', 'wire': 'dense'}
    """
    if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        value = {str(index): entry for index, entry in enumerate(value)}
    if not isinstance(value, Mapping):
        return {key: ", ".join(map(str, value)) if isinstance(value, list) else str(value)}
    settings: dict[str, str] = {}
    for name, entry in value.items():
        if name == "_target_":
            parts = str(entry).split(".")
            settings |= {key: parts[-2] if parts[0] == "fedgen" and len(parts) > 1 else parts[-1]} if key else {}
        else:
            settings |= _settings(entry, f"{key}.{name}" if key else str(name))
    return settings


def _table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    seeded = len({seed for row in rows for seed in row.seeds}) > 1
    differing = list(rows[0].differing) if rows else []
    headers = ["run", *differing, *(["seed"] if seeded else []), *MEASURES]
    cells = [
        [
            row.run,
            *row.differing.values(),
            *([", ".join(row.seeds)] if seeded else []),
            *(_cell(row, measure) for measure in MEASURES),
        ]
        for row in rows
    ]
    return [text.clean(header) for header in headers], [[text.clean(cell) for cell in line] for line in cells]


def _cell(row: Row, measure: str) -> str:
    middle, deviation = row.middle(measure), row.deviation(measure)
    if measure == "refused":
        return text.MISSING if middle is None else f"{middle:g}"
    if measure == "bytes":
        return text.num_bytes(middle)
    if measure == "seconds":
        return text.seconds(middle)
    return text.number(middle) + (f" ± {text.number(deviation)}" if deviation is not None else "")


def _shared(rows: Sequence[Row]) -> Followed | None:
    """What all rows are judged by; None if they differ, or if none was ever measured."""
    kinds = {row.followed for row in rows if row.followed is not None}
    return kinds.pop() if len(kinds) == 1 else None


def _best(rows: Sequence[Row]) -> int | None:
    """Index of the row with the best quality after training; None if the rows cannot be ranked."""
    follow = _shared(rows)
    ranked = [(index, middle) for index, row in enumerate(rows) if (middle := row.middle("after")) is not None]
    if follow is None or len(ranked) < 2:
        return None
    return max(ranked, key=lambda pair: pair[1] if follow.higher_is_better else -pair[1])[0]


def _plot(rows: Sequence[Row]) -> Plot | None:
    """Quality per round of the rows that follow what the first measured row follows."""
    follow = next((row.followed for row in rows if row.followed is not None), None)
    drawn = [row for row in rows if row.followed == follow and follow is not None]
    if follow is None:
        return None
    lines = [_curve(row) for row in drawn]
    share = is_share([point for line in lines for point in line.points], higher_is_better=follow.higher_is_better)
    chart = curves(lines, share=share, large=True)
    left_out = len(rows) - len(drawn)
    note = f"{left_out} left out: judged by another number, or never measured" if left_out else ""
    return None if chart is None else Plot(f"{text.words(follow.metric)} on {text.words(follow.split)}", chart, note)


def _curve(row: Row) -> Curve:
    """Mean over seeds, with a band of one standard deviation to either side where there is more than one."""
    values: dict[int, list[Number]] = {}
    for points in row.curves:
        for at, value in points:
            values.setdefault(at, []).append(value)
    rounds = sorted(values)
    middles = [mean(values[at]) for at in rounds]
    points = list(zip(rounds, middles, strict=True))
    if len(row.curves) < 2:
        return Curve(row.label, points)
    widths = [stdev(values[at]) if len(values[at]) > 1 else 0.0 for at in rounds]
    low = [middle - width for middle, width in zip(middles, widths, strict=True)]
    high = [middle + width for middle, width in zip(middles, widths, strict=True)]
    return Curve(row.label, points, low, high)
