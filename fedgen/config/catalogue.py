"""Which stages and options there are, by looking into ``configs/``; there is no registry.

A folder of ``configs/`` is a stage, a yaml in it an option, and its ``_target_`` the class (read by ``schema``). The
root yaml gives the order of the stages, which is the order in which data flows, and the default of each.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

import fedgen
from fedgen.config.schema import Schema, read
from fedgen.errors import ConfigError

RECIPE = "recipe"
"""The group of whole configurations, which is no stage."""


def shipped(name: str) -> Path:
    """A folder that comes with fedgen: inside the package in a wheel, beside it in a checkout."""
    package = Path(fedgen.__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def defaults() -> dict[str, str]:
    """Stage → its default option, in the order in which data flows; `null` for one that may be left out."""
    text = (shipped("configs") / "experiment.yaml").read_text(encoding="utf-8")
    entries = re.findall(r"^  - (\w+): (\w+)$", text, re.MULTILINE)
    return {stage: option for stage, option in entries if stage != RECIPE}


def stage_of(key: str) -> str:
    """The stage whose options a field takes: that of its own name, unless the root yaml says more.

    >>> stage_of("client"), stage_of("light_client"), stage_of("generator.model")
    ('client', 'client', 'model')
    """
    key = key.rpartition(".")[2]
    text = (shipped("configs") / "experiment.yaml").read_text(encoding="utf-8")
    match = re.search(rf"^  - (\w+)@{re.escape(key)}: \w+$", text, re.MULTILINE)
    return match[1] if match else key


def options(stage: str) -> dict[str, Schema]:
    """Option → its class, sorted by name.

    Raises:
        ConfigError: there is no such stage.
    """
    if stage not in defaults():
        raise ConfigError(f"there is no stage {stage!r}{nearest(stage, defaults())}; stages: {', '.join(defaults())}")
    return {file.stem: read(target_of(file)) for file in sorted((shipped("configs") / stage).glob("*.yaml"))}


def recipes() -> dict[str, str]:
    """Recipe → the comment with which its file begins."""
    files = sorted((shipped("configs") / "recipe").glob("*.yaml"))
    return {file.stem: _comment(file.read_text(encoding="utf-8")) for file in files}


def task_file(name: str) -> Path:
    """The file of a task: one that comes with fedgen, by its name, or a path.

    Raises:
        ConfigError: there is none.
    """
    known = {file.stem: file for file in sorted((shipped("configs") / "task").glob("*.yaml"))}
    if name in known:
        return known[name]
    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"there is no task {name!r}{nearest(name, known)}; give one of {', '.join(known)}, or the path of a yaml "
            "file that describes your own"
        )
    return path


def target_of(file: Path) -> str:
    """The class that an option's yaml names."""
    match = re.search(r"^_target_: *(\S+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert match is not None, f"{file} names no class with _target_"
    return match[1]


def nearest(got: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no known name is near.

    >>> nearest("tinny", ["causal_lm", "tiny"])
    "; did you mean 'tiny'?"
    >>> nearest("zebra", ["causal_lm", "tiny"])
    ''
    """
    close = difflib.get_close_matches(got, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _comment(text: str) -> str:
    lines = [line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    return " ".join(lines)
