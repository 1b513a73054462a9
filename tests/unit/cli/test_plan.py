"""``fedgen plan`` on the tiny model."""

import json
import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from fedgen.cli.main import main
from fedgen.cli.plan import num_bytes
from fedgen.errors import ConfigError
from fedgen.model.tiny import Tiny

TINY = ["model=tiny", "data=synthetic", "partition=by_owner"]


def test_memory_comes_with_units():
    sizes = {"900M": 900e6, "1.5GiB": 1.5 * 2**30, "2 gb": 2e9, "512MiB": 2**29, "700000000": 7e8, "64k": 64e3}
    assert {text: num_bytes(text) for text in sizes} == sizes


@pytest.mark.parametrize("text", ["", "much", "-1G", "1.2.3M", "5T", "0"])
def test_what_is_no_memory_is_refused(text):
    with pytest.raises(ConfigError, match="expected a number with a unit"):
        num_bytes(text)


def test_a_device_that_fits_is_told_how_it_would_work(capsys):
    assert main(["plan", *TINY, "--memory", "2G", "--measure", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    works_as = told["devices"]["given"]["works_as"]
    assert works_as["name"] == told["ladder"][0]["name"] == "as configured"
    assert works_as["peak_bytes"] == told["ladder"][0]["peak_bytes"] < 2e9
    assert told["reference_seconds"] > 0
    assert told["ladder"][-1]["light"]


def test_one_that_does_not_fit_declines_and_the_command_says_so(capsys):
    assert main(["plan", *TINY, "--memory", "100M"]) == 1
    printed = capsys.readouterr().out
    assert "declines" in printed
    assert "checkpointing" in printed


def test_a_fleet_of_boards_is_planned_board_by_board(capsys):
    assert main(["plan", *TINY, "fleet=raspberry_pi", "fleet.boards=[zero_2w,5_4g]", "--json"]) == 1
    devices = json.loads(capsys.readouterr().out)["devices"]
    assert devices["raspberry_pi_zero_2w"]["works_as"] is None
    assert devices["raspberry_pi_5_4g"]["works_as"]["name"] == "as configured"


def test_a_fleet_that_tells_nothing_needs_a_size(capsys):
    assert main(["plan", *TINY]) == 2
    assert "give --memory 900M" in capsys.readouterr().err


def test_a_family_of_which_no_parts_are_known_is_planned_as_a_whole(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    tokenizer = Tiny().load(0).tokenizer
    config = AutoConfig.for_model("gpt_neox", vocab_size=len(tokenizer), **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    # In a process of its own: with checks of types, a model that cannot name its axes passes for none.
    command = [sys.executable, "-m", "fedgen", "plan", f"model.source={tmp_path}", "data=synthetic", "--memory", "2G"]
    whole = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    names = [step["name"] for step in json.loads(whole.stdout)["ladder"]]
    assert names[:2] == ["as configured", "checkpointing"]
    assert {"top half", "half rank", "int8 weights"}.isdisjoint(names)
