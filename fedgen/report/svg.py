"""A plot as SVG that lives inside a page and takes its colours and fonts from it.

Matplotlib draws. Every colour it writes is a placeholder that becomes a CSS variable, so one plot reads well on light
and on dark pages, and what it writes about itself is left out, so a page refers to nothing outside.
"""

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_COLOURS = 8
"""Series colours that a page defines, as --series-0 and so on."""
INK, STRONG, GRID, PAPER, _SERIES = "#fedc00", "#fedc03", "#fedc01", "#fedc02", "#fedc1{}"
"""Placeholders: quiet text, strong text, faint lines, the ground, and one for each series."""

_SIZE_IN = (400 / 72, 224 / 72)
"""One unit of the drawing is one CSS pixel when a plot is 400 pixels wide."""
_LARGE_IN = (820 / 72, 360 / 72)
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


def series(index: int) -> str:
    """The colour of a series; they begin again when they are used up."""
    return _SERIES.format(index % NUM_COLOURS)


def draw(paint: Callable[["Axes"], None], suffix: str, *, large: bool = False, grid: bool = True) -> str:
    """Draws a plot over rounds.

    Args:
        paint: puts the values onto the axes, in the colours of this module.
        suffix: the unit, which follows the numbers on the upright axis.
        large: draw for the whole width of a page instead of half of it.
        grid: draw faint lines at the numbers of the upright axis.

    Returns:
        An svg element, safe to put into a page as it is.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    # The hash salt fixes the ids of clip paths, so the same numbers give the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fedgen", "font.size": 11, "text.parse_math": False}):
        figure = Figure(figsize=_LARGE_IN if large else _SIZE_IN, layout="constrained")
        axes = figure.add_subplot()
        paint(axes)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{suffix}"))
        axes.set_xlabel("round")
        _calm(axes, grid)
        return _inline(figure)


def _calm(axes: "Axes", grid: bool) -> None:
    """Leaves one axis line and, if it is wanted, a faint horizontal grid."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=INK, length=0, pad=5)
    axes.xaxis.label.set_color(INK)
    if grid:
        axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    if axes.dataLim.x0 == axes.dataLim.x1:
        axes.set_xlim(axes.dataLim.x0 - 1, axes.dataLim.x1 + 1)


def _inline(figure: "Figure") -> str:
    """The drawing without prologue, metadata and addresses, its placeholders turned into CSS variables."""
    buffer = io.StringIO()
    figure.patch.set_visible(False)
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for unwanted in _UNWANTED:
        svg = unwanted.sub("", svg)
    svg = re.sub(re.escape(_SERIES.format("")) + r"(\d)", r"var(--series-\1)", svg)
    variables = {INK: "var(--ink-soft)", STRONG: "var(--ink)", GRID: "var(--line)", PAPER: "var(--card)"}
    for placeholder, variable in variables.items():
        svg = svg.replace(placeholder, variable)
    return svg
