"""What parts cost, in whole runs, against sums over the shapes of a model that is known by heart."""

import dataclasses
import itertools

import pytest
import torch

from fedgen.adapter.frozen_a import FrozenA
from fedgen.adapter.full import Full as FullAdapter
from fedgen.adapter.lora import Lora
from fedgen.aggregation.masked_mean import MaskedMean
from fedgen.aggregation.mean import Mean
from fedgen.data.synthetic import Synthetic
from fedgen.extraction.depth import Depth
from fedgen.extraction.full import Full as FullExtraction
from fedgen.extraction.importance import Importance
from fedgen.extraction.ordered import Ordered
from fedgen.extraction.rolling import Rolling
from fedgen.extraction.static import Static
from fedgen.federation.course import finished
from fedgen.fleet.levels import Levels
from fedgen.journal import read
from fedgen.model.tiny import Tiny
from fedgen.types import Dataset
from tests.unit.federation.test_local import QUICK, carry_out

WIDTHS = (1.0, 0.75, 0.5, 0.25)
UNITS = {1.0: (8, 2), 0.75: (6, 2), 0.5: (4, 1), 0.25: (2, 1)}
"""Feed-forward units and key-value groups at each width, rounded up."""
RANK = 2


@dataclasses.dataclass(frozen=True)
class Few:
    """Four owners of four examples, none to be measured on in the rounds, four that anybody may see."""

    def load(self, seed):
        made = Synthetic(num_owners=4, num_train=4, num_eval=1, num_public=4).load(seed)
        return Dataset(made.train, {}, public=made.public)

    def prompt(self, text):
        return text


@dataclasses.dataclass(frozen=True)
class Nothing:
    """Gives nothing away."""

    folder_name = "nothing"
    needs_adapter = False

    def write(self, learner, folder, card):
        (folder / "README.md").write_text("")


SMALL = dataclasses.replace(
    QUICK,
    name="small",
    fleet=Levels(widths=WIDTHS, has_base=False),
    data=Few(),
    model=Tiny(hidden_size=16, num_heads=2, num_kv_heads=2, intermediate_size=8),
    adapter=Lora(rank=RANK),
    aggregation=MaskedMean(),
    export=Nothing(),
)


def projections(num_ffn, num_kv):
    """Outputs and inputs of the projections of a layer; heads are 8 wide, and one reads each group."""
    heads = 8 * num_kv
    return [(heads, 16)] * 3 + [(16, heads)] + [(num_ffn, 16)] * 2 + [(16, num_ffn)]


def base_shapes(num_ffn, num_kv, num_layers=2):
    layer = [*projections(num_ffn, num_kv), (16,), (16,)]
    return [(260, 16), (16,), *layer * num_layers]


def factors(num_ffn, num_kv, num_layers=2, *, a=True, b=True):
    pairs = projections(num_ffn, num_kv) * num_layers
    return [(RANK, i) for _, i in pairs if a] + [(o, RANK) for o, _ in pairs if b]


def entries(shapes):
    return sum(torch.Size(shape).numel() for shape in shapes)


def wire_bytes(shapes):
    """Four bytes an entry, every tensor padded to 64."""
    return sum(-(-4 * entries([shape]) // 64) * 64 for shape in shapes)


def travelling(adapter, *size):
    if isinstance(adapter, FullAdapter):
        return base_shapes(*size)
    return factors(*size, a=isinstance(adapter, Lora))


def clients_of(run):
    lines = [line for line in read(run.metrics_file) if line["kind"] == "client"]
    assert all(line["refused"] is None for line in lines)
    return lines


@pytest.mark.parametrize("mode", ["cut", "window"])
@pytest.mark.parametrize("adapter", [Lora(rank=RANK), FrozenA(rank=RANK), FullAdapter()])
def test_all_bytes_of_a_turn(tmp_path, adapter, mode):
    """Tiles of a rolling window: what half a client held is new in the second round, and so on."""
    lines = clients_of(
        carry_out(
            dataclasses.replace(SMALL, adapter=adapter, extraction=Rolling(stride=None), extraction_mode=mode), tmp_path
        )
    )
    assert sorted(line["width"] for line in lines) == sorted(WIDTHS * 2)
    # Of 6 units that begin at 0 and then at 6 of 8, two are new; of all others' all, and of two groups none.
    entered = {1.0: (0, 0), 0.75: (2, 0), 0.5: (4, 1), 0.25: (2, 1)}
    for line in lines:
        size = UNITS[line["width"]]
        cut, whole = travelling(adapter, *size), travelling(adapter, 8, 2)
        sent = cut if mode == "cut" else whole
        if isinstance(adapter, FullAdapter):
            base_bytes = 0
        elif line["round"] == 1:
            base_bytes = 4 * entries(base_shapes(*(size if mode == "cut" else (8, 2))))
        else:
            num_ffn, num_kv = entered[line["width"]] if mode == "cut" else (0, 0)
            base_bytes = 2 * 4 * (num_ffn * 3 * 16 + num_kv * 4 * 8 * 16)
        assert line["base_bytes"] == base_bytes
        assert line["bytes_down"] == wire_bytes(sent) + base_bytes
        assert line["bytes_up"] == wire_bytes(cut)
        # Of every trained entry a gradient and two moments, of every tensor the number of its step.
        assert line["train_bytes"] == 4 * (3 * entries(cut) + len(cut))
        held = size if mode == "cut" else (8, 2)
        own = 0 if isinstance(adapter, FullAdapter) else entries(factors(*held))
        if mode == "cut":
            assert line["held_bytes"] == 4 * (entries(base_shapes(*held)) + own)
        else:
            assert line["held_bytes"] >= 4 * (entries(base_shapes(*held)) + own)


def test_less_is_held_by_narrower_devices(tmp_path):
    lines = clients_of(carry_out(dataclasses.replace(SMALL, extraction=Ordered(widths=WIDTHS[::-1])), tmp_path))
    held = {line["width"]: line["held_bytes"] for line in lines}
    assert all(held[wide] > held[narrow] for wide, narrow in itertools.pairwise(WIDTHS))


@pytest.mark.parametrize(
    "extraction", [Static(), Importance(), Ordered(widths=(0.25, 0.5, 0.75, 1.0)), Depth(), FullExtraction()]
)
def test_a_part_that_stays_the_same_is_fetched_once(tmp_path, extraction):
    lines = clients_of(carry_out(dataclasses.replace(SMALL, extraction=extraction), tmp_path))
    for line in lines:
        size = UNITS[line["width"]]
        if isinstance(extraction, Depth):
            size = (8, 2, 2 if line["width"] > 0.5 else 1)
        expected = 4 * entries(base_shapes(*size)) if line["round"] == 1 else 0
        assert line["base_bytes"] == expected
        assert line["bytes_down"] == wire_bytes(factors(*size)) + expected
        assert line["bytes_up"] == wire_bytes(factors(*size))
    widths = {line["width"] for line in lines}
    assert widths == ({1.0} if isinstance(extraction, FullExtraction) else set(WIDTHS))


def test_devices_with_the_checkpoint_fetch_nothing(tmp_path):
    lines = clients_of(
        carry_out(dataclasses.replace(SMALL, extraction=Rolling(), fleet=Levels(widths=WIDTHS)), tmp_path)
    )
    assert {line["base_bytes"] for line in lines} == {0}
    assert all(line["bytes_down"] == line["bytes_up"] for line in lines)


@pytest.mark.parametrize("adapter", [Lora(rank=RANK), FullAdapter()])
def test_a_single_client_with_the_whole_model_is_fedavg(tmp_path, adapter):
    one = dataclasses.replace(SMALL, adapter=adapter, fleet=Levels(widths=(1.0,)), data=Synthetic(1, 4, 1))
    masked = carry_out(dataclasses.replace(one, name="masked", extraction=Rolling()), tmp_path)
    plain = carry_out(dataclasses.replace(one, name="plain", aggregation=Mean()), tmp_path)
    states = [finished(one, run)[1].state for run in (masked, plain)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.allclose(tensor, states[1][name], atol=1e-6), name
