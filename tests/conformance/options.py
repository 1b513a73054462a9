"""The options of a stage, found as the command line finds them: by looking into ``configs/``."""

import random
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from fedgen.config.check import build_node

CONFIGS = Path(__file__).parents[2] / "configs"


def options(stage: str) -> list[str]:
    """Names of the options of a stage; there is at least one."""
    names = sorted(file.stem for file in (CONFIGS / stage).glob("*.yaml"))
    assert names, f"configs/{stage} holds no option"
    return names


def build(stage: str, option: str, **required: Any) -> Any:
    """The option as its yaml describes it; ``required`` fills in what a user must give."""
    config = yaml.safe_load((CONFIGS / stage / f"{option}.yaml").read_text())
    return build_node({**config, **{key: value for key, value in required.items() if config.get(key) == "???"}}, stage)


def disturb() -> None:
    """Puts the generators that everybody shares somewhere else: what depends on them does not repeat after this."""
    random.seed(time.perf_counter_ns())
    torch.manual_seed(time.perf_counter_ns())
