"""The planner against its own ladder: what it takes fits, is the first that does, and is carried out as it says."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgen import tree
from fedgen.adapter.full import Full as FullAdapter
from fedgen.adapter.lora import Lora
from fedgen.bases import Bases
from fedgen.client.first_order import FirstOrder
from fedgen.client.zeroth_order import ZerothOrder
from fedgen.data.synthetic import Synthetic
from fedgen.devices import Device, Rung
from fedgen.extraction.full import Full
from fedgen.extraction.ordered import Ordered
from fedgen.extraction.rolling import Rolling
from fedgen.extraction.static import Static
from fedgen.gate import prepare
from fedgen.model.tiny import Tiny
from fedgen.planner import planner_of
from fedgen.workers import Workers
from tests.conformance.grounds import CLIENTS, make_ground

TINY = Tiny(hidden_size=32, num_layers=4)
DATA = Synthetic(num_owners=3, num_train=8, num_eval=4, num_public=8)


def planner_for(**fields):
    stages = {"extraction": Full(), "light_client": ZerothOrder(num_steps=4, batch_size=2), "data": DATA, "model": TINY}
    stages |= {"adapter": Lora(rank=4), "client": FirstOrder(num_steps=3, batch_size=4), **fields}
    base = stages["model"].load(0)
    experiment = make_ground(base, stages.pop("adapter"), **stages).experiment
    workers = Workers(experiment.learners(base, 1))
    gate = prepare(experiment, base, workers, DATA.load(0), CLIENTS, plans=True)
    return workers.borrow(lambda learner: planner_of(gate.ground, learner, DATA.load(0).public))


PLANNER = planner_for()
NEEDED = [PLANNER.forecast(step, Device()).needed_bytes for step in PLANNER.ladder()]


def test_the_ladder_begins_as_the_experiment_is_and_each_rung_keeps_what_the_one_before_it_did():
    rungs = [step.rung for step in PLANNER.ladder()]
    assert rungs[0] == Rung("as configured", max_length=PLANNER.length)
    names = ["checkpointing", "one at a time", "small chunks", "int8 weights", "tight"]
    assert [rung.name for rung in rungs[1:6]] == names
    for before, after in itertools.pairwise(rungs[:-1]):
        kept = {k: v for k, v in dataclasses.asdict(before).items() if v and k not in ("name", "max_length")}
        assert kept.items() <= dataclasses.asdict(after).items()
    assert rungs[-1].light
    assert len({rung.name for rung in rungs}) == len(rungs)


@given(st.integers(min_value=min(NEEDED) - 2_000_000, max_value=int(max(NEEDED) * 1.1)))
def test_what_is_taken_is_the_first_that_fits(memory):
    found = PLANNER.choose(Device(memory_bytes=memory))
    fitting = [step for step, needed in zip(PLANNER.ladder(), NEEDED, strict=True) if needed <= memory]
    assert (found.step if found else None) == (fitting[0] if fitting else None)


def num_bytes(state):
    return sum(4 * tensor.numel() for tensor in state.values())


def test_clients_hold_what_their_optimisers_hold():
    # Moments are two for Adam; one copy is of what was there before; pieces add their gradients up in one more.
    assert FirstOrder(optimizer="adamw").held_bytes(100, 7) == 307
    assert FirstOrder(optimizer="sgd").held_bytes(100, 7) == 107
    assert FirstOrder(optimizer="sgd", batch_size=4, micro_batch=1).held_bytes(100, 7) == 207
    assert FirstOrder(optimizer="sgd", batch_size=4, micro_batch=8).held_bytes(100, 7) == 107
    # Where it came from, how far it has come, and either a direction or what the model makes.
    assert ZerothOrder().held_bytes(100, 7) == 300
    assert ZerothOrder().held_bytes(100, 170) == 370


@pytest.mark.parametrize(("optimizer", "copies"), [("adamw", 3), ("sgd", 1)])
def test_with_all_weights_trained_each_copy_of_them_is_counted_once(optimizer, copies):
    client = FirstOrder(num_steps=3, batch_size=4, optimizer=optimizer)
    planner = planner_for(adapter=FullAdapter(), client=client)
    step = next(planner.ladder())
    found, down_bytes, _ = planner._measure(step)
    size = num_bytes(planner.state)
    module = planner.ground.base.module
    tables = sum(buffer.nbytes for buffer in module.buffers())
    # As the model was read, as it is trained, as it was received, and what the client holds; one token for each byte
    # and four more; the classes' own objects.
    tensors = (3 + copies) * size + tables + found.step_bytes
    around = 290_000_000 + 35_000_000 + 365 * 260 + 5_500 * sum(1 for _ in module.modules())
    holes = max(0.6 * min(found.small_bytes[2**20], copies * size + found.step_bytes), 0.25 * found.small_bytes[2**20])
    assert down_bytes == size
    assert planner.forecast(step, Device()).peak_bytes == around + tensors + int(holes)


def test_a_rung_that_is_not_as_the_model_was_opened_holds_what_is_trained_once_more():
    first, second = list(PLANNER.ladder())[:2]
    weights = [PLANNER.forecast(step, Device()).weight_bytes for step in (first, second)]
    assert weights[1] - weights[0] == num_bytes(PLANNER.state)


def test_a_part_of_a_model_that_no_file_has_is_made_of_all_of_it():
    planner = planner_for(extraction=Static(axes=("ffn",)))
    first = next(planner.ladder())
    whole, half = (
        planner.forecast(dataclasses.replace(first, width=width), Device()).weight_bytes for width in (1.0, 0.5)
    )
    # Half of three matrices of 32 × 96 goes in each of four layers, and what they were cut out of stays.
    weights = sum(parameter.nbytes for parameter in planner.ground.base.module.parameters())
    assert half == whole - 4 * 3 * 48 * 32 * 4 + weights


def test_the_larger_the_model_the_larger_the_forecast():
    larger = planner_for(model=Tiny(hidden_size=64, num_layers=4))
    for small, large in zip(PLANNER.ladder(), larger.ladder(), strict=True):
        assert PLANNER.forecast(small, Device()).peak_bytes < larger.forecast(large, Device()).peak_bytes


def test_the_ladder_has_widths_only_where_parts_are_cut():
    def widths(**fields):
        return [step.width for step in planner_for(**fields).ladder() if step.width < 1]

    assert widths() == []
    assert widths(extraction=Rolling(axes=("ffn",))) == [0.75, 0.5, 0.25]
    assert widths(extraction=Rolling(axes=("ffn",)), extraction_mode="window") == []


def test_without_a_light_client_there_is_no_light_rung():
    assert not any(step.rung.light for step in planner_for(light_client=None).ladder())


def test_where_widths_are_drawn_a_step_is_that_of_the_widest_and_no_client_compares_losses():
    drawn, fixed = (planner_for(extraction=kind(axes=("ffn",))) for kind in (Ordered, Static))
    assert not any(step.rung.light for step in drawn.ladder())
    assert any(step.rung.light for step in fixed.ladder())
    first = [planner.forecast(next(planner.ladder()), Device()) for planner in (drawn, fixed)]
    assert first[0].step_bytes == first[1].step_bytes
    # A learner that draws widths stands beside the one that the device opened the model with.
    assert first[0].weight_bytes - first[1].weight_bytes == num_bytes(drawn.state)


def test_to_learn_from_the_widest_besides_takes_more():
    alone, taught = (planner_for(extraction=Ordered(axes=("ffn",), distill=distill)) for distill in (False, True))
    peaks = [planner.forecast(next(planner.ladder()), Device()).step_bytes for planner in (alone, taught)]
    assert peaks[0] < peaks[1]


def test_a_part_with_half_the_vocabulary_takes_half_of_its_rows():
    planner = planner_for(extraction=Static(axes=("vocab",)), adapter=FullAdapter())
    first = next(planner.ladder())
    whole, half = (planner.forecast(dataclasses.replace(first, width=width), Device()) for width in (1.0, 0.5))
    rows, width = planner.state["model.embed_tokens.weight"].shape
    assert whole.down_bytes - half.down_bytes == 4 * (rows // 2) * width


def test_weights_that_are_trained_are_never_held_in_few_bits():
    ladder = list(planner_for(adapter=FullAdapter()).ladder())
    assert {step.rung.dtype for step in ladder} == {None}
    assert "tight" in [step.rung.name for step in ladder]


@pytest.mark.parametrize(
    ("state", "reason"),
    [({"temperature_c": 90.0}, "too_hot"), ({"battery": 0.05}, "battery"), ({"memory_bytes": 1}, "memory")],
)
def test_who_cannot_work_declines_and_says_why(state, reason):
    device = dataclasses.replace(Device(memory_bytes=10**10), **state)
    assert PLANNER.choose(device) is None
    assert PLANNER.declined({"barn": device, "attic": Device(memory_bytes=10**10), "cellar": Device()}) == {
        "barn": reason
    }


@pytest.mark.parametrize("state", [{"temperature_c": 82.0}, {"battery": 0.2}])
def test_a_hot_device_or_one_low_on_charge_does_less(state):
    step = PLANNER.choose(Device(memory_bytes=10**10, **state)).step
    assert step.top_layers < 1 or step.rung.light


def test_if_all_decline_the_least_that_would_do_is_named():
    text = PLANNER.why_none([Device(memory_bytes=200_000_000)], ["memory"])
    assert "200 MB" in text
    assert f"needs {-(-min(NEEDED) // 10**6)} MB" in text


def test_seconds_follow_the_arithmetic():
    first, second = list(PLANNER.ladder())[:2]
    device = Device(step_seconds=2.0)
    assert PLANNER.forecast(first, device).seconds == pytest.approx(2.0 * 3)
    # Layers are computed once more on the way back.
    assert 1.05 < PLANNER.forecast(second, device).seconds / (2.0 * 3) < 1.5
    assert PLANNER.forecast(first, Device()).seconds is None


def test_bytes_are_those_of_the_tensors_that_travel():
    whole = PLANNER.forecast(next(PLANNER.ladder()), Device())
    assert whole.down_bytes == whole.up_bytes == sum(tensor.nbytes for tensor in PLANNER.state.values())
    half = next(step for step in PLANNER.ladder() if step.rung.name == "half rank")
    told = PLANNER.forecast(half, Device())
    assert told.down_bytes == whole.down_bytes / 2
    assert told.up_bytes == whole.up_bytes / 4


def test_the_part_of_a_step_trains_the_upper_layers_and_half_of_the_rank():
    half = next(step for step in PLANNER.ladder() if step.rung.name == "half rank")
    ground = PLANNER.ground
    part = ground.part("barn", 1, half.width, 0, half.top_layers, half.rank)
    returned = ground.returned(part, 1)
    assert {name.split(".layers.")[1][0] for name in returned} == {"2", "3"}
    assert {name.split(".layers.")[1][0] for name in ground.sent(part)} == {"0", "1", "2", "3"}
    for name, positions in returned.items():
        tensor = PLANNER.state[name]
        assert min(tree.extent(tensor, positions)) == 2 == min(tensor.shape) / 2
    learner = ground.at(half.rung).learner(part, 1, "barn")
    assert learner.parameters().keys() == returned.keys()


def test_a_base_is_loaded_once_for_each_type_of_weights():
    bases = Bases(PLANNER.ground.experiment, PLANNER.ground.base)
    assert bases.of(None) is PLANNER.ground.base
    assert bases.of("int8") is bases.of("int8")
    assert bases.of("int8").fingerprint == PLANNER.ground.base.fingerprint
    assert torch.equal(bases.of("float32").weights["model.norm.weight"], bases.of(None).weights["model.norm.weight"])
