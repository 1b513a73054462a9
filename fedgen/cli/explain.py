"""Hydra's errors in our words: what was got, what is known, what is nearest.

Hydra finds unknown options and unknown keys while it composes, before ``check`` sees a config, and words them for
programmers. This is the only place that reads its exceptions.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError

from fedgen.config.catalogue import nearest, options, recipes
from fedgen.errors import ConfigError


def explain(error: Exception) -> ConfigError:
    """The same fault as a ConfigError."""
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"cannot read the override {error.override!r}; expected key=value, as in client.learning_rate=1e-3 "
            "(a value with spaces, commas or brackets is quoted twice: \"name='a, b'\")"
        )
    for cause in _chain(error):
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            return ConfigError(_unknown_option(cause.missing_cfg_file))
        if isinstance(cause, ConfigKeyError | ConfigAttributeError):
            parent = OmegaConf.to_container(cause.parent_node) if OmegaConf.is_dict(cause.parent_node) else {}
            assert isinstance(parent, dict)
            return ConfigError(_unknown_key(str(cause.full_key), parent))
        if isinstance(cause, InterpolationResolutionError):
            return ConfigError(f"{cause.full_key}: {str(cause).splitlines()[0]}")
    text = str(error).strip()
    if text.startswith("Ambiguous value for argument"):
        override = text.split("'")[1]
        key, _, values = override.partition("=")
        return ConfigError(f"{override} names several values; add -m to try each, or write {key}=[{values}] for a list")
    if text.startswith("Config group override must be"):
        return ConfigError(
            f"{text}; a stage is given the name of an option, as in model=tiny, or left out, as in ~generator"
        )
    return ConfigError(text or type(error).__name__)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unknown_option(path: str) -> str:
    """What to say when there is no file for `model=tinny`; the path is `model/tinny`."""
    group, _, option = path.removesuffix(".yaml").rpartition("/")
    if group == "recipe":
        known = list(recipes())
    elif group and not group.startswith("hydra"):
        known = list(options(group))
    else:
        return f"there is no config {path!r}"
    return f"{group}={option}: there is no such option{nearest(option, known)}; {group} has {', '.join(known)}"


def _unknown_key(full_key: str, parent: Mapping[Any, object]) -> str:
    """What to say about a key that its node does not have."""
    prefix, _, name = full_key.rpartition(".")
    own = [str(key) for key in parent if key not in ("_target_", "_partial_", "hydra")]
    # Who forgets the stage (`learning_rate=...`) is told the whole key.
    whole = [] if prefix else [f"{stage}.{key}" for stage in own for key in _keys(parent[stage]) if key == name]
    guess = f"; did you mean {' or '.join(repr(key) for key in whole)}?" if whole else nearest(name, own)
    return f"{full_key}: there is no such key{guess}; {prefix or 'the experiment'} has {', '.join(own) or 'no keys'}"


def _keys(node: object) -> list[str]:
    return [str(key) for key in node] if isinstance(node, Mapping) else []
