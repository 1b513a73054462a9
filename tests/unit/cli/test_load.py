"""Files that describe an experiment, and files that do not."""

import pytest

from fedgen.cli.load import load
from fedgen.config import check
from fedgen.config.catalogue import defaults, shipped, target_of
from fedgen.errors import ConfigError


@pytest.fixture
def config():
    chosen = {stage: option for stage, option in defaults().items() if option != "null"}
    options = {stage: shipped("configs") / stage / f"{option}.yaml" for stage, option in chosen.items()}
    return {"_target_": check.ROOT, **{stage: {"_target_": target_of(file)} for stage, file in options.items()}}


def test_a_file_is_loaded(config, tmp_path):
    import yaml

    config["client"]["learning_rate"] = 1e-3
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(config))
    assert load(file) == check.build(config)
    file.write_text(file.read_text().replace("0.001", "1e-3"))
    assert load(file).client.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "cannot read"),
        (b"- 1", "holds no mapping"),
        (b"", "names no class"),
        (b"\xff\xfe\x00", "cannot read"),
        (b"seed: ${nothing}", "cannot read"),
        (b"x: 1", "names no class with _target_"),
    ],
)
def test_a_file_that_is_no_experiment_is_named(tmp_path, content, message):
    file = tmp_path / "experiment.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*gone\.yaml"):
        load(tmp_path / "gone.yaml")
