"""Memory of one device while it trains SmolLM2-135M: after its imports, and at most above that.

Every configuration runs in a process of its own (``device_process``), started from nothing. MB are resident MB of 2^20
bytes, as the kernel counts them. The figures hold for batches of one example of 256 tokens, all of which but the first
are answer; with fewer answers less is needed.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

SEQUENCE = 256
IMPORT_BOUND_MB = 300
QV = ["adapter=lora", "adapter.targets=[q_proj,v_proj]", "adapter.top_layers=1.0", "client.batch_size=1"]
"""LoRA of rank 8 beside the queries and values of all layers, one example per step."""


class Case(NamedTuple):
    """A configuration, and how many MB above the imports it may take; None if nothing is promised of it."""

    name: str
    overrides: list[str]
    bound_mb: int | None = None
    tight: bool = False


BF16, INT8, GGUF = (["model.dtype=bfloat16"], ["model.dtype=int8"], ["model.dtype=gguf"])
RECOMPUTED = ["model.checkpointing=true"]
LIGHT = ["client=zeroth_order"]
FULL = ["adapter=full", "export=merged", "client.optimizer=sgd", "client.batch_size=1", "client.max_grad_norm=null"]

CASES = (
    Case("bf16", [*QV, *BF16]),
    Case("bf16, logits at once", [*QV, *BF16, "model.chunk_tokens=null"]),
    Case("bf16, upper half trained", [*QV, *BF16, "adapter.top_layers=0.5"]),
    Case("bf16, checkpointing", [*QV, *BF16, *RECOMPUTED], 450),
    Case("bf16, checkpointing, frozen A", ["adapter=frozen_a", *QV[1:], *BF16, *RECOMPUTED]),
    Case("bf16, checkpointing, tight", [*QV, *BF16, *RECOMPUTED], None, True),
    Case("int8", [*QV, *INT8]),
    Case("int8, checkpointing", [*QV, *INT8, *RECOMPUTED]),
    Case("4-bit", [*QV, *GGUF]),
    Case("4-bit, checkpointing", [*QV, *GGUF, *RECOMPUTED], 300),
    Case("4-bit, checkpointing, tight", [*QV, *GGUF, *RECOMPUTED], 300, True),
    Case("bf16, zeroth order", [*LIGHT, *QV, *BF16]),
    Case("4-bit, zeroth order", [*LIGHT, *QV, *GGUF], 230),
    Case("fp32, checkpointing", [*QV, "model.dtype=float32", *RECOMPUTED]),
    Case("all weights, sgd, checkpointing", [*FULL, *RECOMPUTED]),
    Case("all weights, sgd, checkpointing, fused", [*FULL, *RECOMPUTED, "client.fused=true"]),
)

SLOWER = {
    "chunked loss": ("bf16", "bf16, logits at once", 1.1),
    "int8": ("int8", "bf16", 2.5),
    "4-bit": ("4-bit", "bf16", 2.5),
}
"""What a step may take at most over another one's."""


def main(as_json: bool) -> int:
    """Prints the figures; 1 if one is above its bound."""
    from fedgen.cli.figures import report

    told = {}
    for case in CASES:
        told[case.name] = measure(case.overrides, SEQUENCE, tight=case.tight)
        if not as_json:
            print(f"{case.name}: {details(told[case.name])}", flush=True)
    # A process that ended early has no figures, and no number holds no bound.
    imports = max(one.get("import_mb", math.nan) for one in told.values())
    figures = {"imports of a device": {"value": round(imports, 1), "bound": float(IMPORT_BOUND_MB)}}
    for case in CASES:
        if case.bound_mb is not None:
            value = round(told[case.name].get("above_mb", math.nan), 1)
            figures[f"{case.name}, peak above the imports"] = {"value": value, "bound": float(case.bound_mb)}
    for name, (case, other, bound) in SLOWER.items():
        ratio = _quickest(told[case]) / _quickest(told[other])
        figures[f"{name}, step over that of {other}"] = {"value": round(ratio, 2), "bound": bound}
    return report(f"Memory of a device in MB, SmolLM2-135M, batch 1, {SEQUENCE} tokens", figures, as_json)


def _quickest(told: dict[str, Any]) -> float:
    return float(told.get("fastest_s", math.nan))


def measure(
    overrides: list[str],
    sequence: int = SEQUENCE,
    steps: int = 3,
    cap_mb: int | None = None,
    *,
    num_answer: int | None = None,
    tight: bool = False,
    width: float = 1.0,
) -> dict[str, Any]:
    """What a device's process needs for a configuration.

    Args:
        overrides: as on the command line of ``fedgen train``.
        sequence: tokens per example; the batch is `client.batch_size` of these.
        steps: optimiser steps that are timed.
        cap_mb: memory that the process may have, its imports included; None for no limit.
        num_answer: tokens of an example that are answer; None for all but the first.
        tight: freed memory goes back at once.
        width: share of the units of every cut axis that the device gets.

    Returns:
        outcome: `fits`; `refused`, if the process said that it has too little memory, or stopped for another reason
        that stands in `message`; `killed`, if a signal ended it or it had more than the cap. Unless it ended early,
        everything that `device_process.carry_out` tells as well, `above_mb`, the peak above the imports, and
        `maxrss_mb`, the peak of its whole life as its parent learns it, or the parent's own if that is higher.

    Raises:
        ConfigError: the overrides fit nothing.
    """
    from fedgen.cli.train import compose

    job = {"config": compose(overrides), "sequence": sequence, "num_answer": num_answer}
    job |= {"num_steps": steps, "cap_mb": cap_mb, "tight": tight, "width": width}
    code, maximum_mb, out, error = run(json.dumps(job))
    told: dict[str, Any] = {"maxrss_mb": maximum_mb}
    if code == 0:
        told |= json.loads(out.splitlines()[-1])
        told["above_mb"] = told["peak_mb"] - told["import_mb"]
        fits = cap_mb is None or told["peak_mb"] <= cap_mb
        return told | {"outcome": "fits" if fits else "killed"}
    if code < 0:
        return told | {"outcome": "killed", "message": signal.Signals(-code).name}
    return told | {"outcome": "refused", "message": (error.strip().splitlines() or ["no message"])[-1]}


def run(job: str) -> tuple[int, float, str, str]:
    """Exit code of a device's process, the most MB that it had as its parent learns it, and what it wrote."""
    import fedgen

    program = str(Path(__file__).with_name("device_process.py"))
    environment = os.environ | {"PYTHONPATH": str(Path(fedgen.__file__).parents[1])}
    with (
        tempfile.TemporaryFile("w+") as given,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        given.write(job)
        given.seek(0)
        process = subprocess.Popen([sys.executable, program], stdin=given, stdout=out, stderr=err, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return process.returncode, usage.ru_maxrss / 1024, out.read(), err.read()


def details(told: dict[str, Any]) -> str:
    """What stands behind a figure, in a line."""
    if "peak_mb" not in told:
        return f"{told['outcome']}, {told['message']}"
    return (
        f"{told['import_mb']:.0f} MB imported, {told['loaded_mb']:.0f} loaded, at most {told['peak_mb']:.0f} "
        f"({told['maxrss_mb']:.0f} by getrusage), {told['step_s']:.2f} s per step, "
        f"{told['num_trained']:,} parameters, loss {told['loss_start']:.2f} → {told['loss_end']:.2f}"
    )
