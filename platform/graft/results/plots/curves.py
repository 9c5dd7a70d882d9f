"""What more examples bring: learning curves, and what more trials of a search bring."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.errors import DataError
from graft.results.fits import Fit
from graft.results.plots.style import (
    WIDTH,
    as_svg,
    colour,
    dress,
    examples_axis,
    legend,
    lines_of,
    look,
    metric_label,
    wrapped,
)
from graft.results.tables import Cell, Grid, grids

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BANDS = 6
"""Arms whose intervals are drawn as bands; more would cover one another, and have bars side by side."""


def learning_curve(summary: Sequence[Cell], metric: str, title: str, fits: Mapping[str, Fit] | None = None) -> str:
    """A metric over the number of labelled examples, one line per arm with its 95 % intervals.

    Args:
        summary: cells of one task; those of other metrics only keep the colours the same in all its pictures.
        metric: name on the vertical axis.
        title: heading, and the picture's accessible name.
        fits: arm to the power law to draw beside it, dashed.

    Returns:
        An `<svg>` element without a background; text and axes take the page's colour.

    Raises:
        DataError: the cells hold no mean of this metric, or belong to several tasks.
    """
    return as_svg(title, lambda: figure(summary, metric, title, fits), metric)


def figure(summary: Sequence[Cell], metric: str, title: str, fits: Mapping[str, Fit] | None = None) -> "Figure":
    """The learning curve as a matplotlib figure: see `learning_curve`."""
    found = grids([cell for cell in summary if cell.metric == metric and cell.interval])
    if len(found) != 1:
        tasks = ", ".join(grid.task for grid in found) or "none"
        raise DataError(f"learning curve of {metric}: give the cells of one task that have a mean; got tasks: {tasks}")
    grid = found[0]
    drawing, axes = _canvas(grid.arms)
    # Colours follow the alphabet, so an arm looks the same in every picture; the legend follows the ranking.
    places = {arm: place for place, arm in enumerate(sorted({cell.arm for cell in summary}))}
    for order, arm in enumerate(grid.arms):
        _draw(axes, grid, arm, places[arm], order)
    for arm, fit in (fits or {}).items():
        sizes = np.geomspace(grid.sizes[0], grid.sizes[-1], 60)
        axes.plot(sizes, fit.at(sizes), color=colour(places[arm]), linestyle=(0, (4, 3)), linewidth=1.1, zorder=2)
    examples_axis(axes, grid.sizes)
    dress(axes, title, "labelled examples", metric_label(metric))
    legend(axes)
    return drawing


def expected_best_curves(
    curves: Mapping[str, Sequence[float]], places: Mapping[str, int], metric: str, title: str
) -> str:
    """What the best of k settings is worth on held-out examples, for k up to those tried.

    Args:
        curves: arm to its values for k from 1 on.
        places: of arms in a sorted list, for their colours.
        metric: name on the vertical axis.
        title: heading, and the picture's accessible name.
    """

    def draw() -> "Figure":
        from matplotlib.ticker import MaxNLocator

        drawing, axes = _canvas(list(curves))
        for arm, values in curves.items():
            trials = range(1, len(values) + 1)
            axes.plot(trials, values, **look(places.get(arm, 0)), label=wrapped(arm), markersize=5, linewidth=1.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        dress(axes, title, "settings tried", f"best {metric_label(metric)}")
        legend(axes)
        return drawing

    return as_svg(title, draw)


def _canvas(arms: Sequence[str]) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(WIDTH, max(4.6, 1.2 + 0.27 * lines_of(arms))), layout="constrained")
    return drawing, drawing.add_subplot()


def _draw(axes: Any, grid: Grid, arm: str, place: int, order: int) -> None:
    cells = [grid.cells[arm, size] for size in grid.sizes if (arm, size) in grid.cells]
    found = [(cell.examples, cell.interval) for cell in cells if cell.interval]
    banded = len(grid.arms) <= MOST_BANDS and len(found) > 1
    # Bars stand side by side within a few percent of the axis, so that they do not hide one another.
    step = 0.0 if banded else min(0.04, 0.2 / max(len(grid.arms) - 1, 1))
    shift = 2 ** (step * (order - (len(grid.arms) - 1) / 2))
    xs = [size * shift for size, _ in found]
    means = [interval.mean for _, interval in found]
    lows = [interval.mean if interval.low is None else interval.low for _, interval in found]
    highs = [interval.mean if interval.high is None else interval.high for _, interval in found]
    errors = [np.subtract(means, lows), np.subtract(highs, means)]
    axes.errorbar(
        xs,
        means,
        yerr=None if banded or not np.any(errors) else errors,
        label=wrapped(arm),
        **look(place),
        markersize=5.5,
        linewidth=1.6,
        elinewidth=1.1,
        capsize=0,
        zorder=3 + len(grid.arms) - order,
    )
    if banded and np.any(errors):
        axes.fill_between(xs, lows, highs, color=colour(place), alpha=0.15, linewidth=0, zorder=2)
