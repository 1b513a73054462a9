"""What ``fedgen benchmark memory`` measures, on the tiny model."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fedgen.errors import ConfigError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

TINY = ["model=tiny", "adapter=lora", "client.batch_size=2"]


@pytest.fixture(scope="module")
def told():
    from memory import measure

    return measure(TINY, sequence=64, steps=3)


def test_a_device_trains_and_tells_what_it_had(told):
    assert told["outcome"] == "fits"
    # A over the width of what it adapts, B over its outputs: q, k, v, o, gate, up, down of the upper two layers.
    widths = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 192), (64, 192), (192, 64)]
    assert told["num_trained"] == 2 * sum(8 * (inputs + outputs) for inputs, outputs in widths)
    assert told["loss_end"] < told["loss_start"]
    assert told["step_s"] > 0


def test_its_peak_is_above_its_imports(told):
    from memory import IMPORT_BOUND_MB

    assert 100 < told["import_mb"] < told["loaded_mb"] <= told["peak_mb"]
    assert told["import_mb"] <= IMPORT_BOUND_MB
    assert told["above_mb"] == told["peak_mb"] - told["import_mb"]


def test_a_small_parent_sees_the_same_peak():
    """A parent that has had more itself hands its own maximum on, so this one has done nothing else."""
    script = "import json, memory, sys; print(json.dumps(memory.measure(sys.argv[1:], sequence=64, steps=1)))"
    command = [sys.executable, "-c", script, *TINY]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "benchmarks", ROOT)))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["maxrss_mb"] == pytest.approx(told["peak_mb"], rel=0.01)


def test_nothing_but_its_imports_is_imported(told):
    """A package that came with loading or training would be counted as memory of these."""
    assert all(name.startswith("torch.") for name in told["late_modules"]), told["late_modules"]
    assert len(told["late_modules"]) <= 3


def test_more_tokens_need_more_memory(told):
    from memory import measure

    longer = measure([*TINY, "model.max_length=2048"], sequence=2048, steps=1)
    # One matrix of attention scores of one example, 4 heads, fp32, is 64 MB.
    assert longer["peak_mb"] > told["peak_mb"] + 64


def test_half_of_a_width_and_half_of_a_vocabulary_train(told):
    from memory import measure

    static = [*TINY, "extraction=static"]
    narrow = measure([*static, "extraction.axes=[ffn]"], sequence=64, steps=1, width=0.5)
    # A reads and B writes 96 of the 192 units between: of gate and up B, of down A.
    assert narrow["num_trained"] == told["num_trained"] - 2 * 3 * 8 * 96
    # Were a token drawn that the part does not hold, the process would end early.
    few = measure([*static, "extraction.axes=[vocab]"], sequence=64, steps=1, width=0.5)
    assert (few["outcome"], few["num_trained"]) == ("fits", told["num_trained"])


def test_what_was_received_is_there_while_a_device_trains():
    from memory import measure

    full = ["adapter=full", "export=merged", "client.optimizer=sgd", "client.batch_size=1"]
    told = measure([*full, "model=tiny", "model.hidden_size=512", "model.num_layers=8"], sequence=8, steps=1)
    size = 4 * told["num_trained"] / 2**20
    # As it was read, as it is trained, as it was received; trained, also as it was before, and gradients.
    assert 3 * size < told["loaded_mb"] - told["import_mb"] < 4 * size
    assert 5 * size < told["peak_mb"] - told["import_mb"] < 6 * size


def test_what_nobody_has_seen_is_drawn_from_a_seed_and_is_not_what_the_constants_have_seen():
    import admission
    import planner

    def drawn(seed):
        generator = random.Random(seed)
        return [admission.drawn(generator, Path("models")) for _ in range(admission.NUM_PROBES)]

    unseen = drawn(0)
    assert len(unseen) >= 30
    assert unseen == drawn(0) != drawn(1)
    assert all(32 <= probe.sequence <= 512 for probe in unseen)
    words = {word for probe in unseen for word in probe.overrides}
    assert {"model=tiny", "adapter=full", "adapter=frozen_a", "client=zeroth_order", "extraction=static"} <= words
    seen = {(probe.sequence, *sorted(probe.overrides)) for probe in planner.probes()}
    assert seen.isdisjoint((probe.sequence, *sorted([*planner.FIXED, *probe.overrides])) for probe in unseen)


def test_what_is_refused_is_drawn_anew(monkeypatch):
    import admission

    refused = iter([True, False, True, True, False])

    def row_of(probe):
        if next(refused):
            raise ConfigError("no")
        return {"configuration": " ".join(probe.overrides)}

    monkeypatch.setattr(admission, "row_of", row_of)
    found = list(admission.rows(0, 2, Path("models")))
    generator = random.Random(0)
    wanted = [admission.drawn(generator, Path("models")) for _ in range(5)]
    assert [row["width"] for row in found] == [wanted[1].width, wanted[4].width]
    assert [row["configuration"] for row in found] == [
        " ".join(wanted[k].overrides).replace("models/", "") for k in (1, 4)
    ]


def test_who_needed_more_than_it_was_let_in_with_is_counted_and_so_is_who_told_nothing():
    import planner

    good = {"predicted_mb": 110, "needed_mb": 120, "measured_mb": 100.0}
    bad = {"predicted_mb": 110, "needed_mb": 120, "measured_mb": float("nan")}
    error, above = planner.judged([good, {**good, "measured_mb": 125.0}]).values()
    assert error["value"] == pytest.approx((0.1 + 15 / 125) / 2)
    assert above["value"] == 1.0
    assert planner.judged([good, bad])["configurations above what they would be let in with"]["value"] == 1.0


def test_what_cannot_fit_is_said_to_be_refused(told):
    from memory import measure

    cap = round(told["import_mb"]) + 60
    assert measure(TINY, sequence=64, steps=1, cap_mb=round(told["peak_mb"]) + 200)["outcome"] == "fits"
    longer = measure([*TINY, "model.max_length=2048"], sequence=2048, steps=1, cap_mb=cap)
    assert longer["outcome"] == "refused"
    assert "emory" in longer["message"]


def test_a_configuration_that_is_wrong_is_the_callers_mistake():
    from memory import measure

    with pytest.raises(ConfigError, match="tinny"):
        measure(["model=tinny"])


def test_bounds_decide_the_exit_code(monkeypatch, capsys):
    import memory

    told = {"import_mb": 290.4, "above_mb": 451.0}
    monkeypatch.setattr(memory, "measure", lambda case, sequence, tight: {**told, "fastest_s": 3.0 if case else 1.0})
    cases = memory.Case("bf16", [], 450), memory.Case("4-bit", ["slow"], 500), memory.Case("int8", [])
    monkeypatch.setattr(memory, "CASES", cases)
    monkeypatch.setattr(memory, "SLOWER", {"4-bit": ("4-bit", "bf16", 2.5), "int8": ("int8", "bf16", 2.5)})
    assert memory.main(as_json=True) == 1
    printed = json.loads(capsys.readouterr().out)
    assert [figure["holds"] for figure in printed.values()] == [True, False, True, False, True]
    assert printed["4-bit, step over that of bf16"]["value"] == 3.0
    assert printed["imports of a device"] == {"value": 290.4, "bound": 300.0, "holds": True}


def test_a_process_that_ended_early_holds_no_bound(monkeypatch, capsys):
    import memory

    monkeypatch.setattr(memory, "measure", lambda case, sequence, tight: {"outcome": "killed", "message": "SIGKILL"})
    assert memory.main(as_json=False) == 1
    assert "killed, SIGKILL" in capsys.readouterr().out
