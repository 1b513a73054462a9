"""A heat map over rounds: what is held of an axis, stretch by stretch.

It is painted in one series colour, more or less opaque, so that it reads well on light and on dark pages; the cells of
one shade are one path, so that a long run still makes a small page.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from fedgen.report import svg
from fedgen.report.charts import Chart, Entry
from fedgen.report.records import Number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_SHADES = 20
"""Shares are told apart in so many steps; none at all is a step of its own."""

_FAINTEST = 0.18
_MOST_COLUMNS = 100
_FEWEST_COLUMNS = 6

Rectangle = tuple[float, float, float, float]
"""Left, right, bottom, top."""


def heat_map(rows: Mapping[int, Sequence[Number | None]]) -> Chart | None:
    """Rounds from left to right, the axis from its first unit at the bottom to its last at the top.

    Args:
        rows: round → share of each stretch, from 0 to 1, equally many in every round; None stays blank.

    Returns:
        The map, in which neighbouring rounds of a long run are averaged; None if there is no value at all.
    """
    shades = shaded(rows)
    if not shades:
        return None
    left = min(rows) - 0.5
    right = max(max(rows) + 0.5, left + _FEWEST_COLUMNS)

    def draw(axes: "Axes") -> None:
        for shade, rectangles in sorted(shades.items()):
            _paint(axes, rectangles, svg.series(0) if shade else svg.GRID, opacity(shade) if shade else 0.55)
        axes.set_xlim(left, right)
        axes.set_ylim(0, 100)

    drawing = svg.draw(draw, " %", grid=False)
    # Hundredths of a pixel are enough, and most of the drawing is coordinates.
    drawing = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), drawing)
    # Without smoothed edges no seam of the ground shows between two cells.
    drawing = drawing.replace("<svg ", '<svg shape-rendering="crispEdges" ', 1)
    return Chart(drawing, (Entry("nobody", -1, "ground"), Entry("few to all", 0, "scale")))


def shaded(rows: Mapping[int, Sequence[Number | None]]) -> dict[int, list[Rectangle]]:
    """Shade → what is painted in it: the neighbouring cells of one shade as one rectangle, as far as they make one.

    >>> shaded({1: [1.0, 1.0, 0.0, None], 2: [1.0, 1.0, 0.5, None]})
    {20: [(0.5, 2.5, 0.0, 50.0)], 0: [(0.5, 1.5, 50.0, 75.0)], 10: [(1.5, 2.5, 50.0, 75.0)]}
    """
    grown: list[tuple[int, Rectangle]] = []
    growing: dict[tuple[int, float, float, float], int] = {}
    for first, last, values in _columns(rows):
        for shade, low, high in _runs(values):
            start, end = first - 0.5, last + 0.5
            index = growing.pop((shade, low, high, start), None)
            if index is None:
                index = len(grown)
                grown.append((shade, (start, end, low, high)))
            else:
                grown[index] = (shade, (grown[index][1][0], end, low, high))
            growing[shade, low, high, end] = index
    shades: dict[int, list[Rectangle]] = {}
    for shade, rectangle in grown:
        shades.setdefault(shade, []).append(rectangle)
    return shades


def opacity(shade: int) -> float:
    """How much of the colour a shade has; even the least share is seen to be more than nothing."""
    return round(_FAINTEST + (1 - _FAINTEST) * (shade - 1) / (NUM_SHADES - 1), 3)


def _columns(rows: Mapping[int, Sequence[Number | None]]) -> Iterator[tuple[int, int, list[Number | None]]]:
    """First and last round of each column, and the mean of each stretch over the rounds of the column."""
    rounds = sorted(rows)
    step = -(-len(rounds) // _MOST_COLUMNS)
    for start in range(0, len(rounds), max(1, step)):
        members = rounds[start : start + step]
        stretches = zip(*(rows[at] for at in members), strict=True)
        known = [[value for value in stretch if value is not None] for stretch in stretches]
        yield members[0], members[-1], [fmean(values) if values else None for values in known]


def _runs(values: Sequence[Number | None]) -> Iterator[tuple[int, float, float]]:
    """Shade, lower and upper edge in percent of the axis, of each run of stretches of one shade."""
    shades = [None if value is None else _shade(value) for value in values]
    start = 0
    for index in range(1, len(shades) + 1):
        if index == len(shades) or shades[index] != shades[start]:
            shade = shades[start]
            if shade is not None:
                yield shade, 100 * start / len(shades), 100 * index / len(shades)
            start = index


def _shade(value: Number) -> int:
    if value <= 0:
        return 0
    return max(1, round(min(value, 1) * NUM_SHADES))


def _paint(axes: "Axes", rectangles: Sequence[Rectangle], colour: str, alpha: float) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners: list[tuple[float, float]] = []
    for left, right, bottom, top in rectangles:
        corners += [(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(rectangles)
    axes.add_patch(PathPatch(Path(corners, codes), facecolor=colour, alpha=alpha, linewidth=0, clip_on=False))
