"""Plots over rounds, as SVG that lives inside a page and takes its colours and fonts from it.

Matplotlib draws; every colour it writes is a placeholder that becomes a CSS variable, so one plot reads well on light and on
dark pages. No text in a plot comes from the records: names stand in the legend, which the page writes itself.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import TYPE_CHECKING, Any, Literal

from fedgen.report.series import Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Unit = Literal["number", "bytes", "seconds"]

NUM_COLOURS = 8
"""Series colours that a page defines, as --series-0 and so on."""
MOST_LINES = 8
"""More lines than this, and single clients are shown as a band."""

_INK, _GRID, _PAPER, _SERIES = "#fedc00", "#fedc01", "#fedc02", "#fedc1{}"
_DASHES = ("solid", "dashed", "dotted", "dashdot")
_MOST_MARKERS = 40
_MOST_BARS = 60
_SIZE_IN = (400 / 72, 224 / 72)
"""One unit of the drawing is one CSS pixel when a plot is 400 pixels wide."""
_LARGE_IN = (640 / 72, 320 / 72)
_UNWANTED = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"<metadata>.*?</metadata>\s*",
        r"<style.*?</style>\s*",
        r' xmlns(:\w+)?="[^"]*"',
        r' (width|height)="[\d.]+pt"',
        r'(?<=<g) id="[^"]*"',
        r" ?font-family: [^;]*;",
        r' transform="rotate\(-0 [^"]*"',
    )
)
"""Parts of matplotlib's output that would reach out of the drawing, or say nothing."""
_STEPS: Mapping[Unit, tuple[tuple[float, str], ...]] = {
    "number": ((1, ""),),
    "bytes": ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1, " B")),
    "seconds": ((3600, " h"), (60, " min"), (1, " s"), (1e-3, " ms")),
}


@dataclass(frozen=True)
class Entry:
    """A line of a legend.

    Attributes:
        label: what is shown; not escaped yet.
        colour: index of the series colour.
        style: how it is drawn: solid, dashed, dotted, dashdot, area, or point.
    """

    label: str
    colour: int
    style: str


@dataclass(frozen=True)
class Chart:
    """A plot and what belongs beside it.

    Attributes:
        svg: the drawing, safe to put into a page as it is.
        legend: what its colours mean; empty if there is nothing to tell apart.
    """

    svg: str
    legend: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Curve:
    """Values over rounds, with an optional band around them.

    Attributes:
        label: name of the curve.
        points: (round, value).
        low: lower edge of the band at each point; empty for no band.
        high: upper edge.
    """

    label: str
    points: Points
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def curves(
    drawn: Sequence[Curve], *, share: bool = False, unit: Unit = "number", large: bool = False
) -> Chart | None:
    """One line per curve.

    Args:
        drawn: the curves; those without points keep their colour and are left out.
        share: the values are shares of a whole, so the axis runs from 0 to 1.
        unit: of the values.
        large: draw for the whole width of a page.

    Returns:
        The plot; None if there is no point at all.
    """
    kept = [(index, curve) for index, curve in enumerate(drawn) if curve.points]
    if not kept:
        return None
    scale, suffix = _scale(unit, [value for _, curve in kept for _, value in curve.points])

    def draw(axes: "Axes") -> None:
        for index, curve in kept:
            rounds = [at for at, _ in curve.points]
            colour = _SERIES.format(index % NUM_COLOURS)
            if curve.low:
                edges = ([value / scale for value in edge] for edge in (curve.low, curve.high))
                axes.fill_between(rounds, *edges, color=colour, alpha=0.16, linewidth=0)
            _line(axes, rounds, [value / scale for _, value in curve.points], colour, _dash(index))
        if share:
            axes.set_ylim(-0.02, 1.02)

    entries = tuple(Entry(curve.label, index % NUM_COLOURS, _dash(index)) for index, curve in kept)
    return Chart(_svg(draw, suffix, _LARGE_IN if large else _SIZE_IN), entries if len(drawn) > 1 else ())


def spread(points: Mapping[str, Points], *, share: bool = False, colour: int = 0) -> Chart | None:
    """How far owners or clients lie apart: a line for each if they are few, else the median with two bands.

    Args:
        points: name → (round, value).
        share: as in `curves`.
        colour: series colour of the bands.

    Returns:
        The plot; None if there is no point at all.
    """
    if len(points) <= MOST_LINES:
        return curves([Curve(name, values) for name, values in points.items()], share=share)
    by_round: dict[int, list[float]] = {}
    for values in points.values():
        for at, value in values:
            by_round.setdefault(at, []).append(value)
    if not by_round:
        return None
    rounds = sorted(by_round)
    fifths = [_five(by_round[at]) for at in rounds]
    ink = _SERIES.format(colour % NUM_COLOURS)

    def draw(axes: "Axes") -> None:
        lowest, lower, median, upper, highest = zip(*fifths, strict=True)
        if len(rounds) == 1:
            axes.vlines(rounds, lowest, highest, color=ink, alpha=0.35, linewidth=2)
            axes.vlines(rounds, lower, upper, color=ink, alpha=0.6, linewidth=7)
        axes.fill_between(rounds, lowest, highest, color=ink, alpha=0.14, linewidth=0)
        axes.fill_between(rounds, lower, upper, color=ink, alpha=0.26, linewidth=0)
        _line(axes, rounds, list(median), ink, "solid")
        if share:
            axes.set_ylim(-0.02, 1.02)

    legend = (
        Entry("median", colour, "solid"),
        Entry("middle half", colour, "area"),
        Entry(f"all {len(points)}", colour, "pale"),
    )
    return Chart(_svg(draw, ""), legend)


def stack(parts: Mapping[str, Points], *, unit: Unit, marked: tuple[str, Points] | None = None) -> Chart | None:
    """What every round cost, part on part.

    Args:
        parts: name → (round, value), from the bottom up.
        unit: of the values.
        marked: name and values of a number that is no part but belongs to the same axis, drawn as a dash.

    Returns:
        The plot; None if no part is larger than zero.
    """
    by_part = {name: dict(points) for name, points in parts.items()}
    rounds = sorted({at for points in by_part.values() for at in points})
    totals = [sum(points.get(at, 0) for points in by_part.values()) for at in rounds]
    beside = [(at, value) for at, value in marked[1] if value > 0] if marked else []
    if max(totals, default=0) <= 0:
        return None
    scale, suffix = _scale(unit, [*totals, *(value for _, value in beside)])

    def draw(axes: "Axes") -> None:
        bottom = [0.0] * len(rounds)
        for index, points in enumerate(by_part.values()):
            top = [start + points.get(at, 0) / scale for at, start in zip(rounds, bottom, strict=True)]
            colour = _SERIES.format(index % NUM_COLOURS)
            if len(rounds) <= _MOST_BARS:
                heights = [end - start for start, end in zip(bottom, top, strict=True)]
                axes.bar(rounds, heights, 0.72, bottom, color=colour, linewidth=0)
            else:
                axes.fill_between(rounds, bottom, top, step="mid", color=colour, linewidth=0)
            bottom = top
        if beside:
            marks = [at for at, _ in beside], [value / scale for _, value in beside]
            axes.plot(*marks, linestyle="none", marker="_", markersize=9, markeredgewidth=2, color=_INK)
        axes.set_ylim(bottom=0)

    legend = [
        Entry(name, index % NUM_COLOURS, "block")
        for index, (name, points) in enumerate(by_part.items())
        if any(points.values())
    ]
    if beside and marked:
        legend.append(Entry(marked[0], -1, "mark"))
    return Chart(_svg(draw, suffix), tuple(legend))


def _svg(draw: Callable[["Axes"], None], suffix: str, size_in: tuple[float, float] = _SIZE_IN) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    # The hash salt fixes the ids of clip paths, so the same numbers give the same bytes.
    style: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "fedgen", "font.size": 11, "text.parse_math": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=size_in, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{suffix}"))
        axes.set_xlabel("round")
        _calm(axes)
        return _inline(figure)


def _calm(axes: "Axes") -> None:
    """Leaves one axis line and a faint horizontal grid."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(colors=_INK, length=0, pad=5)
    axes.xaxis.label.set_color(_INK)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    if axes.dataLim.x0 == axes.dataLim.x1:
        axes.set_xlim(axes.dataLim.x0 - 1, axes.dataLim.x1 + 1)


def _inline(figure: "Figure") -> str:
    """The drawing without prologue, metadata and addresses, its placeholders turned into CSS variables."""
    import io

    buffer = io.StringIO()
    figure.patch.set_visible(False)
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for unwanted in _UNWANTED:
        svg = unwanted.sub("", svg)
    svg = re.sub(re.escape(_SERIES.format("")) + r"(\d)", r"var(--series-\1)", svg)
    return svg.replace(_INK, "var(--ink-soft)").replace(_GRID, "var(--line)").replace(_PAPER, "var(--paper)")


def _line(axes: "Axes", rounds: list[int], values: list[float], colour: str, dash: str) -> None:
    marker = "o" if len(rounds) <= _MOST_MARKERS else None
    axes.plot(
        rounds, values, color=colour, linestyle=dash, linewidth=2, marker=marker, markersize=4.5, markeredgecolor=_PAPER,
        markeredgewidth=0.8, solid_capstyle="round",
    )  # fmt: skip


def _dash(index: int) -> str:
    return _DASHES[index // NUM_COLOURS % len(_DASHES)]


def _scale(unit: Unit, values: Sequence[float]) -> tuple[float, str]:
    """What to divide values by so that the axis has readable numbers, and the unit of the result."""
    largest = max(map(abs, values), default=0)
    return next((step for step in _STEPS[unit] if largest >= step[0]), _STEPS[unit][-1])


def _five(values: Sequence[float]) -> tuple[float, float, float, float, float]:
    """Smallest, lower quartile, median, upper quartile and largest."""
    if len(values) == 1:
        return (values[0],) * 5
    lower, median, upper = quantiles(values, n=4, method="inclusive")
    return min(values), lower, median, upper, max(values)


def is_share(points: Points, *, higher_is_better: bool) -> bool:
    """Whether values look like shares of a whole: between 0 and 1, and more is better."""
    return higher_is_better and bool(points) and all(0 <= value <= 1 for _, value in points)
