"""The verbs that look: ``fedgen doctor``, ``fedgen status``, ``fedgen dashboard``. None of them changes anything."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedgen.deployment.finding import Finding
    from fedgen.deployment.snapshot import Watch

VERBS = ("doctor", "status", "dashboard")
PORT = 8765
EVERY_S = 5.0


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verbs to the command line."""
    doctor = verbs.add_parser("doctor", help="say what is wrong on this machine, and what to do about it")
    doctor.add_argument(
        "place", nargs="?", type=Path, metavar="HOME|BUNDLE", help="a server's home or a device's bundle, if it has one"
    )
    doctor.add_argument(
        "--experiment", type=Path, metavar="RUN", help="a run, or its experiment.yaml: is its model here, does it fit"
    )
    doctor.add_argument("--json", action="store_true", help="print one object")
    status = verbs.add_parser("status", help="show the devices of a server's home and its newest run")
    _add_home(status)
    status.add_argument("--watch", action="store_true", help=f"look again every {EVERY_S:g} s until Ctrl-C")
    status.add_argument("--json", action="store_true", help="print one object; with --watch, one per line")
    dashboard = verbs.add_parser("dashboard", help="the same as a live page in the browser, on this machine only")
    _add_home(dashboard)
    dashboard.add_argument("--port", type=int, default=PORT, help=f"of the page (default {PORT}); 0 for any")


def dispatch(given: argparse.Namespace) -> int:
    """Carries out one of `VERBS`."""
    if given.verb == "doctor":
        return doctor(given.place, given.experiment, as_json=given.json)
    from fedgen.deployment.snapshot import Watch

    runs = given.runs or Path(os.environ.get("FEDGEN_RUNS") or "runs")
    watch = Watch(given.home, runs, given.run)
    if given.verb == "status":
        return status(given.home, watch, again=given.watch, as_json=given.json)
    return dashboard(watch, given.port)


def doctor(place: Path | None, experiment: Path | None, *, as_json: bool) -> int:
    """Prints what the probes found.

    Returns:
        0, or 1 if one of them failed.

    Raises:
        ConfigError: the place is neither a home nor a bundle, or there is no such experiment.
    """
    from fedgen.deployment.doctor import examine
    from fedgen.deployment.finding import worst

    plan = [] if experiment is None else [sys.executable, "-m", "fedgen.cli.fits"]
    kind, findings = examine(place, plan, experiment)
    if as_json:
        told = {"kind": kind, "ok": worst(findings) != "fail", "findings": [finding.as_json() for finding in findings]}
        print(json.dumps(told))
    else:
        _show(kind, findings)
    return 1 if worst(findings) == "fail" else 0


def status(home: Path, watch: "Watch", *, again: bool, as_json: bool) -> int:
    """Prints the state of a fleet, once or until it is interrupted.

    Raises:
        ConfigError: the home is none.
    """
    from rich.console import Console
    from rich.live import Live

    from fedgen.deployment.status import picture

    if as_json:
        print(json.dumps(_look(home, watch)), flush=True)
        while again:
            time.sleep(EVERY_S)
            print(json.dumps(_look(home, watch)), flush=True)
        return 0
    console = Console()
    if not again:
        console.print(picture(_look(home, watch)))
        return 0
    with Live(picture(_look(home, watch)), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(EVERY_S)
            live.update(picture(_look(home, watch)), refresh=True)


def dashboard(watch: "Watch", port: int) -> int:
    """Serves the live page until it is interrupted.

    Raises:
        FedgenError: the home is none, or the port is in use.
    """
    from fedgen.deployment.dashboard import serve

    serve(watch, port, lambda address: print(f"Look at it   {address}   (Ctrl-C ends it)", flush=True))
    return 0


def _look(home: Path, watch: "Watch") -> dict[str, Any]:
    """The state of a fleet, with what its server says if one runs."""
    from fedgen.deployment import nodes
    from fedgen.deployment.home import Home
    from fedgen.errors import RunError

    try:
        told = nodes.listed(Home.open(home))
    except RunError:
        return watch.look()
    return watch.look(told)


def _show(kind: str, findings: "Sequence[Finding]") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedgen.report.text import clean

    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table("", "", "found", "what to do", box=box.SIMPLE_HEAD, pad_edge=False)
    for finding in findings:
        word = Text(finding.word, colours[finding.word])
        table.add_row(Text(finding.probe), word, Text(clean(finding.got)), Text(clean(finding.advice)))
    console = Console()
    console.print(table)
    failed = sum(finding.word == "fail" for finding in findings)
    warned = sum(finding.word == "warn" for finding in findings)
    said = {"server": "This server", "device": "This device", "machine": "This machine"}[kind]
    if failed:
        console.print(f"{said} will not work until {failed} of these {'is' if failed == 1 else 'are'} mended.")
    else:
        console.print(f"{said} is fit" + (f", with {warned} to look at." if warned else "."))


def _add_home(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("home", type=Path, metavar="HOME", help="a server's home, as fedgen provision makes it")
    verb.add_argument("--runs", type=Path, metavar="FOLDER", help="where runs are (default $FEDGEN_RUNS, else runs)")
    verb.add_argument("--run", type=Path, metavar="RUN", help="the run to look at; the newest if not given")
