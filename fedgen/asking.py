"""The half of a round that goes out: who takes part, which part of the model each gets, and how it works there."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fedgen import records, tree
from fedgen.coverage import Coverage
from fedgen.devices import Device, Rung
from fedgen.errors import RunError
from fedgen.messages import Payload, Request
from fedgen.parts import Ground
from fedgen.planner import Forecast, Planner
from fedgen.replies import Sent
from fedgen.transport import Report, Transport
from fedgen.types import Part, Record, State


@dataclass(frozen=True)
class Asking:
    """What a round's requests are made of.

    Attributes:
        parts: client → what it gets.
        devices: client → what it has.
        plans: client → how it works, of those for which the planner decides.
        coverage: knows what each client held last.
        sent: is filled as requests go out.
        num_measured: the clients are to measure what they get on so many of their examples; 0: to train it.
    """

    parts: Mapping[str, Part]
    devices: Mapping[str, Device]
    plans: Mapping[str, Forecast]
    coverage: Coverage
    sent: dict[str, Sent]
    num_measured: int = 0

    def requests(self, ground: Ground, state: State, round: int) -> Iterator[Request]:
        """Requests, made when a device is free; notes when each was sent, its bytes and the seconds of packing it."""
        experiment = ground.experiment
        progress = (round - 1) / max(1, experiment.num_rounds - 1)
        whole: Payload | None = None
        for client in sorted(self.parts):
            part, device, began = self.parts[client], self.devices[client], time.perf_counter()
            plan = ground.sent(part)
            if tree.is_whole(plan) and len(plan) == len(state):
                # Most cohorts get one and the same part; it is packed once.
                payload = whole = experiment.wire.encode(state) if whole is None else whole
            else:
                payload = experiment.wire.encode(state, plan)
            now, last = time.perf_counter(), self.coverage.last.get(client)
            base_bytes = 0 if device.has_base else ground.base_bytes(part, last)
            self.coverage.last[client] = part
            told, rung = self._how(client)
            num_bytes = payload.num_bytes + base_bytes
            self.sent[client] = Sent(now, num_bytes, base_bytes, now - began, device.delay, told)
            base = ground.base.fingerprint
            yield Request(round, client, progress, part, payload, base, rung, self.num_measured)

    def _how(self, client: str) -> tuple[Record, Rung]:
        """What the journal is told of how a client works, and that itself."""
        forecast = self.plans.get(client)
        if forecast is None:
            return {}, Rung()
        rung = forecast.step.rung
        return records.plan(self.devices[client].kind, rung.name, forecast.peak_bytes), rung


def taking_part(
    ground: Ground, planner: Planner | None, transport: Transport, round: int
) -> tuple[dict[str, Device], dict[str, str]]:
    """The devices that take part in a round, and why others decline; waits while all decline for what they tell.

    A device that is hot, empty or busy with something else may be fit again in an hour. What the fleet says of it
    stays: where nobody could work by that alone, nobody is waited for.

    Args:
        ground: what is known before the first round.
        planner: says who has to decline; None if no device tells its memory.
        transport: reaches the clients, and knows what their devices said of themselves.
        round: counted from 1.

    Raises:
        RunError: there is none.
    """
    told = ground.experiment.fleet.devices(ground.clients, round, ground.experiment.seed)
    told = {client: device for client, device in told.items() if device.width > 0}
    if not told:
        raise RunError(
            f"none of {len(ground.clients)} devices takes part in round {round}: the fleet gives each of them no part "
            "of the model. Lower fleet.min_width, or let some devices be wider"
        )
    while True:
        nodes, reports = set(transport.nodes()), transport.reports()
        here = {client: lowered(told[client], reports.get(client, {})) for client in told.keys() & nodes}
        declined = dict[str, str]() if planner is None else planner.declined(here)
        able = {client: here[client] for client in sorted(here) if client not in declined}
        if able:
            return able, declined
        why = _why_nobody(planner, told, here, declined, round)
        hopeless = planner is not None and planner.declined(told).keys() == told.keys()
        if hopeless or not transport.look_again(why):
            raise RunError(why)


def _why_nobody(
    planner: Planner | None,
    told: Mapping[str, Device],
    here: Mapping[str, Device],
    declined: Mapping[str, str],
    round: int,
) -> str:
    """Why no device can work in a round."""
    if planner is None or not declined:
        return f"none of the {len(told)} devices that the fleet gives a part of the model can be asked in round {round}"
    return planner.why_none(here.values(), declined.values())


def lowered(device: Device, report: Report) -> Device:
    """A device with what it has less of than the fleet says, by its own word; of more it says nothing that counts.

    >>> less = lowered(Device(memory_bytes=2000, temperature_c=60.0), {"memory_bytes": 1500, "temperature_c": 50.0})
    >>> less.memory_bytes, less.temperature_c
    (1500, 60.0)

    Args:
        device: by the fleet's word. One that does not tell its memory is not planned, and stays as it is.
        report: whatever it said of itself.
    """
    if device.memory_bytes is None:
        return device
    memory, heat, battery = (_number(report.get(name)) for name in ("memory_bytes", "temperature_c", "battery"))
    return replace(
        device,
        memory_bytes=device.memory_bytes if memory is None else min(device.memory_bytes, max(0, int(memory))),
        temperature_c=max((value for value in (device.temperature_c, heat) if value is not None), default=None),
        battery=min((value for value in (device.battery, battery) if value is not None), default=None),
    )


def _number(value: object) -> float | None:
    """The value if it is a number that can be compared; a device may say anything."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def wanted_parts(
    ground: Ground, planner: Planner | None, devices: Mapping[str, Device], round: int, missed: Mapping[str, int]
) -> tuple[dict[str, Part], dict[str, Forecast]]:
    """The part that each client would get, and what is planned for those that tell their memory.

    Args:
        ground: what is known before the first round.
        planner: chooses for these.
        devices: client → what it has; none of them declines.
        round: counted from 1.
        missed: client → earlier rounds in which it was still at work.
    """
    parts, plans = dict[str, Part](), dict[str, Forecast]()
    for client, device in devices.items():
        plan = planner.choose(device) if planner is not None and device.memory_bytes is not None else None
        if planner is None or plan is None:
            parts[client] = ground.part(client, round, device.width, missed[client])
        else:
            parts[client], plans[client] = planner.part(client, round, plan.step, missed[client]), plan
    return parts, plans
