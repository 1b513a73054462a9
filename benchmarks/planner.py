"""Whether the planner keeps its word: predicted against measured peaks, and hard caps on memory.

Every configuration is trained in a process of its own, as `fedgen benchmark memory` does it, and the planner is asked
beforehand. The configurations here are among those from which its constants were taken; ``admission`` draws others.
"""

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from memory import measure

MB = 2**20
CAPS_MB = (512, 1024, 2048)
CAP_SEQUENCE = 256
FIXED = ["adapter=lora", "adapter.top_layers=1.0", "selection=all"]


class Probe(NamedTuple):
    """A configuration: overrides, tokens per example, whether freed memory goes back at once, share of the units."""

    overrides: list[str]
    sequence: int
    tight: bool
    width: float = 1.0


def probes() -> Iterator[Probe]:
    """Thirty-six configurations, which the planner's constants have seen."""
    shapes = [(64, 1, "[q_proj,v_proj]"), (192, 1, "all-linear"), (384, 1, "[q_proj,v_proj]"), (128, 4, "all-linear")]
    for (sequence, batch, targets), dtype in itertools.product(shapes, ("bfloat16", "int8", "gguf", "float32")):
        shared = [*FIXED, f"adapter.targets={targets}", f"model.dtype={dtype}"]
        yield Probe([*shared, f"client.batch_size={batch}"], sequence, False)
        yield Probe([*shared, f"client.batch_size={batch}", "model.checkpointing=true"], sequence, batch == 1)
    for sequence, dtype in itertools.product((64, 384), ("bfloat16", "gguf")):
        light = ["client=zeroth_order", "client.batch_size=1", "adapter.targets=[q_proj,v_proj]"]
        yield Probe([*FIXED, *light, f"model.dtype={dtype}"], sequence, False)


def main(as_json: bool) -> int:
    """Prints the figures; 1 if one is above its bound."""
    from fedgen.cli.figures import report

    rows, caps = [], []
    for found, row in itertools.chain(
        ((rows, row_of(probe)) for probe in probes()), ((caps, row) for cap in CAPS_MB for row in _under(cap))
    ):
        found.append(row)
        if not as_json:
            print(json.dumps(row), flush=True)
    # What was let in and did not come through.
    broken = [row for row in caps if row["planned"] and row["outcome"] != "fits"]
    figures = judged(rows)
    figures["planned for a cap, and not carried through"] = {"value": float(len(broken)), "bound": 0.0}
    return report("The planner's word, SmolLM2-135M", figures, as_json)


def judged(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Figures of configurations: how far off, and how many needed more than they were let in with."""
    # A process that ended early has no peak, and no number holds no bound.
    errors = [abs(row["predicted_mb"] - row["measured_mb"]) / row["measured_mb"] for row in rows]
    above = [row for row in rows if not row["measured_mb"] <= row["needed_mb"]]
    return {
        f"mean error of the peak, {len(rows)} configurations": {"value": sum(errors) / len(errors), "bound": 0.1},
        "configurations above what they would be let in with": {"value": float(len(above)), "bound": 0.0},
    }


def row_of(probe: Probe) -> dict[str, Any]:
    """What was predicted and what was measured."""
    planner = _planner(probe.overrides, probe.sequence)
    step = dataclasses.replace(next(planner.ladder()), width=probe.width)
    step = dataclasses.replace(step, rung=dataclasses.replace(step.rung, tight=probe.tight))
    forecast = _forecast(planner, step)
    told = measure(probe.overrides, probe.sequence, 2, tight=probe.tight, width=probe.width)
    return {
        "configuration": " ".join(override for override in probe.overrides if override not in FIXED),
        "sequence": probe.sequence,
        "tight": probe.tight,
        "predicted_mb": round(forecast.peak_bytes / MB),
        "needed_mb": round(forecast.needed_bytes / MB),
        "measured_mb": round(told["peak_mb"], 1) if "peak_mb" in told else math.nan,
    }


def _under(cap_mb: int) -> Iterator[dict[str, Any]]:
    """The experiment as it is, and as the planner would have it, in a process that may hold so much."""
    from fedgen.devices import Device

    start = [*FIXED, "adapter.targets=[q_proj,v_proj]", "client.batch_size=4"]
    told = measure(start, CAP_SEQUENCE, 1, cap_mb)
    yield {"cap_mb": cap_mb, "works as": "as configured", "planned": False, "outcome": told["outcome"]}
    planner = _planner(start, CAP_SEQUENCE)
    plan = planner.choose(Device(memory_bytes=int(cap_mb * MB)))
    if plan is None:
        yield {"cap_mb": cap_mb, "works as": "declines", "planned": False, "outcome": "declined"}
        return
    rung = plan.step.rung
    settings = {
        "model.dtype": rung.dtype,
        "model.checkpointing": rung.checkpointing,
        "model.chunk_tokens": rung.chunk_tokens,
    }
    settings |= (
        {} if rung.light else {"client.micro_batch": rung.micro_batch, "adapter.top_layers": plan.step.top_layers}
    )
    changed = [f"{key}={str(value).lower()}" for key, value in settings.items() if value is not None]
    light = ["client=zeroth_order"] if rung.light else []
    length = min(rung.max_length or CAP_SEQUENCE, CAP_SEQUENCE)
    told = measure([*start, *light, *changed], length, 1, cap_mb, tight=rung.tight)
    row = {"cap_mb": cap_mb, "works as": rung.name, "planned": True, "outcome": told["outcome"]}
    yield row | {"predicted_mb": round(plan.peak_bytes / MB), "measured_mb": round(told.get("peak_mb", float("nan")))}


def _planner(overrides: list[str], sequence: int) -> Any:  # noqa: ANN401 - a benchmark imports fedgen when it runs
    from fedgen.cli.train import compose
    from fedgen.config import check
    from fedgen.federation.course import planned

    planner = planned(check.build(compose(overrides)))
    return dataclasses.replace(planner, length=sequence)


def _forecast(planner: Any, step: Any) -> Any:  # noqa: ANN401
    from fedgen.devices import Device

    return planner.forecast(step, Device())
