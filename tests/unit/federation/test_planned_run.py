"""Runs in which the planner decides how each device works, on the tiny model."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file

from fedgen import run as folders
from fedgen.client.zeroth_order import ZerothOrder
from fedgen.devices import Device
from fedgen.errors import RunError
from fedgen.federation.course import carry_through, planned, shards_of
from fedgen.federation.local import Local, LocalTransport
from fedgen.journal import read
from tests.unit.federation.test_local import QUICK, carry_out, final

PLANNED = dataclasses.replace(QUICK, light_client=ZerothOrder(num_steps=3, batch_size=2))


@dataclass(frozen=True)
class Boards:
    """One device per entry, by memory; in the second round a device has what the last entry says."""

    memory: tuple[int, ...]
    later: int | None = None

    def devices(self, clients, round, seed):
        amounts = list(self.memory) if round == 1 or self.later is None else [self.later, *self.memory[1:]]
        names = sorted(clients)
        return {c: Device(kind=f"board-{k}", memory_bytes=amounts[k % len(amounts)]) for k, c in enumerate(names)}


@pytest.fixture(scope="module")
def peaks():
    planner = planned(PLANNED)
    return {s.rung.name: planner.forecast(s, Device()) for s in planner.ladder()}


def enough(forecast):
    return forecast.needed_bytes


def mixed(peaks):
    """A fleet whose four devices work in four ways."""
    wanted = ["as configured", "checkpointing", "int8 weights", "zeroth order"]
    return [enough(peaks[name]) for name in wanted]


def test_every_device_trains_at_its_own_rung_and_all_are_aggregated(tmp_path, peaks):
    experiment = dataclasses.replace(PLANNED, fleet=Boards(tuple(mixed(peaks))))
    run = carry_out(experiment, tmp_path)
    lines = [line for line in read(run.metrics_file) if line["kind"] == "client" and line["round"] == 1]
    assert all(line["refused"] is None for line in lines)
    rungs = [line["rung"] for line in lines]
    assert rungs[0] == "as configured"
    assert len(set(rungs)) >= 3
    for line, memory in zip(lines, mixed(peaks), strict=True):
        assert line["predicted_peak_bytes"] == peaks[line["rung"]].peak_bytes <= memory
    again = carry_out(dataclasses.replace(experiment, federation=Local(num_workers=1)), tmp_path / "again")
    assert final(run).read_bytes() == final(again).read_bytes()


def test_a_device_that_has_less_in_a_round_works_otherwise_in_it(tmp_path, peaks):
    least, most = min(enough(forecast) for forecast in peaks.values()), enough(peaks["as configured"])
    run = carry_out(dataclasses.replace(PLANNED, fleet=Boards((most,) * 4, least)), tmp_path)
    told = {
        (line["round"], line["client"]): line["rung"] for line in read(run.metrics_file) if line["kind"] == "client"
    }
    first = min(client for _, client in told)
    assert told[1, first] == "as configured" != told[2, first]
    assert {rung for (_, client), rung in told.items() if client != first} == {"as configured"}


def test_who_declines_is_told_and_the_others_go_on(tmp_path, peaks):
    run = carry_out(dataclasses.replace(PLANNED, fleet=Boards((1, *(enough(peaks["as configured"]),) * 3))), tmp_path)
    rounds = [line for line in read(run.metrics_file) if line["kind"] == "round" and line["round"]]
    assert [list(line["declined"].values()) for line in rounds] == [["memory"]] * 2
    assert [line["num_clients"] for line in rounds] == [3, 3]


def test_if_all_decline_the_run_says_what_would_do(tmp_path):
    with pytest.raises(RunError, match="every device declines"):
        carry_out(dataclasses.replace(PLANNED, fleet=Boards((10**6,))), tmp_path)


@dataclasses.dataclass
class Cooling:
    """A transport whose devices are too hot until they were asked so many times anew."""

    inner: LocalTransport
    times: int

    def nodes(self):
        return self.inner.nodes()

    def reports(self):
        return {name: {"temperature_c": 90.0 if self.times else 50.0} for name in self.inner.nodes()}

    def look_again(self, why):
        assert "every device declines (too_hot)" in why
        self.times -= 1
        return self.times >= 0

    def send(self, requests):
        self.inner.send(requests)

    def receive(self):
        return self.inner.receive()


def test_if_all_decline_by_their_own_word_they_are_asked_again(tmp_path, peaks):
    experiment = dataclasses.replace(PLANNED, num_rounds=1, fleet=Boards((enough(peaks["as configured"]),)))

    def through(times):
        def reach(ground, workers, dataset):
            return Cooling(LocalTransport(ground, workers, shards_of(experiment, dataset)), times)

        run = folders.create(tmp_path, f"after-{times}", {"experiment.yaml": "x: 1\n", "environment.json": "{}"})
        carry_through(experiment, run, lambda record: None, reach)
        return final(run).read_bytes()

    assert through(3) == through(0)


def test_a_turn_in_its_own_process_gives_the_same_bytes_and_its_own_peak(tmp_path, peaks):
    experiment = dataclasses.replace(PLANNED, num_rounds=1, fleet=Boards((enough(peaks["as configured"]),)))
    inside = carry_out(experiment, tmp_path / "inside")
    apart = carry_out(
        dataclasses.replace(experiment, federation=Local(num_workers=2, own_process=True)), tmp_path / "apart"
    )
    ours, theirs = load_file(final(inside)), load_file(final(apart))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for line in read(apart.metrics_file):
        if line["kind"] == "client":
            assert line["refused"] is None
            # The imports, and a tiny model.
            assert 150e6 < line["peak_memory_bytes"] < line["predicted_peak_bytes"] * 1.1
