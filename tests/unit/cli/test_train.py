"""Composition: what a user types, and what comes of it. Nothing here starts a run."""

import contextlib
import io

import pytest
from omegaconf import OmegaConf

from fedgen.cli.train import train
from fedgen.config import check
from fedgen.errors import ConfigError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def composed(*arguments):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert train([*arguments, "--cfg", "job"]) == 0
    return OmegaConf.to_container(OmegaConf.create(printed.getvalue()))


def test_the_default_is_smart_homes_on_a_pretrained_model():
    config = composed()
    assert config["data"]["_target_"] == "fedgen.data.smart_home.SmartHome"
    assert config["model"]["_target_"] == "fedgen.model.causal_lm.CausalLM"
    assert config["model"]["source"].endswith(".gguf")
    check.build(config)


def test_a_composed_config_tells_every_value_in_the_order_in_which_data_flows():
    config = composed("model=tiny")
    assert list(config)[:4] == ["_target_", "name", "seed", "num_rounds"]
    assert list(config)[-15:] == [
        "data",
        "partition",
        "model",
        "adapter",
        "extraction",
        "client",
        "light_client",
        "selection",
        "wire",
        "aggregation",
        "generator",
        "seeding",
        "evaluation",
        "export",
        "federation",
    ]
    assert config["client"]["learning_rate"] == 2.5e-3
    assert config["model"]["hidden_size"] == 64


def test_a_recipe_overrides_options_and_values_and_the_command_line_overrides_the_recipe():
    assert composed("recipe=tiny")["model"]["_target_"] == "fedgen.model.tiny.Tiny"
    assert composed("recipe=tiny")["name"] == "tiny"
    config = composed("recipe=tiny", "name=mine", "data=smart_home")
    assert config["name"] == "mine"
    assert config["data"]["_target_"] == "fedgen.data.smart_home.SmartHome"


def test_any_field_of_a_class_can_be_overridden():
    config = composed("recipe=tiny", "client.learning_rate=1e-3", "adapter.targets=[q_proj,v_proj]", "cohort_size=2")
    experiment = check.build(config)
    assert experiment.client.learning_rate == 1e-3
    assert experiment.adapter.targets == ("q_proj", "v_proj")
    assert experiment.cohort_size == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=tinny"], r"^model=tinny: there is no such option; did you mean 'tiny'\?; model has causal_lm, tiny$"),
        (["recipe=tinyy"], r"^recipe=tinyy: .* did you mean 'tiny'\?; recipe has "),
        (["client.learning_rat=1"], r"^client\.learning_rat: there is no such key; did you mean 'learning_rate'\?"),
        (
            ["learning_rate=1"],
            "did you mean 'client.learning_rate' or 'light_client.learning_rate' or",
        ),
        (["modle=tiny"], r"^modle: there is no such key; did you mean 'model'\?"),
        (["clinet.batch_size=1"], r"^clinet: there is no such key; did you mean 'client'\?"),
        (["client={learning_rat:3}"], r"^client\.learning_rat: there is no such key"),
        (["seed=1,2"], r"^seed=1,2 names several values; add -m to try each, or write seed=\[1,2\] for a list$"),
        (["foo(="], r"^cannot read the override 'foo\(='; expected key=value"),
        (["client@x=first_order"], "client@x"),
        (["-m", "--cfg", "job"], "Only one of"),
        (["-m", "model=tiny,tinny"], r"^model=tinny: there is no such option; did you mean 'tiny'\?"),
        (["-m", "client.learning_rat=1,2"], r"^client\.learning_rat: there is no such key"),
        (["-m", "seed=1,2", "modle=tiny"], r"^modle: there is no such key"),
        (["seed=${nothing}"], "^seed: .*nothing"),
        # What was forced past Hydra is stopped by the check.
        (["recipe=tiny", "+client.foo=1"], r"client\.foo: FirstOrder has no such key"),
        (["recipe=tiny", "++clinet.batch_size=1"], r"clinet: Experiment has no such key; did you mean 'client'\?"),
        (["recipe=tiny", "client._target_=os.system"], "may not be named here"),
        (["model=tiny", "~client"], "client is missing"),
        (["recipe=tiny", "model=null"], "model"),
        (["recipe=tiny", "client.num_steps=1.5"], r"client\.num_steps: 1\.5 is not a whole number"),
        (["recipe=tiny", "client.learning_rate=-1"], r"client\.learning_rate is -1\.0; it must be positive"),
        (["recipe=tiny", "client.learning_rate=nan"], r"client\.learning_rate: nan is not a finite number"),
        (["data=jsonl"], r"data\.path is missing; give it a value: data\.path=\.\.\."),
    ],
)
def test_mistakes_get_one_clear_message_and_leave_nothing_behind(arguments, message, elsewhere):
    with pytest.raises(ConfigError, match=message):
        train(arguments)
    left = [path for path in elsewhere.rglob("*") if path.is_file() or path.name != "runs"]
    assert left == []


def test_looking_leaves_nothing_behind(elsewhere):
    composed("recipe=tiny")
    assert list(elsewhere.iterdir()) == []


def test_a_users_own_folder_of_configs_goes_first(elsewhere):
    (elsewhere / "mine" / "recipe").mkdir(parents=True)
    (elsewhere / "mine" / "recipe" / "quick.yaml").write_text("# @package _global_\nnum_rounds: 1\n")
    assert composed("--config-dir", "mine", "recipe=quick")["num_rounds"] == 1


def test_a_mistyped_key_in_a_recipe_is_told(elsewhere):
    (elsewhere / "mine" / "recipe").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /model: tiny\nclient:\n  learning_rat: 1\n"
    (elsewhere / "mine" / "recipe" / "wrong.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"client\.learning_rat: FirstOrder has no such key; did you mean"):
        train(["--config-dir", "mine", "recipe=wrong"])
