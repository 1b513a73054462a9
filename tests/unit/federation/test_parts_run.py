"""Whole runs in which devices get parts of the tiny model: every strategy, both modes, every adapter."""

import dataclasses
import hashlib

import pytest
import torch

from fedgen import checkpoint, rounds, tree
from fedgen import run as folders
from fedgen.adapter.frozen_a import FrozenA
from fedgen.adapter.full import Full as FullAdapter
from fedgen.adapter.lora import Lora
from fedgen.aggregation.flexlora import Flexlora
from fedgen.aggregation.masked_mean import MaskedMean
from fedgen.client.first_order import FirstOrder
from fedgen.data.synthetic import Synthetic
from fedgen.errors import ConfigError, RunError
from fedgen.evaluation.exact_match import ExactMatch
from fedgen.experiment import Experiment
from fedgen.export.adapter import Adapter
from fedgen.export.merged import Merged
from fedgen.extraction.anchored import Anchored
from fedgen.extraction.depth import Depth
from fedgen.extraction.full import Full as FullExtraction
from fedgen.extraction.importance import Importance
from fedgen.extraction.ordered import Ordered
from fedgen.extraction.random import Random
from fedgen.extraction.rolling import Rolling
from fedgen.extraction.static import Static
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


PARTS = Experiment(
    name="parts",
    num_rounds=2,
    evaluate_every=2,
    num_evaluated=8,
    num_evaluated_per_round=8,
    fleet=Levels(widths=(1.0, 0.5)),
    data=Unmeasured(),
    partition=ByOwner(),
    model=Tiny(hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=4),
    adapter=Lora(rank=2, alpha=4.0),
    extraction=Rolling(stride=None),
    client=FirstOrder(learning_rate=1e-2, num_steps=2, batch_size=4),
    selection=All(),
    wire=Dense(),
    aggregation=MaskedMean(momentum=0.5),
    evaluation=ExactMatch(),
    export=Merged(),
    federation=Local(num_workers=2),
)
EXTRACTIONS = [
    Static(),
    Ordered(widths=(0.25, 0.5, 1.0), distill=True),
    Rolling(),
    Random(),
    Importance(),
    Anchored(),
    Depth(num_first=1),
]
ADAPTERS = [Lora(rank=2), FrozenA(rank=2), FullAdapter()]


def named(value):
    return type(value).__name__


def carry_out(experiment, root, observe=lambda record: None):
    run = folders.create(root, experiment.name, {"experiment.yaml": "x: 1\n", "environment.json": "{}"})
    experiment.federation.run(experiment, run, observe)
    return run


def final(run):
    return sorted(run.checkpoints.glob("round-*"))[-1] / "state.safetensors"


def lines_of(run, kind):
    return [line for line in read(run.metrics_file) if line["kind"] == kind]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=named)
@pytest.mark.parametrize("mode", ["cut", "window"])
@pytest.mark.parametrize("extraction", EXTRACTIONS, ids=named)
def test_every_strategy_goes_through_and_sends_what_was_planned(tmp_path, extraction, mode, adapter):
    experiment = dataclasses.replace(PARTS, extraction=extraction, extraction_mode=mode, adapter=adapter)
    run = carry_out(experiment, tmp_path)
    clients = lines_of(run, "client")
    assert {line["width"] for line in clients} == {1.0, 0.5}
    assert all(line["refused"] is None and line["loss"] > 0 for line in clients)
    # The bytes are those of the plan: four for every planned entry, each tensor padded to 64.
    base = experiment.base()
    dataset = experiment.data.load(0)
    shards = shards_of(experiment, dataset)
    workers = Workers(experiment.learners(base, 1))
    ground = prepare(experiment, base, workers, dataset, sorted(shards)).ground
    whole = {**ground.fixed, **workers.borrow(experiment.initial_state)}
    for line in clients:
        part = ground.part(line["client"], line["round"], line["width"])
        for plan, told in ((ground.sent(part), "bytes_down"), (ground.returned(part, line["round"]), "bytes_up")):
            sizes = [4 * torch.Size(tree.extent(whole[name], kept)).numel() for name, kept in plan.items()]
            assert line[told] == sum(-(-size // 64) * 64 for size in sizes)
    narrow, wide = (max(n["held_bytes"] for n in clients if n["width"] == width) for width in (0.5, 1.0))
    assert narrow < wide if mode == "cut" else narrow >= wide
    trained = [max(line["train_bytes"] for line in clients if line["width"] == width) for width in (0.5, 1.0)]
    assert 0 < trained[0] < trained[1]
    coverage = lines_of(run, "round")[-1]["coverage"]
    assert coverage["units"].keys() == set(extraction.axes)
    assert {0.0} == {told["never"] for told in coverage["tensors"].values()}  # two devices hold everything
    assert min(told["held"] for told in coverage["tensors"].values()) < 1


def test_the_number_of_workers_changes_no_bit(tmp_path):
    runs = [
        carry_out(dataclasses.replace(PARTS, name=f"w{n}", federation=Local(num_workers=n)), tmp_path) for n in (1, 3)
    ]
    assert final(runs[0]).read_bytes() == final(runs[1]).read_bytes()


@pytest.mark.parametrize("at", [("client", 2), ("dispatch", 3), ("round", 3)])
def test_a_run_that_dies_in_the_middle_of_a_cycle_goes_on_with_the_same_parts(tmp_path, at):
    class Death(BaseException):
        pass

    def dying(record):
        if (record["kind"], record["round"]) == at:
            raise Death

    experiment = dataclasses.replace(
        PARTS, num_rounds=4, extraction=Rolling(stride=3), fleet=Levels(widths=(0.5, 0.25), has_base=False)
    )
    unbroken = carry_out(experiment, tmp_path / "unbroken")
    with pytest.raises(Death):
        carry_out(experiment, tmp_path / "broken", dying)
    (path,) = (tmp_path / "broken").glob("*parts")
    run = folders.open_run(path)
    experiment.federation.run(experiment, run, lambda record: None)
    assert final(run).read_bytes() == final(unbroken).read_bytes()
    told = [
        [(line["client"], line["width"], line["base_bytes"], line["bytes_up"]) for line in lines_of(one, "client")]
        for one in (run, unbroken)
    ]
    assert told[0] == told[1]
    assert any(base_bytes for _, _, base_bytes, _ in told[0])
    covered = [[line["coverage"] for line in lines_of(one, "round")[1:]] for one in (run, unbroken)]
    assert covered[0] == covered[1]


def test_if_everybody_holds_everything_no_part_is_made_and_no_bit_differs(tmp_path):
    whole = dataclasses.replace(PARTS, fleet=Uniform())
    runs = [
        carry_out(dataclasses.replace(whole, name=f"e{number}", extraction=extraction), tmp_path)
        for number, extraction in enumerate((FullExtraction(), Rolling(), Random(), Importance()))
    ]
    assert len({final(run).read_bytes() for run in runs}) == 1


def test_what_nobody_holds_stays_as_it_was_to_the_bit(tmp_path):
    experiment = dataclasses.replace(PARTS, fleet=Uniform(width=0.5), extraction=Static(), adapter=FullAdapter())
    run = carry_out(experiment, tmp_path)
    _, newest = finished(experiment, run)
    start = experiment.initial_state(experiment.learners(experiment.base(), 1)[0])
    for name in ("model.layers.1.mlp.gate_proj.weight", "model.layers.2.self_attn.q_proj.weight"):
        half = len(start[name]) // 2
        assert torch.equal(newest.state[name][half:], start[name][half:])
        assert not torch.equal(newest.state[name][:half], start[name][:half])
    (warning,) = lines_of(run, "warning")
    assert "50.0% of kv, 50.0% of ffn will never be trained" in warning["text"] or (
        "50.0% of ffn, 50.0% of kv will never be trained" in warning["text"]
    )


def test_devices_that_are_too_small_are_never_asked(tmp_path):
    run = carry_out(dataclasses.replace(PARTS, fleet=Levels(widths=(1.0, 0.5), min_width=0.75)), tmp_path)
    assert {line["width"] for line in lines_of(run, "client")} == {1.0}
    assert len(lines_of(run, "client")) == 4


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A fleet of which nobody can hold anything."""

    def devices(self, clients, round, seed):
        found = Levels(widths=(0.5,)).devices(clients, round, seed)
        return {client: dataclasses.replace(device, width=0.0) for client, device in found.items()}


def test_a_fleet_in_which_nobody_takes_part_stops_with_the_way_out(tmp_path):
    with pytest.raises(RunError, match=r"none of 4 devices takes part in round 1.*fleet\.min_width"):
        carry_out(dataclasses.replace(PARTS, fleet=Nothing()), tmp_path)


def test_a_stride_that_cannot_reach_all_ends_the_run_before_anything_is_trained(tmp_path):
    # 96 units, half of them kept, always the same window: gcd(96, 96) = 96 > 48.
    experiment = dataclasses.replace(PARTS, extraction=Rolling(axes=("ffn",), stride=96))
    with pytest.raises(ConfigError, match=r"extraction\.stride is 96"):
        carry_out(experiment, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregation": Flexlora(), "extraction": Rolling(axes=("ffn", "rank"), stride=None)},
        {"scale_parts": True},
        {"scale_parts": True, "adapter": FullAdapter()},
        {"client": FirstOrder(num_steps=2, mask_absent=True)},
        {"adapter": Lora(rank=2, alternate=True)},
        {"extraction": Static(axes=("residual", "ffn")), "adapter": FullAdapter()},
        {"fleet": Levels(widths=(1.0, 0.5, 0.25), redraw=True)},
    ],
    ids=["flexlora", "scaled", "scaled-full", "masked", "alternate", "residual", "redrawn"],
)
def test_what_goes_with_parts_goes_through_and_makes_a_difference(tmp_path, changes):
    plain = carry_out(dataclasses.replace(PARTS, name="plain"), tmp_path)
    other = carry_out(dataclasses.replace(PARTS, name="other", **changes), tmp_path)
    assert all(line["refused"] is None for line in lines_of(other, "client"))
    assert final(other).read_bytes() != final(plain).read_bytes()


def test_the_trained_parts_are_exported_as_an_adapter_that_peft_reads(tmp_path):
    run = carry_out(dataclasses.replace(PARTS, export=Adapter(), adapter=FrozenA(rank=2)), tmp_path)
    from safetensors.torch import load_file

    written = load_file(run.adapter / "adapter_model.safetensors")
    _, newest = finished(dataclasses.replace(PARTS, adapter=FrozenA(rank=2)), run)
    assert any(".lora_A." in name for name in written)  # A is in the file, though it never travelled
    assert all(torch.equal(written[name], tensor) for name, tensor in newest.state.items())


def test_a_window_on_what_has_none_is_refused_when_the_experiment_is_built():
    with pytest.raises(ValueError, match=r"extraction\.axes has residual.*ffn, kv and vocab"):
        dataclasses.replace(
            PARTS, extraction=Static(axes=("residual",)), extraction_mode="window", adapter=FullAdapter()
        )


# --- replies that do not follow their plan --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Meddling:
    """A transport that changes requests on the way out and replies on the way back."""

    inner: LocalTransport
    before: object
    after: object

    def nodes(self):
        return self.inner.nodes()

    def reports(self):
        return {}

    def look_again(self, why):
        return False

    def send(self, requests):
        self.inner.send(self.before(request) for request in requests)

    def receive(self):
        yield from self.after(list(self.inner.receive()))


def one_round(root, before=lambda request: request, after=lambda replies: replies, **changes):
    """State after a round of a fleet of parts, its journal, and what the loop was told."""
    experiment = dataclasses.replace(PARTS, num_rounds=1, fleet=Levels(widths=(1.0, 0.5, 0.25)), **changes)
    dataset, base = experiment.data.load(0), experiment.base()
    shards = shards_of(experiment, dataset)
    workers = Workers(experiment.learners(base, 1))
    gate = prepare(experiment, base, workers, dataset, sorted(shards))
    transport = Meddling(LocalTransport(gate.ground, workers, shards), before, after)
    run = folders.create(root, "r", {"experiment.yaml": "", "environment.json": "{}"})
    facts = {"base": "", "data": "", "description": ""}
    rounds.serve(rounds.Server(gate, run, transport, workers, dataset.evaluation, facts, lambda _: None))
    newest, _ = checkpoint.load_latest(run.checkpoints, identity=hashlib.sha256(b"").hexdigest())
    return newest.state, lines_of(run, "client")


def swapped(replies):
    """Each client's payload under the name of another, of another width."""
    wide, narrow, *rest = sorted(replies, key=lambda reply: -reply.payload.num_bytes)[:1] + sorted(
        replies, key=lambda reply: reply.payload.num_bytes
    )
    others = [reply for reply in rest if reply.client not in (wide.client, narrow.client)]
    return [
        dataclasses.replace(wide, payload=narrow.payload),
        dataclasses.replace(narrow, payload=wide.payload),
        *others,
    ]


def test_a_change_to_another_clients_part_is_refused(tmp_path):
    _, lines = one_round(tmp_path, after=swapped)
    assert sorted(str(line["refused"]) for line in lines) == ["None", "None", "shape", "shape"]


def test_the_plan_of_another_round_is_not_taken_again(tmp_path):
    def replayed(replies):
        return [dataclasses.replace(replies[0], round=0), *replies[1:]]

    _, lines = one_round(tmp_path, after=replayed)
    assert [line["refused"] for line in lines].count("stale") == 1


def test_a_part_of_another_model_is_refused_by_the_device(tmp_path):
    def other(request):
        return dataclasses.replace(request, base="0" * 64) if request.client == "owner-1" else request

    _, lines = one_round(tmp_path, before=other)
    assert [line["refused"] for line in lines] == [None, "other_base", None, None]


def test_the_order_of_arrival_changes_no_bit(tmp_path):
    states = [
        one_round(tmp_path / str(number), after=order)[0]
        for number, order in enumerate((lambda r: r, lambda r: r[::-1], lambda r: [*r[2:], *r[:2]]))
    ]
    assert all(torch.equal(states[0][name], other[name]) for other in states[1:] for name in other)


def test_an_update_that_the_aggregation_refuses_is_counted(tmp_path):
    def huge(replies):
        reply = next(reply for reply in replies if reply.client == "owner-2")
        tensors = {name: torch.full_like(t, 1e38) for name, t in Dense().decode(reply.payload).items()}
        changed = dataclasses.replace(reply, payload=Dense().encode(tensors))
        return [changed if other is reply else other for other in replies]

    state, lines = one_round(tmp_path / "huge", after=huge)
    assert [line["refused"] for line in lines] == [None, None, "too_large", None]
    without, _ = one_round(
        tmp_path / "without",
        after=lambda replies: [
            dataclasses.replace(r, payload=None, error="failed") if r.client == "owner-2" else r for r in replies
        ],
    )
    assert all(torch.equal(state[name], without[name]) for name in state)
