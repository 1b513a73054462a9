"""A run as it happens: a live picture on a terminal, one line per event anywhere else.

Told of the same records that the journal keeps, and of a few that only a display needs. A record is noted in
microseconds, and drawing happens in a thread of its own twice a second. A display that cannot be written to any
more falls silent, and the run goes on.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fedgen.cli.progress_state import RoundSeen, Seen
from fedgen.report import text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

REFRESHES_PER_S = 2
"""A picture takes about 10 ms to draw, which the clients on this machine go without."""
MOST_CONVERSATIONS = 3

_LONGEST_ANSWER = 240
_WIDE, _MEDIUM = 76, 52
"""Columns of a terminal from which on a table shows bytes, and seconds."""
_LINES_BESIDE_TABLE = 9
_ASCII = str.maketrans({"–": "-", "−": "-", "→": "->", "·": ",", "“": '"', "”": '"', "…": "..."})


class Progress:
    """Shows a run. Use it as a context manager; `observe` may be called from any thread.

    On a terminal the last picture stays when the display ends. Elsewhere, with TERM=dumb, and on terminals that are not
    UTF-8, every event is one flushed line without colours.

    Args:
        console: where to write; the standard output if None.
        clock: seconds, from any start.
    """

    def __init__(self, console: "Console | None" = None, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console

        self._console = Console(highlight=False) if console is None else console
        self._live_wanted = (
            self._console.is_terminal
            and not self._console.is_dumb_terminal
            and self._console.encoding.lower().startswith("utf")
        )
        self._seen = Seen(clock)
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._silent = False

    def __enter__(self) -> "Progress":
        """Begins to draw."""
        if self._live_wanted:
            from rich.live import Live

            self._live = Live(console=self._console, get_renderable=self._picture, refresh_per_second=REFRESHES_PER_S)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leaves the last picture."""
        with self._lock:
            self._seen.stop()
        self._freeze()

    def observe(self, record: dict[str, Any]) -> None:
        """Takes note of one thing that happened; records of a kind that it does not know are passed over.

        Args:
            record: as in the journal, or of kind `start`, `dispatch` or `evaluate`.
        """
        with self._lock:
            line = self._seen.note(record)
            if line and not self._live_wanted:
                self._say(line)

    def finish(self, summary: dict[str, Any]) -> None:
        """Ends the display with the table of before and after and the first conversations.

        Args:
            summary: what `report.summarise` says about the run.
        """
        self._freeze()
        talks = summary["conversations"][:MOST_CONVERSATIONS]
        if not self._live_wanted:
            for row in summary["quality"]:
                ends = f"{text.number(row['before'])} → {text.number(row['after'])}"
                self._say(f"{text.words(row['split'])}, {text.words(row['metric'])}: {ends}")
            for talk in talks:
                for key, said in _talk(talk):
                    self._say(f"{key}: {said}")
            return
        if summary["quality"]:
            self._print("")
            self._print(_before_and_after(summary))
        for talk in talks:
            self._print(_conversation(talk))

    def _freeze(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(OSError):
                live.stop()

    def _say(self, line: str) -> None:
        encoding = self._console.encoding
        if not encoding.lower().startswith("utf"):
            line = line.translate(_ASCII).encode(encoding, "replace").decode(encoding)
        if not self._silent:
            try:
                self._console.file.write(line + "\n")
                self._console.file.flush()
            except OSError:
                self._silent = True

    def _print(self, drawn: "RenderableType") -> None:
        with contextlib.suppress(OSError):
            self._console.print(drawn)

    def _picture(self) -> "RenderableType":
        from rich.console import Group
        from rich.text import Text

        with self._lock:
            seen = self._seen
            if not seen.started:
                return Text("getting ready", style="dim")
            parts: list[RenderableType] = [_headline(seen), self._bar(seen), Text("")]
            if seen.rounds:
                num_rows = max(1, self._console.height - _LINES_BESIDE_TABLE - len(seen.warnings))
                parts.append(_table(seen, self._console.width, num_rows))
            parts += [Text(f"! {warning}", style="yellow", overflow="ellipsis") for warning in seen.warnings]
            return Group(*parts)

    def _bar(self, seen: Seen) -> "Table":
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        width = max(10, min(32, self._console.width // 3))
        grid.add_row(
            ProgressBar(
                total=max(1, seen.num_rounds),
                completed=seen.rounds_done,
                width=width,
                complete_style="cyan",
                finished_style="green",
            ),
            Text(seen.status, overflow="ellipsis", no_wrap=True),
        )
        return grid


def _headline(seen: Seen) -> "Text":
    from rich.text import Text

    facts = f"  {seen.people}" + (f" · {text.plural(seen.num_refused, 'update')} refused" if seen.num_refused else "")
    return Text.assemble(
        (seen.name, "bold"), (facts, "dim"), (f"  {seen.folder}", "dim"), overflow="ellipsis", no_wrap=True
    )


def _table(seen: Seen, width: int, num_rows: int) -> "Table":
    """The newest rounds, one a line."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    headers = ["round", "train loss", text.words(seen.metric) or "quality"]
    headers += ["down", "up"] if width >= _WIDE else []
    headers += ["seconds"] if width >= _MEDIUM else []
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim", border_style="dim")
    for header in [*headers, "refused"]:
        table.add_column(Text(header), justify="right", no_wrap=True)
    for row in list(seen.rounds)[-num_rows:]:
        cells = [Text(str(row.round)), Text(text.number(row.loss)), _quality(row)]
        cells += [Text(text.num_bytes(row.bytes_down)), Text(text.num_bytes(row.bytes_up))] if width >= _WIDE else []
        cells += [Text(text.seconds(row.seconds))] if width >= _MEDIUM else []
        table.add_row(*cells, Text(str(row.num_refused), style="red" if row.num_refused else "dim"))
    return table


def _quality(row: RoundSeen) -> "Text":
    from rich.text import Text

    style = "dim" if row.improved is None else "green" if row.improved else "red"
    # The width of a change is fixed, so that the numbers before it stand under each other.
    return Text.assemble((text.number(row.quality), "bold"), (f" {row.change:>7}", style))


def _before_and_after(summary: dict[str, Any]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    follow = summary["followed"] or {}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim", border_style="dim")
    for header in ("examples", "measure", "before", "after"):
        table.add_column(header, justify="left" if header in ("examples", "measure") else "right")
    previous = None
    for row in summary["quality"]:
        style = "bold" if row["metric"] == follow.get("metric") else ""
        split = "" if row["split"] == previous else text.words(row["split"])
        previous = row["split"]
        numbers = [Text(text.number(row[key]), style=style) for key in ("before", "after")]
        table.add_row(Text(split), Text(text.words(row["metric"]), style=style), *numbers)
    return table


def _conversation(talk: dict[str, Any]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_row("", "")
    right = talk["after"] == talk["expected"]
    styles = {"you": "bold", "before": "dim", "after": "green" if right else ""}
    for key, said in _talk(talk):
        grid.add_row(Text(key, style="dim"), Text(said, style=styles.get(key, "")))
    return grid


def _talk(talk: dict[str, Any]) -> list[tuple[str, str]]:
    """Who said what; the expected answer only where the model gave another."""
    said = [("you", talk["text"]), ("before", talk["before"]), ("after", talk["after"])]
    if talk["expected"] != talk["after"]:
        said.append(("expected", talk["expected"]))
    return [(key, _short(text.clean(words).strip()) or "(nothing)") for key, words in said if words is not None]


def _short(said: str) -> str:
    return said if len(said) <= _LONGEST_ANSWER else said[: _LONGEST_ANSWER - 1] + "…"
