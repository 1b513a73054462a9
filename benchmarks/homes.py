"""Four smart homes on four devices with links, memory and processor time of their own, and the same run in one process.

``python benchmarks/homes.py [KEY=VALUE ...] [--local RUN] [--to FOLDER]`` trains ``recipe=deployment`` on devices in a
``field`` and then, unless a finished run is named, in one process; says whether both left the same bytes; and writes
what each round took into `results.csv` and `seconds.svg`.
"""

import argparse
import csv
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deployed import Deployment
from field import Field, Link, missing
from yard import digests

FOLDER = Path(__file__).parents[1] / "simulations" / "deployment"
LINKS = {
    "home-0": Link(rate_mbit=20.0, memory_mib=2048),
    "home-1": Link(rate_mbit=8.0, memory_mib=2048),
    "home-2": Link(rate_mbit=20.0, delay_ms=40, memory_mib=2048),
    "home-3": Link(rate_mbit=20.0, loss=0.02, memory_mib=2048),
}
PARTS = ("compute", "wire", "wait")
COLOURS = ("#3c78b4", "#d9822b", "#c9ced6")
INK = "#3c4149"
SPLITS = ("new_utterances", "new_templates", "new_home")
QUALITY = tuple(split.replace("_", " ") for split in SPLITS)
HEAD = ("setting", "seed", "round", "device", *PARTS, "peak MB", "MB each way", "seconds", *QUALITY, "loss")


def main(arguments: Sequence[str]) -> int:
    """Trains both ways; 0 if they left the same bytes."""
    parser = argparse.ArgumentParser(prog="homes.py", description="Four smart homes on devices, and in one process.")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="as fedgen train takes them")
    parser.add_argument(
        "--local", type=Path, metavar="RUN", help="the same run in one process, if there is one already"
    )
    parser.add_argument("--to", type=Path, default=FOLDER, metavar="FOLDER", help="for the table and the picture")
    parser.add_argument("--runs", type=Path, default=Path(os.environ.get("FEDGEN_RUNS") or "runs"), metavar="FOLDER")
    given = parser.parse_args(arguments)
    if lacks := missing():
        parser.error(f"this cannot take place here: {lacks}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Field(LINKS) as field:
        words = {name: field.words(name) for name in ("server", *LINKS)}
        with Deployment(tuple(LINKS), field.server, words=words, runs=given.runs) as there:
            train = ("recipe=deployment", *given.words, f"federation.home={there.home}", "name=devices")
            devices = _newest(there, "devices", *train)
            local = given.local or _newest(there, "local", *given.words, "name=local")
    equal = digests(devices) == digests(local)
    rows = [*_rows("one process", local), *_rows("four devices", devices)]
    given.to.mkdir(parents=True, exist_ok=True)
    with (given.to / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, HEAD, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    _draw([row for row in rows if row["setting"] == "four devices" and "device" in row], given.to / "seconds.svg")
    print(f"{devices} and {local} left {'the same bytes' if equal else 'DIFFERENT bytes'}")
    return 0 if equal else 1


def _newest(there: Deployment, name: str, *words: str) -> Path:
    there.call("train", *words)
    return max(there.runs.glob(f"*-{name}*"), key=lambda path: path.stat().st_mtime)


def _rows(setting: str, run: Path) -> Iterator[dict[str, Any]]:
    """A row for each device in each round, and one for each round."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seed = next(line for line in (run / "experiment.yaml").read_text().splitlines() if line.startswith("seed: "))
    for line in lines:
        start = {"setting": setting, "seed": seed.removeprefix("seed: "), "round": line.get("round")}
        if line["kind"] == "client" and line["refused"] is None:
            parts = {part: round(line["seconds"][part], 3) for part in PARTS}
            size = {
                "peak MB": round(line["peak_memory_bytes"] / 2**20),
                "MB each way": round(line["bytes_up"] / 1e6, 3),
            }
            yield {**start, "device": line["client"], **parts, **size}
        elif line["kind"] == "round" and line["round"]:
            seconds = line["seconds"]["total"] - line["seconds"].get("evaluate", 0.0)
            yield {**start, "seconds": round(seconds, 2), **(_quality(line) if line is _last(lines) else {})}


def _last(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return [line for line in lines if line["kind"] == "round"][-1]


def _quality(line: dict[str, Any]) -> dict[str, float]:
    found = [round(line["evaluation"][split]["exact_match"], 4) for split in SPLITS]
    return {**dict(zip(QUALITY, found, strict=True)), "loss": round(line["evaluation"]["new_utterances"]["loss"], 5)}


def _draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Mean seconds of a round on each device, split."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    colours = {f"{kind}.color": INK for kind in ("text", "xtick", "ytick")} | {"axes.labelcolor": INK}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fedgen", "font.size": 10, **colours}):
        figure = Figure(figsize=(7.2, 2.4), layout="constrained")
        axes = figure.add_subplot()
        names = sorted({row["device"] for row in rows}, reverse=True)
        left = [0.0] * len(names)
        for part, colour in zip(PARTS, COLOURS, strict=True):
            own = {name: [row[part] for row in rows if row["device"] == name] for name in names}
            means = [sum(own[name]) / len(own[name]) for name in names]
            axes.barh([_about(name) for name in names], means, left=left, color=colour, label=part, height=0.6)
            left = [before + mean for before, mean in zip(left, means, strict=True)]
        axes.set_xlabel("seconds from request to reply, mean of the rounds")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0))
        figure.savefig(file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")), transparent=False)


def _about(name: str) -> str:
    link = LINKS[name]
    more = f", {link.delay_ms} ms" * bool(link.delay_ms) + f", {link.loss:.0%} lost" * bool(link.loss)
    return f"{name}: {link.rate_mbit:g} Mbit/s{more}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
