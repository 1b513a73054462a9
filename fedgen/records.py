"""What the loop tells the journal and the display: one plain mapping for each thing that happened."""

import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from fedgen.experiment import Experiment
from fedgen.messages import Reply
from fedgen.types import Record


def start(experiment: Experiment, folder: str, clients: Sequence[str], first_round: int) -> Record:
    """A run begins, or goes on with its `first_round`."""
    return {
        "kind": "start",
        "name": experiment.name,
        "round": first_round,
        "num_rounds": experiment.num_rounds,
        "clients": list(clients),
        "cohort_size": experiment.cohort_size,
        "metric": experiment.evaluation.metric,
        "folder": folder,
    }


def client(reply: Reply, refused: str | None, elapsed_s: float, bytes_down: int, wire_s: float) -> Record:
    """A reply has come.

    Args:
        reply: what came.
        refused: why it does not count; None if it does.
        elapsed_s: from the request to the reply.
        bytes_down: size of the request's payload.
        wire_s: packing and unpacking on the server.
    """
    compute = reply.metrics.get("seconds_compute", 0.0)
    wire = wire_s + reply.metrics.get("seconds_wire", 0.0)
    return {
        "kind": "client",
        "round": reply.round,
        "asked": reply.round,
        "client": reply.client,
        "num_examples": reply.num_examples,
        "num_selected": int(reply.metrics.get("num_selected", 0)),
        "num_unscored": int(reply.metrics.get("num_unscored", 0)),
        "num_left_out": int(reply.metrics.get("num_left_out", 0)),
        "num_not_held": int(reply.metrics.get("num_not_held", 0)),
        "loss": reply.metrics.get("loss"),
        "num_steps": reply.metrics.get("num_steps"),
        "num_tokens": reply.metrics.get("num_tokens"),
        "bytes_down": bytes_down,
        "bytes_up": reply.payload.num_bytes if reply.payload else 0,
        "seconds": {"compute": compute, "wire": wire, "wait": max(0.0, elapsed_s - compute - wire)},
        "seconds_select": reply.metrics.get("seconds_select", 0.0),
        "peak_memory_bytes": int(reply.metrics.get("peak_memory_bytes", 0)),
        "held_bytes": int(reply.metrics.get("held_bytes", 0)),
        "train_bytes": int(reply.metrics.get("train_bytes", 0)),
        "refused": refused,
    }


def plan(kind: str, rung: str, peak_bytes: int) -> Record:
    """What a client's line says of a device whose work was planned.

    Args:
        kind: what the device is.
        rung: how it works.
        peak_bytes: what its process will hold at most, by the planner's word.
    """
    return {"kind_of_device": kind, "rung": rung, "predicted_peak_bytes": peak_bytes}


def round(experiment: Experiment, number: int, clients: Sequence[Record]) -> Record:
    """A round is over: sums over the clients whose replies came in; the loss is their mean, weighted by examples."""
    counted = [record for record in clients if record["refused"] is None and record["loss"] is not None]
    weight = sum(record["num_examples"] for record in counted)
    return {
        "kind": "round",
        "round": number,
        "num_clients": len(clients),
        "num_refused": sum(record["refused"] is not None for record in clients),
        "num_late": sum(record["asked"] < number for record in clients),
        "loss": sum(r["loss"] * r["num_examples"] for r in counted) / weight if weight else None,
        "bytes_down": sum(record["bytes_down"] for record in clients),
        "bytes_up": sum(record["bytes_up"] for record in clients),
        "seconds": {part: sum(r["seconds"][part] for r in clients) for part in ("compute", "wire", "wait")},
        "peak_memory_bytes": peak_memory_bytes(),
        "metric": experiment.evaluation.metric,
        "higher_is_better": experiment.evaluation.higher_is_better,
        "evaluation": {},
    }


def warning(number: int, text: str) -> Record:
    """Something that the user should know."""
    return {"kind": "warning", "round": number, "text": text}


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage tells a process that another one has started may be that one's peak.
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
