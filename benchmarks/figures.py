"""How a benchmark shows what it measured: a table, or one JSON object."""

import json


def show(title, figures, as_json):
    """Prints figures with their bounds; 1 if a bound does not hold.

    Args:
        title: what was measured.
        figures: name → {"value": number, "bound": upper bound}.
        as_json: print ``{name: {value, bound, holds}}`` and nothing else.
    """
    shown = {name: {**figure, "holds": figure["value"] <= figure["bound"]} for name, figure in figures.items()}
    if as_json:
        print(json.dumps(shown))
    else:
        width = max(map(len, shown))
        print(title)
        for name, figure in shown.items():
            verdict = "holds" if figure["holds"] else "DOES NOT HOLD"
            print(f"  {name:<{width}}  {figure['value']:>10}  at most {figure['bound']:>10}  {verdict}")
    return 0 if all(figure["holds"] for figure in shown.values()) else 1
