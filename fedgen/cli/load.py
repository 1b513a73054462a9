"""The experiment that a file describes, whoever wrote or edited it."""

from pathlib import Path

from fedgen.config.check import build
from fedgen.errors import ConfigError
from fedgen.experiment import Experiment


def load(file: Path) -> Experiment:
    """The experiment that an experiment.yaml describes.

    Raises:
        ConfigError: the file cannot be read, is no mapping, or describes no experiment.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file} holds no mapping; it should be the experiment.yaml that a run wrote")
    try:
        return build({str(name): value for name, value in config.items()})
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
