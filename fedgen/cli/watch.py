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
    doctor.set_defaults(carry_out=_doctor)
    status = verbs.add_parser("status", help="show the devices of a server's home and its newest run")
    _add_home(status)
    status.add_argument("--watch", action="store_true", help=f"look again every {EVERY_S:g} s until Ctrl-C")
    status.add_argument("--json", action="store_true", help="print one object; with --watch, one per line")
    status.set_defaults(carry_out=lambda given: _status(given, _watch(given)))
    dashboard = verbs.add_parser("dashboard", help="the same as a live page in the browser, on this machine only")
    _add_home(dashboard)
    dashboard.add_argument("--port", type=int, default=PORT, help=f"of the page (default {PORT}); 0 for any")
    dashboard.set_defaults(carry_out=lambda given: _dashboard(given, _watch(given)))


def _doctor(given: argparse.Namespace) -> int:
    from fedgen.deployment.doctor import examine
    from fedgen.deployment.finding import worst

    kind, findings = examine(given.place, [sys.executable, "-m", "fedgen.cli.fits"], given.experiment)
    if given.json:
        told = {"kind": kind, "ok": worst(findings) != "fail", "findings": [finding.as_json() for finding in findings]}
        print(json.dumps(told))
    else:
        _show(kind, findings)
    return 1 if worst(findings) == "fail" else 0


def _status(given: argparse.Namespace, watch: "Watch") -> int:
    from rich.console import Console
    from rich.live import Live

    from fedgen.deployment.status import picture

    if given.json:
        print(json.dumps(_look(given.home, watch)), flush=True)
        while given.watch:
            time.sleep(EVERY_S)
            print(json.dumps(_look(given.home, watch)), flush=True)
        return 0
    console = Console()
    if not given.watch:
        console.print(picture(_look(given.home, watch)))
        return 0
    with Live(picture(_look(given.home, watch)), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(EVERY_S)
            live.update(picture(_look(given.home, watch)), refresh=True)


def _dashboard(given: argparse.Namespace, watch: "Watch") -> int:
    from fedgen.deployment.dashboard import serve

    serve(watch, given.port, lambda address: print(f"Look at it   {address}   (Ctrl-C ends it)", flush=True))
    return 0


def _watch(given: argparse.Namespace) -> "Watch":
    from fedgen.deployment.snapshot import Watch

    return Watch(given.home, given.runs or Path(os.environ.get("FEDGEN_RUNS") or "runs"), given.run)


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
