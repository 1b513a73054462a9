"""How a benchmark tells its figures: a table for people, one JSON object for machines, an exit code for both."""

import json
import math
from collections.abc import Mapping


def report(title: str, figures: Mapping[str, Mapping[str, float]], as_json: bool) -> int:
    """Prints figures with their upper bounds.

    Args:
        title: what was measured, above the table.
        figures: name → {value, bound}.
        as_json: print `{figure: {value, bound, holds}}` and nothing else.

    Returns:
        0 if every value is at most its bound, else 1; a value that is no number holds nothing.
    """
    judged = {name: {**figure, "holds": figure["value"] <= figure["bound"]} for name, figure in figures.items()}
    if as_json:
        # NaN is no JSON.
        print(
            json.dumps({name: {k: v if math.isfinite(v) else None for k, v in f.items()} for name, f in judged.items()})
        )
    else:
        _print_table(title, judged)
    return 0 if all(figure["holds"] for figure in judged.values()) else 1


def _print_table(title: str, judged: Mapping[str, Mapping[str, float]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("figure", "value", "at most", "holds", title=escape(title), box=box.SIMPLE_HEAD, pad_edge=False)
    for name, figure in judged.items():
        table.add_row(escape(name), f"{figure['value']:g}", f"{figure['bound']:g}", "yes" if figure["holds"] else "NO")
    Console().print(table)
