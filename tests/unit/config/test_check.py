"""From plain configs to experiments, and every fault at once."""

import copy
import functools
import sys

import pytest
import torch

from fedgen.client.first_order import FirstOrder
from fedgen.config import check
from fedgen.errors import ConfigError
from fedgen.experiment import Experiment

TARGETS = {
    "fleet": "fedgen.fleet.uniform.Uniform",
    "data": "fedgen.data.synthetic.Synthetic",
    "partition": "fedgen.partition.by_owner.ByOwner",
    "model": "fedgen.model.tiny.Tiny",
    "adapter": "fedgen.adapter.lora.Lora",
    "extraction": "fedgen.extraction.full.Full",
    "client": "fedgen.client.first_order.FirstOrder",
    "selection": "fedgen.selection.all.All",
    "wire": "fedgen.wire.dense.Dense",
    "aggregation": "fedgen.aggregation.mean.Mean",
    "evaluation": "fedgen.evaluation.exact_match.ExactMatch",
    "export": "fedgen.export.adapter.Adapter",
    "federation": "fedgen.federation.local.Local",
}


@pytest.fixture
def config():
    return {"_target_": check.ROOT, **{stage: {"_target_": target} for stage, target in TARGETS.items()}}


def faults_of(config):
    with pytest.raises(ConfigError) as caught:
        check.build(config)
    return str(caught.value).splitlines()


def test_a_sound_config_becomes_the_experiment(config):
    config["seed"] = 7
    config["client"] |= {"learning_rate": "1e-3", "num_steps": 2}
    config["adapter"]["targets"] = ["q_proj", "v_proj"]
    experiment = check.build(config)
    assert isinstance(experiment, Experiment)
    assert experiment.seed == 7
    assert experiment.client == FirstOrder(learning_rate=1e-3, num_steps=2)
    assert experiment.adapter.targets == ("q_proj", "v_proj")
    assert hash(experiment) == hash(check.build(copy.deepcopy(config)))


def test_all_faults_are_told_at_once_each_with_its_full_key(config):
    config["seeed"] = 1
    config["num_rounds"] = 2.5
    config["client"]["learning_rat"] = 1
    config["client"]["num_steps"] = "many"
    config["aggregation"]["momentum"] = 1.5
    config["data"] = {"_target_": "fedgen.data.jsonl.Jsonl"}
    del config["model"]
    first, *faults = faults_of(config)
    assert first == "the configuration has 7 faults:"
    text = "\n".join(faults)
    assert "  seeed: Experiment has no such key; did you mean 'seed'?; it has name, seed" in text
    assert "  num_rounds: 2.5 is not a whole number" in text
    assert "  client.learning_rat: FirstOrder has no such key; did you mean 'learning_rate'?" in text
    assert "  client.num_steps: 'many' is not a whole number" in text
    assert "  aggregation.momentum is 1.5; it must be at least 0 and below 1" in text
    assert "  data.path is missing" in text
    assert "  model is missing; options of model: causal_lm, tiny" in text


def test_values_out_of_range_bear_the_key_that_was_typed(config):
    config["client"]["learning_rate"] = -1
    assert faults_of(config)[1].startswith("  client.learning_rate is -1.0; it must be positive")


def test_the_root_refuses_values_out_of_range(config):
    config["num_rounds"] = 0
    assert faults_of(config)[1] == "  num_rounds is 0; it must be at least 1"


def test_stages_that_do_not_go_together_are_refused(config):
    config["adapter"] = {"_target_": "fedgen.adapter.full.Full"}
    assert "choose export=merged" in faults_of(config)[1]


def test_a_missing_value_is_told_with_its_key(config):
    config["data"] = {"_target_": "fedgen.data.jsonl.Jsonl", "path": "???"}
    assert faults_of(config)[1] == "  data.path is missing; give it a value: data.path=..."


@pytest.mark.parametrize("value", [None, "tiny", 3, {}, {"hidden_size": 3}, "???"])
def test_a_stage_that_is_no_option_is_refused(config, value):
    config["model"] = value
    fault = faults_of(config)[1]
    assert fault.startswith("  model")
    assert "causal_lm, tiny" in fault or "is missing" in fault


@pytest.mark.parametrize(
    ("stage", "target"),
    [
        ("client", "builtins.eval"),
        ("client", "os.system"),
        ("client", "subprocess.Popen"),
        ("client", "fedgen.cli.main.main"),
        ("client", "fedgen.wire.dense.Dense"),
        ("client", "fedgen.client.first_order.ClientError"),
        ("client", "fedgen.client.first_order.math.floor"),
        ("client", "fedgen.client.first_order."),
        ("client", "torch.optim.SGD"),
        ("client", ""),
    ],
)
def test_only_options_of_the_stage_may_be_named(config, stage, target):
    config[stage]["_target_"] = target
    assert faults_of(config)[1].startswith(f"  {stage}._target_: {target!r} may not be named here")


def test_the_root_is_always_an_experiment(config):
    config["_target_"] = "builtins.dict"
    assert "expected fedgen.experiment.Experiment" in faults_of(config)[1]


def test_nothing_that_is_refused_is_imported(config):
    config["client"]["_target_"] = "antigravity.fly"
    faults_of(config)
    assert "antigravity" not in sys.modules


def test_an_option_that_does_not_exist_lists_those_that_do(config):
    config["model"]["_target_"] = "fedgen.model.tinny.Tinny"
    assert (
        "cannot import fedgen.model.tinny.Tinny: there is no such module; options of model: causal_lm, tiny"
        in (faults_of(config)[1])
    )


def test_a_package_that_is_not_installed_is_named(config, tmp_path, monkeypatch):
    import fedgen.wire

    (tmp_path / "needy.py").write_text("import a_package_that_nobody_has\n\nclass Needy: ...\n")
    monkeypatch.setattr(fedgen.wire, "__path__", [*fedgen.wire.__path__, str(tmp_path)])
    config["wire"]["_target_"] = "fedgen.wire.needy.Needy"
    assert "it needs the package a_package_that_nobody_has" in faults_of(config)[1]


def test_named_classes_from_elsewhere_may_stand_below_an_option():
    built = check.build_node({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}, "client.optimizer")
    assert isinstance(built, functools.partial)
    optimizer = built([torch.nn.Parameter(torch.ones(1))])
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["lr"] == 0.1


def test_a_partial_hides_no_mistyped_key():
    with pytest.raises(ConfigError, match="lrr: SGD has no such key; did you mean 'lr'"):
        check.build_node({"_target_": "torch.optim.SGD", "_partial_": True, "lrr": 0.1}, "client.optimizer")


def test_what_is_not_partial_needs_all_of_its_arguments():
    with pytest.raises(ConfigError, match=r"client\.optimizer\.params is missing"):
        check.build_node({"_target_": "torch.optim.SGD", "lr": 0.1}, "client.optimizer")
