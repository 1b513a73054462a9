"""Whole runs in this process, on the tiny model."""

import dataclasses
import json

import pytest
import torch

from fedgen import checkpoint, rounds
from fedgen import run as folders
from fedgen.adapter.full import Full as FullAdapter
from fedgen.adapter.lora import Lora
from fedgen.aggregation.mean import Mean
from fedgen.client.first_order import FirstOrder
from fedgen.data.jsonl import Jsonl
from fedgen.data.synthetic import Synthetic
from fedgen.errors import ClientError, DataError, RunError
from fedgen.evaluation.exact_match import ExactMatch
from fedgen.experiment import Experiment
from fedgen.export.adapter import Adapter
from fedgen.export.merged import Merged
from fedgen.extraction.full import Full as FullExtraction
from fedgen.federation.course import fingerprint, finished, shards_of
from fedgen.federation.local import Local, LocalTransport
from fedgen.fleet.uniform import Uniform
from fedgen.gate import prepare
from fedgen.journal import read
from fedgen.model.tiny import Tiny
from fedgen.partition.by_owner import ByOwner
from fedgen.selection.all import All
from fedgen.types import Dataset
from fedgen.wire.dense import Dense
from fedgen.workers import Workers

QUICK = Experiment(
    name="quick",
    num_rounds=2,
    num_evaluated_per_round=16,
    fleet=Uniform(),
    data=Synthetic(num_owners=4, num_train=16, num_eval=16),
    partition=ByOwner(),
    model=Tiny(hidden_size=16, num_heads=2, num_kv_heads=1),
    adapter=Lora(rank=2, alpha=4.0),
    extraction=FullExtraction(),
    client=FirstOrder(learning_rate=1e-2, num_steps=2, batch_size=4),
    selection=All(),
    wire=Dense(),
    aggregation=Mean(momentum=0.5),
    evaluation=ExactMatch(),
    export=Adapter(),
    federation=Local(num_workers=2),
)


def carry_out(experiment, root, observe=lambda record: None):
    run = folders.create(root, experiment.name, {"experiment.yaml": "x: 1\n", "environment.json": "{}"})
    experiment.federation.run(experiment, run, observe)
    return run


def final(run):
    return next(iter(sorted(run.checkpoints.glob("round-*"))[-1:])) / "state.safetensors"


def test_a_run_leaves_everything_behind(tmp_path):
    seen = []
    run = carry_out(QUICK, tmp_path, seen.append)
    lines = read(run.metrics_file)
    assert [line["kind"] for line in lines] == [
        "round",
        *["client"] * 4,
        "round",
        *["client"] * 4,
        "round",
        *["conversation"] * 3,
        "end",
    ]
    first, last = (line for line in lines if line["kind"] == "round" and line["round"] != 1)
    assert first["evaluation"].keys() == last["evaluation"].keys() == {"new_utterances", "new_templates"}
    client = lines[1]
    # Every client gets and sends all factors, 4 bytes an entry, each padded to 64 bytes.
    learner, _ = finished(QUICK, run)
    sizes = [-(-4 * p.numel() // 64) * 64 for p in learner.parameters().values()]
    assert client["bytes_up"] == client["bytes_down"] == sum(sizes)
    assert client["seconds"]["compute"] > 0
    assert (run.adapter / "adapter_model.safetensors").is_file()
    assert json.loads(run.environment_file.read_text())["data_sha256"] == fingerprint(QUICK.data.load(0))
    assert [r["kind"] for r in seen].count("dispatch") == 2
    assert seen[0]["kind"] == "start"


def test_the_number_of_workers_changes_no_bit(tmp_path):
    runs = [
        carry_out(dataclasses.replace(QUICK, name=f"w{n}", federation=Local(num_workers=n)), tmp_path) for n in (1, 3)
    ]
    assert final(runs[0]).read_bytes() == final(runs[1]).read_bytes()
    numbers = [[line["evaluation"] for line in read(run.metrics_file) if line["kind"] == "round"] for run in runs]
    assert numbers[0] == numbers[1]


def test_another_seed_gives_other_bytes(tmp_path):
    runs = [carry_out(dataclasses.replace(QUICK, name=f"s{seed}", seed=seed), tmp_path) for seed in (0, 1)]
    assert final(runs[0]).read_bytes() != final(runs[1]).read_bytes()


def test_one_round_is_the_mean_of_what_clients_learn_alone(tmp_path):
    experiment = dataclasses.replace(QUICK, num_rounds=1, aggregation=Mean())
    learner, _ = finished(experiment, carry_out(experiment, tmp_path))
    after = learner.state()
    start = experiment.initial_state(learner)
    from fedgen import seeds

    deltas = []
    for client, examples in shards_of(experiment, experiment.data.load(0)).items():
        learner.load(start)
        generator = seeds.derive(0, "train", 1, client)
        experiment.client.train(learner, learner.encode(examples), 0.0, generator)
        deltas.append({name: t - start[name] for name, t in learner.state().items()})
    for name, tensor in after.items():
        expected = start[name] + sum(delta[name] for delta in deltas) / len(deltas)
        assert torch.allclose(tensor, expected, atol=1e-7), name


def test_training_really_learns(tmp_path):
    experiment = dataclasses.replace(
        QUICK,
        num_rounds=6,
        model=Tiny(hidden_size=32, num_heads=2, num_kv_heads=1),
        data=Synthetic(num_owners=2, num_train=64, num_eval=32),
        adapter=FullAdapter(),
        export=Merged(),
        aggregation=Mean(),
        client=FirstOrder(learning_rate=5e-3, num_steps=16, batch_size=16),
    )
    run = carry_out(experiment, tmp_path)
    lines = [line for line in read(run.metrics_file) if line["kind"] == "round"]
    losses = [line["evaluation"]["new_utterances"]["loss"] for line in lines]
    assert losses[-1] < 0.4 * losses[0]


def test_a_cohort_is_drawn_anew_each_round_and_fixed_by_the_seed():
    clients = [f"c{n:02}" for n in range(20)]
    experiment = dataclasses.replace(QUICK, cohort_size=5)
    cohorts = [experiment.cohort(clients, round) for round in range(1, 5)]
    assert all(len(set(cohort)) == 5 and cohort == sorted(cohort) for cohort in cohorts)
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    assert cohorts[0] == experiment.cohort(list(reversed(clients)), 1)


@dataclasses.dataclass(frozen=True)
class Troubled:
    """A client that goes wrong for one owner, each time in another way."""

    trouble: str = "nan"
    compares_losses: bool = False
    needs_backward: bool = True
    num_at_once: int = 4
    num_passes: int = 1
    drops_gradients: bool = False

    def held_bytes(self, trained_bytes, step_bytes):
        return 3 * trained_bytes + step_bytes

    def at(self, rung):
        return self

    def trained_units(self, examples):
        return {}

    def train(self, learner, examples, progress, generator):
        trained = FirstOrder(num_steps=1, batch_size=4).train(learner, examples, progress, generator)
        if generator.initial_seed() % 2:
            if self.trouble == "nan":
                next(iter(trained.change.values())).fill_(float("nan"))
            elif self.trouble == "raise":
                raise RuntimeError("secret of the device")
            else:
                raise ClientError(self.trouble)
        return trained


@pytest.mark.parametrize(
    ("trouble", "reason"), [("nan", "non_finite"), ("raise", "failed"), ("non_finite_loss", "non_finite_loss")]
)
def test_a_bad_client_is_refused_and_counted_and_the_run_goes_on(tmp_path, trouble, reason):
    experiment = dataclasses.replace(QUICK, client=Troubled(trouble=trouble), num_rounds=2)
    run = carry_out(experiment, tmp_path)
    lines = read(run.metrics_file)
    refused = [line["refused"] for line in lines if line["kind"] == "client"]
    assert 0 < refused.count(reason) < len(refused)
    assert set(refused) == {None, reason}
    assert sum(line["num_refused"] for line in lines if line["kind"] == "round") == refused.count(reason)
    assert "secret" not in run.metrics_file.read_text()
    assert all(torch.isfinite(t).all() for t in finished(experiment, run)[1].state.values())


def test_a_run_without_any_usable_update_stops_after_three_rounds_and_says_why(tmp_path):
    experiment = dataclasses.replace(QUICK, client=FirstOrder(learning_rate=1e30, num_steps=3), num_rounds=9)
    with pytest.raises(RunError, match=r"3 rounds in a row \(non_finite_loss\).*client\.learning_rate"):
        carry_out(experiment, tmp_path)


def transport_for(experiment, dataset):
    base, shards = experiment.base(), shards_of(experiment, dataset)
    workers = Workers(experiment.learners(base, 1))
    gate = prepare(experiment, base, workers, dataset, sorted(shards))
    return LocalTransport(gate.ground, workers, shards), workers, gate


def test_examples_without_room_for_an_answer_are_left_out_and_told(tmp_path):
    (tmp_path / "anna.jsonl").write_text(
        "".join(json.dumps({"prompt": prompt, "completion": "y"}) + "\n" for prompt in ("x" * 30, "x", "z"))
    )
    (tmp_path / "ben.jsonl").write_text(json.dumps({"prompt": "x" * 30, "completion": "y"}) + "\n")
    experiment = dataclasses.replace(
        QUICK,
        num_rounds=1,
        model=Tiny(hidden_size=16, num_heads=2, num_kv_heads=1, max_length=20),
        data=Jsonl(path=str(tmp_path), eval_path=str(tmp_path / "anna.jsonl")),
    )
    lines = read(carry_out(experiment, tmp_path / "runs").metrics_file)
    clients = {line["client"]: line for line in lines if line["kind"] == "client"}
    assert (clients["anna"]["num_examples"], clients["anna"]["num_left_out"], clients["anna"]["refused"]) == (
        2,
        1,
        None,
    )
    assert clients["ben"]["refused"] == "no_answer_tokens"
    (warning,) = (line["text"] for line in lines if line["kind"] == "warning")
    assert warning.startswith("1 examples of 1 clients are left out")
    assert "model.max_length" in warning


@dataclasses.dataclass(frozen=True)
class Unmeasured:
    """Examples to learn from, none to be measured on."""

    def load(self, seed):
        return Dataset(Synthetic(num_owners=1, num_train=4).load(seed).train, {})

    def prompt(self, text):
        return text


def test_a_run_without_examples_to_be_measured_on_goes_through(tmp_path):
    run = carry_out(dataclasses.replace(QUICK, num_rounds=1, data=Unmeasured()), tmp_path)
    assert [line["kind"] for line in read(run.metrics_file)] == ["round", "client", "round", "end"]
    assert (run.adapter / "README.md").is_file()


def test_data_without_examples_are_refused_with_a_remedy():
    with pytest.raises(DataError, match="no training examples"):
        shards_of(QUICK, Dataset((), {}))


def test_changed_data_are_not_continued_with(tmp_path):
    run = carry_out(dataclasses.replace(QUICK, num_rounds=1), tmp_path)
    changed = dataclasses.replace(QUICK, data=Synthetic(num_owners=4, num_train=17, num_eval=16))
    with pytest.raises(RunError, match="the data of this run has changed"):
        Local().run(changed, run, lambda record: None)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(tmp_path):
    run = carry_out(QUICK, tmp_path)
    whole = final(run).read_bytes()
    state = run.checkpoints / "round-0002" / "state.safetensors"
    damaged = bytearray(state.read_bytes())
    damaged[-1] ^= 1
    state.write_bytes(bytes(damaged))
    told = []
    QUICK.federation.run(QUICK, run, told.append)
    warning = next(record for record in told if record["kind"] == "warning")
    assert "round-0002" in warning["text"]
    assert final(run).read_bytes() == whole


@pytest.mark.parametrize("at", ["dispatch", "client", "evaluate", "round", "conversation"])
def test_a_run_that_dies_anywhere_ends_with_the_same_bytes(tmp_path, at):
    class Death(BaseException):
        pass

    def dying(record):
        if record["kind"] == at and record["round"] >= 1:
            raise Death

    expected = final(carry_out(QUICK, tmp_path / "unbroken")).read_bytes()
    with pytest.raises(Death):
        carry_out(QUICK, tmp_path / "broken", dying)
    (path,) = (tmp_path / "broken").glob("*quick")
    run = folders.open_run(path)
    QUICK.federation.run(QUICK, run, lambda record: None)
    assert final(run).read_bytes() == expected
    assert [line["kind"] for line in read(run.metrics_file)].count("end") == 1
    assert checkpoint.sweep(run.checkpoints) == []


@pytest.mark.parametrize("num_workers", [0, -1])
def test_a_number_of_workers_out_of_range_is_refused(num_workers):
    with pytest.raises(ValueError, match="num_workers"):
        Local(num_workers=num_workers)


@dataclasses.dataclass(frozen=True)
class Hostile:
    """A transport whose replies are not to be trusted."""

    inner: LocalTransport
    spoil: object

    def nodes(self):
        return self.inner.nodes()

    def reports(self):
        return {}

    def look_again(self, why):
        return False

    def send(self, requests):
        self.inner.send(requests)

    def receive(self):
        for reply in self.inner.receive():
            yield from self.spoil(reply) if reply.client == "owner-0" else [reply]


def tensors_of(reply):
    return {name: tensor.clone() for name, tensor in Dense().decode(reply.payload).items()}


def with_tensors(reply, tensors):
    return dataclasses.replace(reply, payload=Dense().encode(tensors))


def first_changed(reply, change):
    tensors = tensors_of(reply)
    name = next(iter(tensors))
    return with_tensors(reply, {**tensors, name: change(tensors[name])})


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("stale", lambda r: dataclasses.replace(r, round=r.round - 1)),
        ("names", lambda r: with_tensors(r, {**tensors_of(r), "extra": torch.zeros(1)})),
        ("names", lambda r: with_tensors(r, dict(list(tensors_of(r).items())[1:]))),
        ("shape", lambda r: first_changed(r, lambda t: t[:1])),
        ("shape", lambda r: first_changed(r, lambda t: t.T.contiguous())),
        ("dtype", lambda r: first_changed(r, lambda t: t.bfloat16())),
        ("non_finite", lambda r: first_changed(r, lambda t: t + torch.inf)),
        ("non_finite", lambda r: dataclasses.replace(r, metrics={**r.metrics, "loss": float("nan")})),
        ("num_examples", lambda r: dataclasses.replace(r, num_examples=0)),
        ("num_examples", lambda r: dataclasses.replace(r, num_examples=-3)),
        ("num_examples", lambda r: dataclasses.replace(r, num_examples=10**12)),
        ("too_large", lambda r: first_changed(r, lambda t: t + 1e30)),
        ("malformed", lambda r: dataclasses.replace(r, payload=dataclasses.replace(r.payload, manifest=()))),
    ],
)
def test_a_bad_reply_is_refused_and_the_rest_is_what_it_would_be_without_it(tmp_path, reason, spoil):
    state, lines = one_round(tmp_path / "bad", lambda reply: [spoil(reply)])
    assert [line["refused"] for line in lines if line["kind"] == "client"] == [reason, None, None, None]
    without, _ = one_round(
        tmp_path / "without", lambda reply: [dataclasses.replace(reply, payload=None, error="failed")]
    )
    assert all(torch.equal(state[name], without[name]) for name in state)


def test_a_reply_that_comes_twice_or_from_nobody_counts_once_or_not(tmp_path):
    twice, lines = one_round(
        tmp_path / "twice", lambda reply: [reply, reply, dataclasses.replace(reply, client="nobody")]
    )
    once, _ = one_round(tmp_path / "once", lambda reply: [reply])
    assert len([line for line in lines if line["kind"] == "client"]) == 4
    assert all(torch.equal(twice[name], once[name]) for name in once)


def one_round(root, spoil):
    """State after a round in which owner-0's replies are spoilt, and the journal."""
    experiment = dataclasses.replace(QUICK, num_rounds=1)
    dataset = experiment.data.load(0)
    transport, workers, gate = transport_for(experiment, dataset)
    run = folders.create(root, "r", {"experiment.yaml": "", "environment.json": "{}"})
    facts = {"base": "", "data": "", "description": ""}
    rounds.serve(
        rounds.Server(gate, run, Hostile(transport, spoil), workers, dataset.evaluation, facts, lambda _: None)
    )
    import hashlib

    newest, _ = checkpoint.load_latest(run.checkpoints, identity=hashlib.sha256(b"").hexdigest())
    return newest.state, read(run.metrics_file)
