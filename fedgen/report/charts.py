"""The plots of a report: lines, spreads and stacks over rounds, each with its legend.

No text in a plot comes from the records: names stand in the legend, which the page writes itself. ``svg``, next door,
makes the drawing a part of a page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import TYPE_CHECKING, Literal

from fedgen.report import svg
from fedgen.report.records import Number
from fedgen.report.series import Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Unit = Literal["number", "bytes", "seconds"]

MOST_LINES = 8
"""More lines than this, and single clients are shown as a band."""

_DASHES = ("solid", "dashed", "dotted", "dashdot")
_MOST_MARKERS = 40
_MOST_BARS = 60
_STEPS: Mapping[Unit, tuple[tuple[float, str], ...]] = {
    "number": ((1.0, ""),),
    "bytes": ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1.0, " B")),
    "seconds": ((3600.0, " h"), (60.0, " min"), (1.0, " s"), (1e-3, " ms")),
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
class Plot:
    """A chart under its title.

    Attributes:
        title: what it shows.
        chart: the drawing.
        note: a half-sentence that tells how to read it.
    """

    title: str
    chart: Chart
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """Values over rounds, with an optional band around them.

    Attributes:
        label: name of the curve.
        points: (round, value).
        low: lower edge of the band at each point; empty for no band.
        high: upper edge.
        sparse: taken only now and then, so the line between its points is a guess and drawn as one.
    """

    label: str
    points: Points
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()
    sparse: bool = False


def curves(drawn: Sequence[Curve], *, share: bool = False, unit: Unit = "number", large: bool = False) -> Chart | None:
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
            colour = svg.series(index)
            if curve.low:
                low, high = ([value / scale for value in edge] for edge in (curve.low, curve.high))
                axes.fill_between(rounds, low, high, color=colour, alpha=0.16, linewidth=0)
            _line(axes, rounds, [value / scale for _, value in curve.points], colour, _dash(index, curve))
        if share:
            axes.set_ylim(-0.02, 1.02)

    entries = tuple(Entry(curve.label, index % svg.NUM_COLOURS, _dash(index, curve)) for index, curve in kept)
    return Chart(svg.draw(draw, suffix, large=large), entries if len(drawn) > 1 else ())


def spread(
    points: Mapping[str, Points], *, share: bool = False, colour: int = 0, unit: Unit = "number"
) -> Chart | None:
    """How far owners or clients lie apart: a line for each if they are few, else the median with two bands.

    Args:
        points: name → (round, value).
        share: as in `curves`.
        colour: series colour of the bands.
        unit: of the values.

    Returns:
        The plot; None if there is no point at all.
    """
    if len(points) <= MOST_LINES:
        return curves([Curve(name, values) for name, values in points.items()], share=share, unit=unit)
    by_round: dict[int, list[Number]] = {}
    for values in points.values():
        for at, value in values:
            by_round.setdefault(at, []).append(value)
    if not by_round:
        return None
    rounds = sorted(by_round)
    scale, suffix = _scale(unit, [value for values in by_round.values() for value in values])
    fifths = [_five([value / scale for value in by_round[at]]) for at in rounds]
    ink = svg.series(colour)

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
    return Chart(svg.draw(draw, suffix), legend)


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
            colour = svg.series(index)
            if len(rounds) <= _MOST_BARS:
                heights = [end - start for start, end in zip(bottom, top, strict=True)]
                axes.bar(rounds, heights, 0.72, bottom, color=colour, linewidth=0)
            else:
                axes.fill_between(rounds, bottom, top, step="mid", color=colour, linewidth=0)
            bottom = top
        if beside:
            marks = [at for at, _ in beside], [value / scale for _, value in beside]
            few = len(rounds) <= _MOST_MARKERS
            axes.plot(
                *marks, linestyle="none" if few else "solid", linewidth=1, marker="_" if few else None, markersize=9,
                markeredgewidth=2, color=svg.STRONG,
            )  # fmt: skip
        axes.set_ylim(0, 1.06 * max([*totals, *(value for _, value in beside)]) / scale)

    legend = [
        Entry(name, index % svg.NUM_COLOURS, "block")
        for index, (name, points) in enumerate(by_part.items())
        if any(points.values())
    ]
    if beside and marked:
        legend.append(Entry(marked[0], -1, "mark"))
    return Chart(svg.draw(draw, suffix), tuple(legend))


def _line(axes: "Axes", rounds: list[int], values: list[Number], colour: str, dash: str) -> None:
    marker = "o" if len(rounds) <= _MOST_MARKERS else None
    axes.plot(
        rounds,
        values,
        color=colour,
        linestyle=dash,
        linewidth=2,
        marker=marker,
        markersize=4.5,
        markeredgecolor=svg.PAPER,
        markeredgewidth=0.8,
    )


def _dash(index: int, curve: Curve) -> str:
    """Solid until the colours are used up; then dashes tell the lines of one colour apart."""
    return "dotted" if curve.sparse else _DASHES[index // svg.NUM_COLOURS % len(_DASHES)]


def _scale(unit: Unit, values: Sequence[Number]) -> tuple[float, str]:
    """What to divide values by so that the axis has readable numbers, and the unit of the result."""
    largest = max(map(abs, values), default=0)
    return next((step for step in _STEPS[unit] if largest >= step[0]), _STEPS[unit][-1])


def _five(values: Sequence[Number]) -> tuple[Number, ...]:
    """Smallest, lower quartile, median, upper quartile and largest."""
    if len(values) == 1:
        return (values[0],) * 5
    lower, median, upper = quantiles(values, n=4, method="inclusive")
    return min(values), lower, median, upper, max(values)


def is_share(points: Points, *, higher_is_better: bool) -> bool:
    """Whether values look like shares of a whole: between 0 and 1, and more is better."""
    return higher_is_better and bool(points) and all(0 <= value <= 1 for _, value in points)
