"""Whole runs in which replies come in rounds after they were asked for."""

import dataclasses
import hashlib
import itertools

import pytest
import torch

from fedgen import checkpoint, rounds, seeds
from fedgen import run as folders
from fedgen.adapter.full import Full as FullAdapter
from fedgen.adapter.lora import Lora
from fedgen.aggregation.flexlora import Flexlora
from fedgen.aggregation.masked_mean import MaskedMean
from fedgen.aggregation.mean import Mean
from fedgen.client.first_order import FirstOrder
from fedgen.data.synthetic import Synthetic
from fedgen.errors import ClientError, RunError
from fedgen.evaluation.exact_match import ExactMatch
from fedgen.experiment import Experiment
from fedgen.export.merged import Merged
from fedgen.extraction.full import Full as FullExtraction
from fedgen.extraction.rolling import Rolling
from fedgen.federation.course import finished, shards_of
from fedgen.federation.local import Local, LocalTransport
from fedgen.fleet.levels import Levels
from fedgen.fleet.uniform import Uniform
from fedgen.gate import prepare
from fedgen.journal import read
from fedgen.model.tiny import Tiny
from fedgen.partition.by_owner import ByOwner
from fedgen.selection.all import All
from fedgen.wire.dense import Dense
from fedgen.workers import Workers

SMALL = Synthetic(num_owners=4, num_train=8, num_eval=8, num_public=8)


@dataclasses.dataclass(frozen=True)
class Unmeasured:
    """Examples without any to be measured on, which is most of the time of so small a run."""

    inner: Synthetic = SMALL

    def load(self, seed):
        return dataclasses.replace(self.inner.load(seed), evaluation={})

    def prompt(self, text):
        return self.inner.prompt(text)


LATE = Experiment(
    name="late",
    num_rounds=7,
    fleet=Levels(widths=(1.0, 0.5), delays=(0, 2)),
    data=Unmeasured(),
    partition=ByOwner(),
    model=Tiny(hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=2),
    adapter=Lora(rank=2, alpha=4.0),
    extraction=Rolling(stride=None),
    client=FirstOrder(learning_rate=1e-2, num_steps=1, batch_size=4),
    selection=All(),
    wire=Dense(),
    aggregation=MaskedMean(momentum=0.5),
    evaluation=ExactMatch(),
    export=Merged(),
    federation=Local(num_workers=2),
)
IDENTITY = hashlib.sha256(b"x: 1\n").hexdigest()


def carry_out(experiment, root, observe=lambda record: None):
    run = folders.create(root, experiment.name, {"experiment.yaml": "x: 1\n", "environment.json": "{}"})
    experiment.federation.run(experiment, run, observe)
    return run


def final(run):
    return sorted(run.checkpoints.glob("round-*"))[-1] / "state.safetensors"


def lines_of(run, kind):
    return [line for line in read(run.metrics_file) if line["kind"] == kind]


def timeless(run):
    """The journal without what a clock or the memory of a process says."""
    untold = ("seconds", "seconds_select", "peak_memory_bytes")
    return [{key: value for key, value in line.items() if key not in untold} for line in read(run.metrics_file)]


def slow_ones(experiment):
    devices = experiment.fleet.devices(sorted(f"owner-{n}" for n in range(4)), 1, experiment.seed)
    return sorted(client for client, device in devices.items() if device.delay)


def test_who_is_at_work_is_not_asked_and_what_comes_in_late_is_told_as_such(tmp_path):
    seen = []
    run = carry_out(LATE, tmp_path, seen.append)
    slow = slow_ones(LATE)
    assert len(slow) == 2
    asked = {record["round"]: record for record in seen if record["kind"] == "dispatch"}
    for number, record in asked.items():
        assert (set(slow) <= set(record["clients"])) == (number in (1, 4, 7))
        assert record["late"] == (slow if number in (1, 4, 7) else [])
        assert record["due"] == (slow if number in (3, 6) else [])
        assert len(record["clients"]) == (4 if number in (1, 4, 7) else 2)
    clients = lines_of(run, "client")
    assert [(line["asked"], line["round"]) for line in clients if line["client"] == slow[0]] == [(1, 3), (4, 6)]
    assert all(line["asked"] == line["round"] for line in clients if line["client"] not in slow)
    assert all(line["refused"] is None for line in clients)
    told = {line["round"]: (line["num_clients"], line["num_late"]) for line in lines_of(run, "round")}
    assert told == {0: (0, 0), **{n: (4, 2) if n in (3, 6) else (2, 0) for n in range(1, 8)}}
    pending = [line["num_pending"] for line in lines_of(run, "round")[1:]]
    assert pending == [2, 2, 0, 2, 2, 0, 2]
    (warning,) = (line["text"] for line in lines_of(run, "warning"))
    assert warning.startswith(f"2 replies were still on the way when the run ended, and not in its result: {slow[0]}")
    # Nothing is left of it but what the last checkpoint keeps.
    assert sorted(path.name for path in run.path.iterdir() if path.name.startswith(".")) == [".lock"]
    assert {path.name for path in run.checkpoints.iterdir()} == {"round-0006", "round-0007"}


def test_a_fleet_that_is_never_late_is_the_fleet_without_delays(tmp_path):
    runs = [
        carry_out(dataclasses.replace(LATE, name=f"d{number}", num_rounds=3, fleet=fleet), tmp_path)
        for number, fleet in enumerate((Levels(widths=(1.0, 0.5)), Levels(widths=(1.0, 0.5), delays=(0, 0))))
    ]
    assert final(runs[0]).read_bytes() == final(runs[1]).read_bytes()
    assert timeless(runs[0]) == timeless(runs[1])


@pytest.mark.parametrize("aggregation", [Mean(momentum=0.5), MaskedMean(momentum=0.5)])
def test_a_first_round_that_comes_in_late_is_the_first_round(tmp_path, aggregation):
    fields = {"aggregation": aggregation, "staleness_power": 0.0}
    prompt = dataclasses.replace(LATE, num_rounds=1, fleet=Uniform(), name="prompt", **fields)
    late = dataclasses.replace(prompt, num_rounds=3, fleet=Uniform(delay=2), name="late")
    runs = [carry_out(experiment, tmp_path) for experiment in (prompt, late)]
    assert final(runs[0]).read_bytes() == final(runs[1]).read_bytes()
    # All are equally late, so that a discount cancels but for the last bits.
    third = carry_out(dataclasses.replace(late, staleness_power=0.5, name="discounted"), tmp_path)
    states = [checkpoint.load_latest(run.checkpoints, identity=IDENTITY)[0].state for run in (runs[0], third)]
    assert all(torch.allclose(states[0][name], states[1][name], atol=1e-6) for name in states[0])


def test_what_comes_in_late_is_the_change_to_the_state_of_its_round_and_weighs_less(tmp_path):
    """The state after three rounds, by training each client by hand from the state that it was given."""
    experiment = dataclasses.replace(
        LATE, num_rounds=3, extraction=FullExtraction(), aggregation=Mean(weighting="uniform"), staleness_power=1.0
    )
    run, slow = carry_out(experiment, tmp_path), slow_ones(experiment)
    learner, newest = finished(experiment, run)
    shards = shards_of(experiment, experiment.data.load(0))

    def change(state, client, number):
        learner.load(state)
        generator = seeds.derive(0, "train", number, client)
        experiment.client.train(learner, learner.encode(shards[client]), (number - 1) / 2, generator)
        return {name: t.double() - state[name].double() for name, t in learner.state().items()}

    state = start = experiment.initial_state(learner)
    for number in (1, 2, 3):
        changes = [(1.0, change(state, client, number)) for client in sorted(shards) if client not in slow]
        if number == 3:
            changes += [(1 / 3, change(start, client, 1)) for client in slow]  # (1 + 2)**-1
        weight = sum(w for w, _ in changes)
        state = {
            name: (t.double() + sum(w * delta[name] for w, delta in changes) / weight).float()
            for name, t in state.items()
        }
    assert all(torch.allclose(newest.state[name], tensor, atol=1e-6) for name, tensor in state.items())
    assert not any(torch.equal(start[name], tensor) for name, tensor in state.items())


def test_the_discount_is_that_of_the_paper_in_few_bits():
    discounts = [LATE.discount(staleness) for staleness in range(50)]
    assert discounts[0] == 1.0
    assert all(abs(d - (1 + s) ** -0.5) < 2**-20 for s, d in enumerate(discounts))
    assert all((d * 2**20).is_integer() and d > 0 for d in discounts)
    assert dataclasses.replace(LATE, staleness_power=0.0).discount(9) == 1.0
    assert dataclasses.replace(LATE, staleness_power=50.0).discount(9) == 2**-20
    with pytest.raises(ValueError, match=r"staleness_power is -1.0; it must be at least 0"):
        dataclasses.replace(LATE, staleness_power=-1.0)


def test_a_late_device_gets_every_part_and_every_entry_is_trained(tmp_path):
    """With two tiles and a delay of one round, rounds alone would give it the same tile for ever."""
    experiment = dataclasses.replace(LATE, num_rounds=8, fleet=Uniform(width=0.5, delay=1))
    run = carry_out(experiment, tmp_path)
    never = [
        max(told["never"] for told in line["coverage"]["tensors"].values()) if line["coverage"] else None
        for line in lines_of(run, "round")[1:]
    ]
    # Asked in rounds 1, 3, 5, 7; what was held counts when it comes in.
    assert [n is None for n in never] == [True, False] * 4
    assert (never[1], never[3]) == (0.5, 0.0)
    assert lines_of(run, "warning") == []


def test_of_factors_that_take_turns_a_late_one_is_that_of_its_round(tmp_path):
    # Asked in rounds 1 and 3, when B is trained; the replies come in in rounds 2 and 4, when A would be.
    experiment = dataclasses.replace(
        LATE, num_rounds=4, fleet=Uniform(delay=1), adapter=Lora(rank=2, alternate=True), extraction=FullExtraction()
    )
    run = carry_out(experiment, tmp_path)
    assert [line["refused"] for line in lines_of(run, "client")] == [None] * 8
    learner, newest = finished(experiment, run)
    start = experiment.initial_state(learner)
    changed = {name for name, tensor in newest.state.items() if not torch.equal(tensor, start[name])}
    assert changed == {name for name in start if "lora_B" in name}


@pytest.mark.parametrize("fleet", [LATE.fleet, Levels(widths=(0.5, 0.25), delays=(3, 1), redraw=True, has_base=False)])
@pytest.mark.parametrize("cohort_size", [None, 2])
def test_the_number_of_workers_changes_no_bit(tmp_path, fleet, cohort_size):
    fields = {"fleet": fleet, "cohort_size": cohort_size}
    runs = [
        carry_out(dataclasses.replace(LATE, name=f"w{n}", federation=Local(num_workers=n), **fields), tmp_path)
        for n in (1, 3)
    ]
    assert final(runs[0]).read_bytes() == final(runs[1]).read_bytes()
    assert timeless(runs[0]) == timeless(runs[1])
    asked = [line["client"] for line in lines_of(runs[0], "client")]
    assert set(asked) <= {f"owner-{n}" for n in range(4)}
    for client in set(asked):
        turns = [(t["asked"], t["round"]) for t in lines_of(runs[0], "client") if t["client"] == client]
        assert all(due < after for (_, due), (after, _) in itertools.pairwise(turns))
    assert any(line["num_late"] for line in lines_of(runs[0], "round"))


@pytest.mark.parametrize("at", [("dispatch", 3), ("client", 3), ("round", 4), ("client", 6), ("round", 7)])
def test_a_run_that_dies_while_replies_are_on_their_way_ends_with_the_same_bytes(tmp_path, at):
    class Death(BaseException):
        pass

    def dying(record):
        kind, number = at
        if record["kind"] == kind and record["round"] >= number:
            raise Death

    fleet = Levels(widths=(0.5, 0.25), delays=(1, 3), redraw=True, has_base=False)
    experiment = dataclasses.replace(LATE, fleet=fleet, extraction=Rolling(stride=3), seed=5)
    unbroken = carry_out(experiment, tmp_path / "unbroken")
    with pytest.raises(Death):
        carry_out(experiment, tmp_path / "broken", dying)
    (path,) = (tmp_path / "broken").glob("*late")
    run = folders.open_run(path)
    experiment.federation.run(experiment, run, lambda record: None)
    assert final(run).read_bytes() == final(unbroken).read_bytes()
    assert timeless(run) == timeless(unbroken)
    assert sum(line["base_bytes"] > 0 for line in lines_of(run, "client")) > 4
    assert [path.name for path in run.checkpoints.iterdir() if path.name.startswith(".")] == []


def test_a_damaged_file_of_replies_is_named_and_the_checkpoint_before_used(tmp_path):
    class Death(BaseException):
        pass

    def dying(record):
        if (record["kind"], record["round"]) == ("dispatch", 6):
            raise Death

    unbroken = carry_out(LATE, tmp_path / "unbroken")
    with pytest.raises(Death):
        carry_out(LATE, tmp_path / "broken", dying)
    (path,) = (tmp_path / "broken").glob("*late")
    run = folders.open_run(path)
    damaged = run.checkpoints / "round-0005" / "late-0004.bin"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.unlink()  # the file has the same content under its other name, in the checkpoint before
    damaged.write_bytes(bytes(content))
    told = []
    LATE.federation.run(LATE, run, told.append)
    warning = next(record["text"] for record in told if record["kind"] == "warning")
    assert "round-0005 was skipped: late-0004.bin has changed since it was saved" in warning
    assert final(run).read_bytes() == final(unbroken).read_bytes()


def test_rounds_in_which_nothing_is_due_are_not_rounds_in_which_nothing_was_usable(tmp_path):
    run = carry_out(dataclasses.replace(LATE, num_rounds=6, fleet=Uniform(delay=5)), tmp_path)
    assert [line["num_clients"] for line in lines_of(run, "round")] == [0, 0, 0, 0, 0, 0, 4]


@dataclasses.dataclass(frozen=True)
class Useless(FirstOrder):
    """A client that never has anything to send."""

    def train(self, learner, examples, progress, generator):
        raise ClientError("no_examples")


def test_late_refusals_count_when_they_come_in(tmp_path):
    experiment = dataclasses.replace(LATE, num_rounds=9, client=Useless(), fleet=Uniform(delay=1))
    with pytest.raises(RunError, match=r"3 rounds in a row \(no_examples\).* the state of round 5"):
        carry_out(experiment, tmp_path)
    (path,) = tmp_path.glob("*late")
    clients = [line for line in read(path / "metrics.jsonl") if line["kind"] == "client"]
    assert {(line["asked"], line["round"], line["refused"]) for line in clients} == {
        (1, 2, "no_examples"),
        (3, 4, "no_examples"),
    }


def test_products_of_factors_that_have_been_replaced_are_refused(tmp_path):
    experiment = dataclasses.replace(LATE, num_rounds=3, aggregation=Flexlora())
    run, slow = carry_out(experiment, tmp_path), slow_ones(experiment)
    refused = {(line["client"], line["refused"]) for line in lines_of(run, "client") if line["round"] == 3}
    assert refused == {(f"owner-{n}", "late" if f"owner-{n}" in slow else None) for n in range(4)}
    assert lines_of(run, "round")[-1]["num_refused"] == 2


@dataclasses.dataclass
class Replaying:
    """A transport that hands over every reply twice, and again in all later rounds."""

    inner: LocalTransport
    heard: list = dataclasses.field(default_factory=list)

    def nodes(self):
        return self.inner.nodes()

    def reports(self):
        return {}

    def look_again(self, why):
        return False

    def send(self, requests):
        self.inner.send(requests)

    def receive(self):
        before = list(self.heard)
        for reply in self.inner.receive():
            self.heard.append(reply)
            yield reply
            yield reply
        yield from before


def test_a_reply_is_taken_once_however_often_it_comes(tmp_path):
    experiment = dataclasses.replace(LATE, num_rounds=4)
    dataset, base = experiment.data.load(0), experiment.base()
    shards, states, lines = shards_of(experiment, dataset), [], []
    for wrap in (lambda transport: transport, Replaying):
        workers = Workers(experiment.learners(base, 1))
        gate = prepare(experiment, base, workers, dataset, sorted(shards))
        run = folders.create(tmp_path, "r", {"experiment.yaml": "x: 1\n", "environment.json": "{}"})
        transport = wrap(LocalTransport(gate.ground, workers, shards))
        facts = {"base": "", "data": "", "description": ""}
        rounds.serve(rounds.Server(gate, run, transport, workers, {}, facts, lambda _: None))
        states.append(final(run).read_bytes())
        lines.append([line for line in timeless(run) if line["kind"] in ("client", "round")])
    assert states[0] == states[1]
    assert lines[0] == lines[1]
    text = "a reply came that nobody waits for, and was left aside"
    # 8 replies of the fast, 4 of the slow ones in rounds 1 and 4: 12 second ones, and 4 + 6 + 8 of earlier rounds.
    assert [line["text"] for line in lines_of(run, "warning")].count(text) == 12 + 18


def test_full_training_and_the_gate_go_with_late_parts(tmp_path):
    experiment = dataclasses.replace(
        LATE, num_rounds=4, adapter=FullAdapter(), gate_margin=100.0, fleet=Uniform(width=0.5, delay=2)
    )
    run = carry_out(experiment, tmp_path)
    assert [line["refused"] for line in lines_of(run, "client")] == [None] * 4
    assert ["gate" in line for line in lines_of(run, "round")] == [False, True, False, False, True]
