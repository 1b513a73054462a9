"""What a round costs on devices besides training: three on this machine, over TLS, with 2 MB each way.

A plain Flower app (``plain_flower``), whose devices do nothing, runs on the same server and the same devices in turn
with fedgen, with Flower's own interval of polling for both. Of a round everything counts but what its slowest device
trains. First rounds are left out: they gather the devices, and load the model. Each figure is the median of several
rounds; on a machine that does other things as well it says little.

What a device spends on a round besides training is processor time of the process that Flower starts for a message, and
the rest of its worker's turn.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from deployed import Deployment, cpu_s

CLIENTS = ("owner-0", "owner-1", "owner-2")
NUM_ROUNDS, REPEATS = 4, 2
ROUND_BOUND_S = 12.0
OVER_PLAIN_BOUND = 1.25
DEVICE_BOUND_S = 1.5
POLL = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1.0"}
"""Flower's own; fedgen's is shorter."""

OVERRIDES = (
    "model=tiny", "model.hidden_size=144", "adapter=full", "export=merged", "data=synthetic", "data.num_owners=3",
    "data.num_train=16", "client.num_steps=1", f"num_rounds={NUM_ROUNDS}", "num_evaluated=8",
    "num_evaluated_per_round=8",
)  # fmt: skip
"""All weights of a small model travel."""

CONNECTION = "fedgen"
LOOK_S, SETTLE_S = 0.05, 0.5
SHORTEST_S = 0.3
"""What lives no longer was not started for a message."""

PYPROJECT = """\
[project]
name = "plain-flower"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedgen"

[tool.flwr.app.components]
serverapp = "plain_flower:server"
clientapp = "plain_flower:client"

[tool.flwr.app.config]
payload-bytes = {payload}
num-nodes = {nodes}
num-rounds = {rounds}
result = "{result}"
"""


def main(as_json: bool) -> int:
    """Prints the figures; 1 if one is above its bound."""
    from fedgen.cli.figures import report

    ours, plain, devices, payloads = [], [], [], []
    with Deployment(CLIENTS, more=POLL) as there, watched(there.folder) as lives:
        for number in range(REPEATS):
            lines, told = fedgen_rounds(there, f"fedgen-{number}")
            ours += overheads(lines)
            devices += over_training(lives, lines, told)
            payloads += [line["bytes_down"] for line in lines if line["kind"] == "client"]
            plain += plain_rounds(there, min(payloads))
    if not as_json:
        print(f"fedgen, rounds but for training: {_all(ours)}")
        print(f"plain Flower app, rounds: {_all(plain)}")
        print(f"a device's rounds but for training: {_all(devices)}")
        print(f"{min(payloads)} bytes each way for each device")
    figures = {
        "round, all but training, s": {"value": round(median(ours), 2), "bound": ROUND_BOUND_S},
        "round, over a plain Flower app's": {
            "value": round(median(ours) / median(plain), 2),
            "bound": OVER_PLAIN_BOUND,
        },
        "device's later rounds, over its training, s": {"value": round(median(devices), 2), "bound": DEVICE_BOUND_S},
    }
    return report("A deployment on this machine, 3 devices, 2 MB each way", figures, as_json)


def fedgen_rounds(there: Deployment, name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The journal of one run, and what its devices told of themselves."""
    there.call("train", *OVERRIDES, "federation=superlink", f"federation.home={there.home}", f"name={name}")
    [folder] = there.runs.glob(f"*-{name}")
    files = [(folder / file).read_text().splitlines() for file in ("metrics.jsonl", "observed.jsonl")]
    lines, told = ([json.loads(line) for line in file] for file in files)
    return lines, [line for line in told if line["kind"] == "device"]


def overheads(lines: list[dict[str, Any]]) -> list[float]:
    """Seconds of each round but the first, without training and evaluation."""
    found = []
    for line in lines:
        if line["kind"] == "round" and line["round"] > 1:
            asked = [one for one in lines if one["kind"] == "client" and one["round"] == line["round"]]
            training = max(one["seconds"]["compute"] for one in asked)
            found.append(line["seconds"]["total"] - line["seconds"].get("evaluate", 0.0) - training)
    return found


def plain_rounds(there: Deployment, payload_bytes: int) -> list[float]:
    """Seconds of each round but the first of the plain app.

    Raises:
        RuntimeError: it failed.
    """
    from fedgen.federation.shield import Control

    with tempfile.TemporaryDirectory(prefix="fedgen-") as folder:
        app, result = Path(folder, "app"), Path(folder, "result.json")
        app.mkdir()
        shutil.copy(Path(__file__).with_name("plain_flower.py"), app)
        text = PYPROJECT.format(payload=payload_bytes, nodes=len(CLIENTS), rounds=NUM_ROUNDS, result=result)
        (app / "pyproject.toml").write_text(text)
        overrides = Path(folder, "run.toml")
        overrides.write_text("")
        control = Control(there.home / "flwr", CONNECTION)
        run_id = control.submit(app, overrides, {})
        there.until(result.exists, f"the plain app's run {run_id} is over")
        ends = json.loads(result.read_text())
    return [after - before for before, after in itertools.pairwise(ends[1:])]


def over_training(
    lives: Mapping[str, Sequence[float]], lines: Sequence[dict[str, Any]], told: Sequence[dict[str, Any]]
) -> list[float]:
    """Seconds that each device spent on each round but the first, without its training.

    Args:
        lives: device → processor time of the process that Flower started for each message, in order.
        lines: the journal of the run that is just over.
        told: what the devices said of themselves with each answer.
    """
    found = []
    for client, seconds in lives.items():
        own = [line for line in lines if line["kind"] == "client" and line["client"] == client]
        answers = [line["seconds_to_answer"] for line in told if line["client"] == client]
        each = zip(seconds[-len(own) :], answers[-len(own) :], own, strict=True)
        found += [shim + answer - line["seconds"]["compute"] for shim, answer, line in list(each)[1:]]
    return found


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[dict[str, list[float]]]:
    """What the processes take that Flower starts on the devices below a folder, one for each message.

    Device → seconds of the processor of each that has ended, in order; filled while the block lasts.
    """
    lives: dict[str, list[float]] = {}
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(folder, lives, over), daemon=True)
    watcher.start()
    try:
        yield lives
    finally:
        over.set()
        watcher.join()


def _watch(folder: Path, lives: dict[str, list[float]], over: threading.Event) -> None:
    first: dict[str, float] = {}
    alive: dict[str, tuple[str, float]] = {}
    while not over.wait(LOOK_S):
        now, there = time.monotonic(), {name for name in os.listdir("/proc") if name.isdigit()}
        for pid in [*alive.keys() - there]:
            client, seconds = alive.pop(pid)
            if now - first[pid] > SHORTEST_S:
                lives.setdefault(client, []).append(seconds)
        first = {pid: first.get(pid, now) for pid in there}
        for pid in there:
            if pid in alive:
                alive[pid] = alive[pid][0], max(alive[pid][1], cpu_s(int(pid)))
            # For a moment a new process still has the name of the one that started it.
            elif now - first[pid] < SETTLE_S and (client := _client_of(Path("/proc", pid), folder)):
                alive[pid] = client, 0.0


def _client_of(process: Path, folder: Path) -> str:
    """On which device a process works on a message; empty if it does not."""
    with contextlib.suppress(OSError):
        if b"flwr-clientapp" in (process / "cmdline").read_bytes():
            home = re.search(rb"FLWR_HOME=([^\0]+)", (process / "environ").read_bytes())
            if home and Path(os.fsdecode(home[1])).is_relative_to(folder):
                return Path(os.fsdecode(home[1])).relative_to(folder).parts[0]
    return ""


def _all(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values) + " s"
