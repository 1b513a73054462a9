"""Which stages and options there are, by looking into ``configs/``; there is no registry.

A folder of ``configs/`` is a stage, a yaml in it an option, and its ``_target_`` the class (read by ``schema``). The
root yaml gives the order of the stages, which is the order in which data flows, and the default of each.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import fedgen
from fedgen.cli.schema import REQUIRED, Schema, read
from fedgen.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console


def shipped(name: str) -> Path:
    """A folder that comes with fedgen: inside the package in a wheel, beside it in a checkout."""
    package = Path(fedgen.__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def defaults() -> dict[str, str]:
    """Stage → its default option, in the order in which data flows."""
    text = (shipped("configs") / "experiment.yaml").read_text(encoding="utf-8")
    entries = re.findall(r"^  - (\w+): (\w+)$", text, re.MULTILINE)
    return {stage: option for stage, option in entries if option != "null"}


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


def show(what: str | None, console: "Console") -> None:
    """Prints all stages, the options of one stage (`model`), or the fields of one option (`model.tiny`).

    Raises:
        ConfigError: there is no such stage or option.
    """
    if what is None:
        _show_stages(list(defaults()), console)
        console.print("\nOptions of a stage: fedgen options model · Keys of an option: fedgen options model.causal_lm")
        return
    stage, _, option = what.partition(".")
    found = options(stage)
    if not option:
        _show_stages([stage], console)
    elif option in found:
        _show_option(stage, option, found[option], console)
    else:
        raise ConfigError(f"{stage} has no option {option!r}{nearest(option, found)}; it has {', '.join(found)}")


def options_table_markdown() -> str:
    """The table of options per stage as it stands in the README; defaults are bold."""
    rows = ["| stage | what it answers | options |", "|---|---|---|"]
    for stage, default in defaults().items():
        names = [f"**{name}**" if name == default else name for name in options(stage)]
        rows.append(f"| `{stage}` | {stage_summary(stage)} | {', '.join(names)} |")
    return "\n".join(rows) + "\n"


def stage_summary(stage: str) -> str:
    """What the stage answers: first line of the docstring of its Protocol, without the full stop."""
    return read(f"fedgen.stages.{stage.capitalize()}").summary.rstrip(".")


def _show_stages(stages: list[str], console: "Console") -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "option", "what it is"):
        table.add_column(column)
    for stage in stages:
        for i, (name, schema) in enumerate(options(stage).items()):
            mark = " (default)" if name == defaults()[stage] else ""
            table.add_row(stage if i == 0 else "", f"{name}{mark}", escape(schema.summary))
    console.print(table)


def _show_option(stage: str, option: str, schema: Schema, console: "Console") -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console.print(f"[bold]{stage}={option}[/]  {escape(schema.summary)}\n")
    console.print(escape(schema.citation), highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("key", no_wrap=True)
    for column in ("default", "what it is", "type"):
        table.add_column(column)
    for f in schema.fields:
        table.add_row(f"{stage}.{f.name}", escape(_as_typed(f.default)), escape(f.text), escape(f.annotation))
    console.print(table if schema.fields else "\nIt has no fields.")


def _as_typed(default: object) -> str:
    """A default as it would be typed on the command line.

    >>> _as_typed(None), _as_typed(["q_proj", 2])
    ('null', '[q_proj,2]')
    """
    if default == REQUIRED:
        return "(must be given)"
    if default is None or isinstance(default, bool):
        return "null" if default is None else str(default).lower()
    return f"[{','.join(_as_typed(item) for item in default)}]" if isinstance(default, list) else str(default)


def _comment(text: str) -> str:
    lines = [line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    return " ".join(lines)
