"""``fedgen status``: a fleet and its newest run as a table."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedgen.report import text
from fedgen.report.text import MISSING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

NUM_EVENTS = 5
_UNITS = {"d": 86400, "h": 3600, "min": 60}
_COLOURS = {
    "at work": "green", "answered": "green", "online": "green", "finished": "green", "resting": "yellow",
    "silent": "yellow", "failing": "red", "offline": "red", "unregistered": "red", "failed": "red", "bad": "red",
    "warn": "yellow",
}  # fmt: skip


def picture(state: Mapping[str, Any]) -> "RenderableType":
    """What a terminal shows.

    Args:
        state: as ``snapshot.Watch.look`` gives it.
    """
    from rich.console import Group
    from rich.text import Text

    lines: list[RenderableType] = [_run(state), Text(), _devices(state)]
    for event in state["events"][:NUM_EVENTS]:
        where = "" if event["round"] is None else f"round {event['round']}: "
        lines.append(Text(f"{where}{event['text']}", _COLOURS.get(event["word"], "")))
    return Group(*lines)


def _run(state: Mapping[str, Any]) -> "Text":
    from rich.text import Text

    run = state["run"]
    server = f"{state['server']}, {'up' if state['serving'] else 'no server runs here'}"
    if run is None:
        return Text(f"No run yet; server {server}")
    shown = Text(run["name"], "bold").append(f" {run['status']}", _COLOURS.get(run["status"], ""))
    shown.append(f", round {run['round']}" + (f" of {run['num_rounds']}" if run["num_rounds"] else ""), "")
    if run["status"] == "running":
        shown.append(f", {run['phase']}")
        shown.append(f", {run['answered']} of {run['asked']} answered" if run["asked"] else "")
    if run["quality"]:
        shown.append(f", {run['metric']} {text.number(run['quality'][-1][1])}")
    shown.append(f"; server {server}; last news {ago(state['when'], run['heard'])}")
    return shown.append(f"\n{run['message']}", "red") if run["message"] else shown


def _devices(state: Mapping[str, Any]) -> "RenderableType":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    heads = ("device", "state", "since", "heard", "round", "memory", "heat", "did not count")
    table = Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False)
    for device in state["devices"]:
        degrees, refused = device["temperature_c"], device["refused"]
        table.add_row(
            Text(device["name"] + ("" if device["known"] else " (not in the fleet)")),
            Text(device["state"], _COLOURS.get(device["state"], "")),
            ago(state["when"], device["since"]),
            ago(state["when"], device["heard"]),
            MISSING if device["round"] is None else str(device["round"]),
            text.num_bytes(device["memory_bytes"]),
            MISSING if degrees is None else f"{degrees:.0f} °C",
            Text(", ".join(f"{count} × {word}" for word, count in refused.items()) or "0", "red" if refused else ""),
        )
    return table


def ago(now: float, when: float | None) -> str:
    """How long ago something was.

    >>> ago(100.0, 88.0), ago(900.0, 88.0), ago(100.0, None)
    ('12 s ago', '14 min ago', '–')
    """
    if when is None:
        return MISSING
    passed = max(0.0, now - when)
    for unit, length in (("d", 2 * 86400), ("h", 2 * 3600), ("min", 60)):
        if passed >= length:
            return f"{passed / _UNITS[unit]:.0f} {unit} ago"
    return f"{passed:.0f} s ago"
