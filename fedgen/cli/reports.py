"""``fedgen report``: one run's page, or several runs in one table and one plot. Imports neither torch nor Hydra."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedgen import report
from fedgen.errors import RunError

if TYPE_CHECKING:
    from rich.table import Table

UNBOUNDED = 10_000
"""Columns of a screen on which any table has room."""


def show(paths: Sequence[Path], out: Path | None) -> int:
    """Writes the report of one run, or the comparison of several; says where it is.

    Raises:
        RunError: a path is no run folder and no sweep, or the page cannot be written.
    """
    if len(paths) == 1 and (paths[0] / "experiment.yaml").exists() and out is None:
        print(report.write(paths[0]))
        return 0
    if out is None:
        # A sweep gets its page inside; several runs get it beside the first.
        out = paths[0] / "report.html" if len(paths) == 1 else paths[0].resolve().parent / "comparison.html"
    try:
        page = report.compare(list(paths), out)
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror or error}; name another place with --out") from error
    table(paths)
    print(page)
    return 0


def table(paths: Sequence[Path]) -> None:
    """Prints the comparison of runs: a row for each, or a column where their rows are wider than the screen."""
    from rich.console import Console
    from rich.measure import Measurement

    headers, rows = report.comparison_table(list(paths))
    console, drawn = Console(), _drawn(headers, rows)
    wanted = Measurement.get(console, console.options.update_width(UNBOUNDED), drawn).maximum
    if wanted > console.width and len(rows) < len(headers):
        first, *others = zip(headers, *rows, strict=True)
        drawn = _drawn(first, others)
    console.print(drawn)


def _drawn(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    from rich import box
    from rich.markup import escape
    from rich.table import Column, Table

    # What is too long goes on below: cut off, two runs of a sweep have one name.
    columns = (Column(escape(header), overflow="fold") for header in headers)
    drawn = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        drawn.add_row(*(escape(cell) for cell in row))
    return drawn
