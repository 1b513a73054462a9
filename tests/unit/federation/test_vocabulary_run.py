"""Whole runs in which devices hold some of the tokens."""

import dataclasses

import pytest
import torch

from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.client.first_order import FirstOrder
from fedgen.errors import RunError
from fedgen.extraction.importance import Importance
from fedgen.extraction.ordered import Ordered
from fedgen.extraction.random import Random
from fedgen.extraction.static import Static
from fedgen.federation.course import finished
from fedgen.federation.local import Local
from fedgen.fleet.levels import Levels
from fedgen.fleet.uniform import Uniform
from tests.unit.federation.test_parts_run import PARTS, carry_out, final, lines_of, named

TOKENS = dataclasses.replace(PARTS, extraction=Importance(axes=("ffn", "vocab")), adapter=Full())
"""Half of the devices hold 130 of 260 tokens; the language has fewer, and the public examples have most of them."""

EMBEDDING = "model.embed_tokens.weight"


def initial(experiment):
    (learner,) = experiment.learners(experiment.base(), 1)
    return experiment.initial_state(learner)


@pytest.mark.parametrize("adapter", [Full(), Lora(rank=2)], ids=named)
def test_a_run_with_parts_of_the_vocabulary_trains_and_repeats_bit_by_bit(tmp_path, adapter):
    experiment = dataclasses.replace(TOKENS, adapter=adapter)
    runs = [
        carry_out(dataclasses.replace(experiment, federation=Local(num_workers=n)), tmp_path / str(n)) for n in (1, 2)
    ]
    assert final(runs[0]).read_bytes() == final(runs[1]).read_bytes()
    clients = lines_of(runs[0], "client")
    assert {line["width"] for line in clients} == {1.0, 0.5}
    assert all(line["refused"] is None and line["num_not_held"] == 0 for line in clients)
    _, newest = finished(experiment, runs[0])
    start = initial(experiment)
    assert all(not torch.equal(newest.state[name], start[name]) for name in start if "mlp" in name)
    coverage = lines_of(runs[0], "round")[-1]["coverage"]
    if isinstance(adapter, Full):
        # Two wide devices hold all rows, and two narrow ones with as many examples half of them.
        assert coverage["units"].keys() == {"ffn", "vocab"}
        assert coverage["tensors"][EMBEDDING] == {"held": 0.75, "never": 0.0}
        assert sum(coverage["units"]["vocab"]) / 32 == pytest.approx(0.75, abs=0.02)
        rows = 4 * 32 * 130
        ffn = 3 * 3 * 4 * 32 * 48
        up = {line["width"]: line["bytes_up"] for line in clients}
        assert up[1.0] - up[0.5] == rows + ffn
    else:
        # Factors do not lie on the tokens.
        assert coverage["units"].keys() == {"ffn"}
    held = [max(line["held_bytes"] for line in clients if line["width"] == width) for width in (0.5, 1.0)]
    assert held[1] - held[0] >= 4 * 32 * 130


def most_frequent(experiment, num_kept):
    """Special tokens, and those that occur most often in public."""
    base = experiment.base()
    counts = torch.zeros(260)
    for encoded in base.learner(base.replica(private=False), {}).encode(experiment.data.load(0).public):
        counts += torch.bincount(torch.tensor(encoded.ids), minlength=260)
    special = base.protected["vocab"].tolist()
    others = [token for token in torch.argsort(counts, descending=True, stable=True).tolist() if token not in special]
    return sorted([*special, *others[: num_kept - len(special)]])


def test_rows_that_no_device_holds_stay_as_they_were_to_the_bit(tmp_path):
    experiment = dataclasses.replace(TOKENS, extraction=Importance(axes=("vocab",)), fleet=Uniform(width=0.4))
    run = carry_out(experiment, tmp_path)
    _, newest = finished(experiment, run)
    # The softmax is over all tokens that are held, so each of their rows has a gradient.
    changed = (newest.state[EMBEDDING] != initial(experiment)[EMBEDDING]).any(1).nonzero().view(-1).tolist()
    assert changed == most_frequent(experiment, 104)
    assert "60.0% of vocab will never be trained" in lines_of(run, "warning")[0]["text"]


def test_examples_with_a_token_that_is_not_held_are_left_out_and_counted(tmp_path):
    experiment = dataclasses.replace(TOKENS, extraction=Importance(axes=("vocab",)), fleet=Uniform(width=32 / 260))
    run = carry_out(experiment, tmp_path)
    kept = {*most_frequent(experiment, 32)}
    base, dataset = experiment.base(), experiment.data.load(0)
    whole = base.learner(base.replica(private=False), {})
    first = [line for line in lines_of(run, "client") if line["round"] == 1]
    for line in first:
        own = [e for e in dataset.train if e.owner == line["client"]]
        said = [e for e in whole.encode(own) if {*e.ids} <= kept]
        assert (line["num_examples"], line["num_not_held"]) == (len(said), len(own) - len(said))
    counts = [line["num_not_held"] for line in first if line["num_not_held"]]
    assert 0 < sum(counts) < 32
    text = f"{sum(counts)} examples of {len(counts)} clients are left out: their parts lack some of their tokens; "
    assert any(line["text"].startswith(text) for line in lines_of(run, "warning") if line["round"] == 1)


def test_a_client_of_whose_examples_none_can_be_said_is_refused_in_a_word(tmp_path):
    # The first tokens are capital letters and digits.
    experiment = dataclasses.replace(
        TOKENS, extraction=Static(axes=("vocab",)), fleet=Levels(widths=(1.0, 0.1)), num_rounds=1
    )
    run = carry_out(experiment, tmp_path)
    refused = {line["width"]: line["refused"] for line in lines_of(run, "client")}
    assert refused == {1.0: None, 0.1: "tokens_not_held"}
    with pytest.raises(RunError, match="tokens_not_held"):
        carry_out(dataclasses.replace(experiment, fleet=Uniform(width=0.1), num_rounds=3), tmp_path / "nobody")


@pytest.mark.parametrize(
    "changes",
    [
        {"extraction_mode": "window"},
        {"extraction_mode": "window", "extraction": Random(axes=("vocab",))},
        {"extraction_mode": "window", "adapter": Lora(rank=2), "extraction": Random(axes=("vocab", "kv"))},
        {"extraction": Ordered(axes=("ffn", "vocab"), widths=(0.5, 0.9), distill=True), "fleet": Uniform(width=0.9)},
        {"client": FirstOrder(num_steps=2, mask_absent=True)},
        {"scale_parts": True},
        {"extraction": Static(axes=("vocab", "residual")), "fleet": Levels(widths=(1.0, 0.9))},
        {"gate_margin": 5.0},
    ],
    ids=["window", "random-window", "lora-window", "ordered", "masked", "scaled", "residual", "gate"],
)
def test_what_goes_with_parts_goes_with_parts_of_the_vocabulary(tmp_path, changes):
    run = carry_out(dataclasses.replace(TOKENS, **changes), tmp_path)
    clients = lines_of(run, "client")
    assert all(line["refused"] is None and line["loss"] > 0 for line in clients)
    if changes.get("extraction_mode") == "window":
        assert all(line["num_not_held"] == 0 for line in clients)


def test_a_window_on_the_tokens_changes_its_rows_and_no_other(tmp_path):
    experiment = dataclasses.replace(
        TOKENS, extraction_mode="window", extraction=Importance(axes=("vocab",)), fleet=Uniform(width=0.1), num_rounds=1
    )
    run = carry_out(experiment, tmp_path)
    _, newest = finished(experiment, run)
    changed = (newest.state[EMBEDDING] != initial(experiment)[EMBEDDING]).any(1).nonzero().view(-1).tolist()
    assert changed == most_frequent(experiment, 26)
    assert all(line["num_not_held"] == 0 for line in lines_of(run, "client"))
