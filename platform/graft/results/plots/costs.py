"""What a score costs: each arm's mean over what it takes, and which arms nothing beats on both."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graft.results.plots.style import GREY, INK, WIDTH, as_svg, dress, legend, lines_of, look, metric_label, wrapped
from graft.results.prices import Priced, front

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cost_scatter(
    arms: Sequence[Priced], columns: Mapping[str, str], places: Mapping[str, int], metric: str, title: str
) -> str:
    """Score over each kind of cost on logarithmic axes; a line joins the arms of the front, which have a ring.

    Args:
        arms: with the costs of these columns.
        columns: column to heading, a panel each.
        places: of arms in a sorted list, for their colours.
        metric: its name.
        title: heading, and the picture's accessible name.
    """

    def draw() -> "Figure":
        from matplotlib.figure import Figure

        height = max(4.4, 1.2 + 0.27 * lines_of([arm.arm for arm in arms]))
        drawing = Figure(figsize=(WIDTH, height), layout="constrained")
        panels = drawing.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for place, (axes, (column, heading)) in enumerate(zip(panels, columns.items(), strict=True)):
            _panel(axes, arms, column, places, metric)
            dress(axes, title if place == 0 else "", heading, "" if place else metric_label(metric))
        legend(panels[-1])
        return drawing

    return as_svg(title, draw)


def _panel(axes: Any, arms: Sequence[Priced], column: str, places: Mapping[str, int], metric: str) -> None:
    positive = [arm.costs[column] for arm in arms if arm.costs[column] > 0]
    low, high = (math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))) if positive else (0, 1)
    high = max(high, low + 1)
    free = len(positive) < len(arms)
    nothing = low - max(0.7, 0.3 * (high - low))

    def across(cost: float) -> float:
        return math.log10(cost) if cost > 0 else nothing  # it has no logarithm: it stands to the left

    best = front(arms, column, metric)
    line = [(across(arm.costs[column]), arm.score) for arm in best]
    axes.step(*zip(*line, strict=True), where="post", color=GREY, linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
    axes.plot(*zip(*line, strict=True), "o", color=INK, markerfacecolor="none", markersize=13, zorder=3)
    for arm in arms:
        style = look(places.get(arm.arm, 0))
        axes.plot(
            across(arm.costs[column]),
            arm.score,
            **style,
            linestyle="none",
            markersize=7,
            label=wrapped(arm.arm),
            zorder=4,
        )
    ticks = range(low, high + 1, max(1, math.ceil((high - low) / 2)))
    at = [nothing, *ticks] if free else list(ticks)
    axes.set_xticks(at, [*(["none"] if free else []), *(_power(tick) for tick in ticks)])
    axes.set_xlim((nothing if free else low) - 0.25, high + 0.2)


def _power(exponent: int) -> str:
    """`0.01`, `100`, `10 k`, `1 M`."""
    for limit, unit in ((9, "G"), (6, "M"), (3, "k")):
        if exponent >= limit:
            return f"{10 ** (exponent - limit)} {unit}"
    return f"{10**exponent:,}" if exponent >= 0 else f"{10.0**exponent:.{-exponent}f}"
