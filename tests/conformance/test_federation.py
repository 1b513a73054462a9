"""What every driver must be: found like any option, free to build, the same at the other end of a run config."""

import time

import pytest

from fedgen.cli.train import compose
from fedgen.config.check import build
from fedgen.federation import run_config
from fedgen.stages import Federation
from tests.conformance import options

OPTIONS = options.options("federation")
REQUIRED = {"superlink": ["federation.home=server"]}


def config_of(option):
    return compose(["recipe=tiny", f"federation={option}", *REQUIRED.get(option, [])])


@pytest.mark.parametrize("option", OPTIONS)
def test_it_is_a_driver_and_building_it_is_free(option):
    config = config_of(option)
    build(config)
    began = time.perf_counter()
    driver = build(config).federation
    assert time.perf_counter() - began < 0.5
    assert isinstance(driver, Federation)
    assert type(driver).__module__ == f"fedgen.federation.{option}"


@pytest.mark.parametrize("option", OPTIONS)
def test_the_experiment_is_the_same_on_the_other_side(option, tmp_path):
    config = config_of(option)
    read = run_config.read(run_config.write(config, tmp_path, ["b", "a"]))
    assert read.experiment == build(config)
    assert (read.folder, read.clients) == (tmp_path, ("a", "b"))
