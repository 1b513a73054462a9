"""``fedgen options``: the stages, their options and the keys of those, as tables."""

from typing import TYPE_CHECKING

from fedgen.config.catalogue import defaults, nearest, options
from fedgen.config.schema import REQUIRED, Schema, read
from fedgen.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console


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
