"""``fedgen plan``: whether a model fits a device, and how it would be trained there, before anything is sent."""

import dataclasses
import json
import re
from collections.abc import Sequence

from fedgen.cli.train import compose
from fedgen.config import check
from fedgen.devices import Device
from fedgen.errors import ConfigError
from fedgen.planner import Forecast, Planner

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def plan(overrides: Sequence[str], memory: str | None, *, measure: bool, as_json: bool) -> int:
    """Prints how devices would work.

    Args:
        overrides: as `fedgen train` takes them.
        memory: what a device's training process may hold (900M, 1.5GiB); None asks the fleet of the experiment.
        measure: time the reference step on this machine besides.
        as_json: print one JSON object and nothing else.

    Returns:
        0 if every device has something to do, else 1.

    Raises:
        ConfigError: the experiment or the memory cannot be read, or no device tells its memory.
    """
    given = None if memory is None else num_bytes(memory)
    experiment = check.build(compose(overrides))
    # Everything from here on needs the model.
    from fedgen.federation.course import planned

    planner = planned(experiment)
    if given is not None:
        devices = {"this": Device(kind="given", memory_bytes=given)}
    else:
        devices = experiment.fleet.devices(planner.ground.clients, 1, experiment.seed)
    told = {device.kind: device for device in devices.values() if device.memory_bytes is not None}
    if not told:
        raise ConfigError(
            "no device of this fleet tells its memory, so there is nothing to plan; give --memory 900M, or take "
            "fleet=raspberry_pi"
        )
    found = {kind: planner.choose(device) for kind, device in sorted(told.items())}
    seconds = planner.reference_seconds() if measure else None
    if as_json:
        print(json.dumps(_as_json(planner, told, found, seconds)))
    else:
        _show(planner, told, found, seconds)
    return 0 if all(found.values()) else 1


def num_bytes(text: str) -> int:
    """Bytes from `900M`, `1.5GiB` or a plain number.

    Raises:
        ConfigError: the text is none of these.

    >>> num_bytes("900M"), num_bytes("1.5 GiB")
    (900000000, 1610612736)
    """
    match = re.fullmatch(r"([0-9.]+)\s*([kmg]?i?)b?", text.strip().lower())
    try:
        number = float(match[1]) * UNITS[match[2]] if match else 0.0
    except (ValueError, KeyError):
        number = 0.0
    if number < 1:
        raise ConfigError(f"cannot read {text!r} as memory; expected a number with a unit, as in 900M or 1.5GiB")
    return int(number)


def _show(planner: Planner, told: dict[str, Device], found: dict[str, Forecast | None], seconds: float | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    heads = ("device", "may use", "works as", "peak", "weights", "a round", "up")
    table = Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False)
    for kind, device in told.items():
        plan = found[kind]
        table.add_row(kind, _mb(device.memory_bytes), *(_row(plan) if plan else ("declines", *[""] * 4)))
    console.print(table)
    ladder = Table("step of the ladder", "peak", "saves", "what it does", box=box.SIMPLE_HEAD, pad_edge=False)
    before: int | None = None
    for step in planner.ladder():
        peak = planner.forecast(step, Device()).peak_bytes
        ladder.add_row(step.rung.name, _mb(peak), "" if before is None else _mb(before - peak), step.saves)
        before = peak
    console.print(ladder)
    if seconds is not None:
        console.print(f"The reference step takes {seconds:.2f} s on this machine (fleet.step_seconds).")


def _row(plan: Forecast) -> tuple[str, ...]:
    seconds = "" if plan.seconds is None else f"{plan.seconds:,.0f} s"
    return plan.step.rung.name, _mb(plan.peak_bytes), _mb(plan.weight_bytes), seconds, _mb(plan.up_bytes)


def _as_json(
    planner: Planner, told: dict[str, Device], found: dict[str, Forecast | None], seconds: float | None
) -> dict[str, object]:
    devices = {
        kind: {"memory_bytes": device.memory_bytes, "works_as": None if found[kind] is None else _numbers(found[kind])}
        for kind, device in told.items()
    }
    ladder = [_numbers(planner.forecast(step, Device())) for step in planner.ladder()]
    return {"devices": devices, "ladder": ladder, "reference_seconds": seconds}


def _numbers(plan: Forecast | None) -> dict[str, object]:
    assert plan is not None
    own = {name: value for name, value in dataclasses.asdict(plan).items() if name != "step"}
    step = {name: value for name, value in dataclasses.asdict(plan.step).items() if name not in ("rung", "saves")}
    return {**dataclasses.asdict(plan.step.rung), **step, **own}


def _mb(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.0f} MB" if abs(size) >= 1e7 else f"{size / 1e6:,.1f} MB"
