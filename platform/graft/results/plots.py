"""Learning curves as SVG: the same summary gives the same bytes, with no state of pyplot's."""

import html
import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graft.errors import DataError
from graft.results.tables import LOWER_IS_BETTER, Cell, Grid, grids

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc6fa5", "#d55e00", "#4fb3e8", "#9a4a9e", "#8f8f26", "#c2476a", "#808080")
"""Told apart with the common colour deficiencies, readable on white and on near-black."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">")
"""Eleven shapes against ten colours, so that a pair repeats after 110 arms only."""

INK = "#010203"
"""Stands for the text's colour while matplotlib draws; `currentColor` in the SVG, which follows the page."""

LEGEND_CHARACTERS = 44
"""Longest line of the legend."""


def colour(place: int) -> str:
    """The colour of the arm at this place of a sorted list."""
    return COLOURS[place % len(COLOURS)]


def learning_curve(summary: Sequence[Cell], metric: str, title: str) -> str:
    """A metric over the number of labelled examples, one line per arm with 95 % intervals over seeds.

    Args:
        summary: cells of one task; those of other metrics only keep the colours the same in all its pictures.
        metric: name on the vertical axis.
        title: heading, and the picture's accessible name.

    Returns:
        An `<svg>` element without a background; text and axes take the page's colour.

    Raises:
        DataError: the cells hold no mean of this metric, or belong to several tasks.
    """
    from matplotlib import rc_context, rcdefaults

    stream = io.StringIO()
    with rc_context(), warnings.catch_warnings():
        rcdefaults()  # a user's matplotlibrc changes nothing
        # Letters that matplotlib's own font lacks: it only measures them, the page's fonts draw them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        with rc_context({"svg.hashsalt": f"{title} {metric}", "svg.fonttype": "none", "text.parse_math": False}):
            nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
            figure(summary, metric, title).savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _inline(stream.getvalue(), title)


def figure(summary: Sequence[Cell], metric: str, title: str) -> "Figure":
    """The learning curve as a matplotlib figure: see `learning_curve`."""
    from matplotlib.figure import Figure

    found = grids([cell for cell in summary if cell.metric == metric and cell.interval])
    if len(found) != 1:
        tasks = ", ".join(grid.task for grid in found) or "none"
        raise DataError(f"learning curve of {metric}: give the cells of one task that have a mean; got tasks: {tasks}")
    grid = found[0]
    rows = sum(1 + len(arm) // LEGEND_CHARACTERS for arm in grid.arms)
    drawing = Figure(figsize=(10, max(4.6, 1.2 + 0.27 * rows)), layout="constrained")
    axes = drawing.add_subplot()
    # Colours follow the alphabet, so an arm looks the same in every picture; the legend follows the ranking.
    places = {arm: place for place, arm in enumerate(sorted({cell.arm for cell in summary}))}
    for order, arm in enumerate(grid.arms):
        _draw(axes, grid, arm, places[arm], order)
    _dress(axes, grid, title)
    return drawing


def _draw(axes: Any, grid: Grid, arm: str, place: int, order: int) -> None:
    cells = [grid.cells[arm, size] for size in grid.sizes if (arm, size) in grid.cells]
    # Side by side within a few percent of the axis, so that error bars do not hide one another.
    step = min(0.04, 0.2 / max(len(grid.arms) - 1, 1))
    shift = 2 ** (step * (order - (len(grid.arms) - 1) / 2))
    xs = [cell.examples * shift for cell in cells]
    ys = [cell.interval.mean for cell in cells if cell.interval]
    halves = [(cell.interval.half_width or 0.0) if cell.interval else 0.0 for cell in cells]
    axes.errorbar(
        xs,
        ys,
        yerr=halves if any(halves) else None,
        label=_wrapped(arm),
        color=colour(place),
        marker=MARKERS[place % len(MARKERS)],
        markersize=5.5,
        linewidth=1.6,
        elinewidth=1.1,
        capsize=0,
        zorder=3 + len(grid.arms) - order,
    )


def _dress(axes: Any, grid: Grid, title: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(grid.sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.margins(x=0.04)
    better = "lower" if grid.metric in LOWER_IS_BETTER else "higher"
    axes.set_xlabel("labelled examples", fontsize=11, color=INK)
    axes.set_ylabel(f"{grid.metric.replace('_', ' ')} ({better} is better)", fontsize=11, color=INK)
    axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold", color=INK, pad=12)
    axes.tick_params(colors=INK, labelsize=10.5, length=0)
    axes.grid(color="#808080", alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#808080")
    legend = axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=10.5, labelcolor=INK, handlelength=1.8
    )
    legend.set_in_layout(True)


def _wrapped(arm: str) -> str:
    return "\n".join(textwrap.wrap(arm, LEGEND_CHARACTERS, break_on_hyphens=False))


def _inline(svg: str, title: str) -> str:
    """An SVG document made into an element that several times fits into one page."""
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # numbers that repeat in the next picture, referred to by nothing
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor")
    name = html.escape(title, quote=True)
    head = f'<svg class="curve" role="img" aria-label="{name}" style="stroke-linejoin: round" '
    return head + svg.removeprefix("<svg ").replace(">", f"><title>{name}</title>", 1)
