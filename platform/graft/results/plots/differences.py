"""Differences between arms: a forest of paired ones, the steps of a ladder, the bars of other ablations, groups."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graft.results.comparisons import Comparison
from graft.results.ladders import Ladder
from graft.results.plots.style import (
    GREY,
    INK,
    VERDICTS,
    WIDTH,
    as_svg,
    dress,
    lines_of,
    metric_label,
    rows_of_names,
)
from graft.results.statistics import Interval
from graft.results.words import signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def forest(comparisons: Sequence[Comparison], title: str) -> str:
    """Each arm's difference to the one reference, with its 95 % interval, marker and verdict word.

    Args:
        comparisons: of one metric, from top to bottom.
        title: heading, and the picture's accessible name.
    """

    def draw() -> "Figure":
        names = [comparison.arm for comparison in comparisons]
        drawing, axes = _rows(names)
        _margin(axes, comparisons[0].margin)
        for place, comparison in enumerate(comparisons):
            colour, marker, filled = VERDICTS[comparison.verdict]
            _whisker(axes, comparison.difference, place, colour)
            face = colour if filled else "none"
            axes.plot(comparison.difference.mean, place, marker, color=colour, markerfacecolor=face, markersize=7.5)
            _aside(axes, place, f"{signed(comparison.difference.mean)}  {comparison.verdict}")
        axes.axvline(0, color=INK, linewidth=1)
        dress(axes, title, f"difference in {metric_label(comparisons[0].metric)}", grid="x")
        return drawing

    return as_svg(title, draw)


def waterfall(ladder: Ladder, comparisons: Mapping[str, Comparison], title: str) -> str:
    """A ladder's means from the whole down, and each rung's step from the one above with its verdict.

    Args:
        ladder: a cumulative one.
        comparisons: arm of a rung to its comparison with the rung above.
        title: heading, and the picture's accessible name.
    """

    def draw() -> "Figure":
        drawing, axes = _rows([rung.label for rung in ladder.rungs])
        before = None
        for place, rung in enumerate(ladder.rungs):
            mean = rung.cell.interval.mean if rung.cell.interval else None
            comparison = comparisons.get(rung.cell.arm)
            colour = VERDICTS[comparison.verdict][0] if comparison else GREY
            if mean is not None and before is not None:
                filled = comparison is not None and VERDICTS[comparison.verdict][2]
                bar = {"facecolor": colour if filled else "none", "edgecolor": colour, "alpha": 0.9, "linewidth": 1.4}
                axes.barh(place, mean - before, left=before, height=0.55, zorder=3, **bar)
                axes.plot([before, before], [place - 1, place + 0.275], color=GREY, linewidth=1, zorder=2)
            if mean is not None:
                axes.plot(mean, place, "|", color=INK, markersize=19, markeredgewidth=2.2, zorder=4)
            word = f"{signed(comparison.difference.mean)}  {comparison.verdict}" if comparison else ""
            _aside(axes, place, "failed" if mean is None else f"{mean:.3f}   {word}".rstrip())
            before = mean
        axes.use_sticky_edges = False
        axes.margins(x=0.06)
        axes.set_ylim(len(ladder.rungs) - 0.4, -0.6)
        dress(axes, title, metric_label(ladder.rungs[0].cell.metric), grid="x")
        return drawing

    return as_svg(title, draw)


def ablation_bars(ladder: Ladder, comparisons: Mapping[str, Comparison], title: str) -> str:
    """What each ablation changes against the whole, as bars with 95 % intervals and verdicts; else as `waterfall`."""

    def draw() -> "Figure":
        rungs = [rung for rung in ladder.rungs if rung.cell.arm in comparisons]
        drawing, axes = _rows([rung.label for rung in rungs])
        for place, rung in enumerate(rungs):
            comparison = comparisons[rung.cell.arm]
            colour, _, filled = VERDICTS[comparison.verdict]
            face = colour if filled else "none"
            axes.barh(place, comparison.difference.mean, height=0.5, facecolor=face, edgecolor=colour, linewidth=1.4)
            _whisker(axes, comparison.difference, place, INK)
            _aside(axes, place, f"{signed(comparison.difference.mean)}  {comparison.verdict}")
        axes.axvline(0, color=INK, linewidth=1)
        dress(axes, title, f"difference in {metric_label(ladder.rungs[0].cell.metric)}", grid="x")
        return drawing

    return as_svg(title, draw)


def group_gains(gains: Mapping[str, Interval], metric: str, title: str) -> str:
    """How much one arm gains over another in each group of test rows, with 95 % intervals over seeds.

    Args:
        gains: group to the paired difference, from top to bottom.
        metric: its name.
        title: heading, and the picture's accessible name.
    """

    def draw() -> "Figure":
        drawing, axes = _rows(list(gains))
        for place, gain in enumerate(gains.values()):
            colour, marker, filled = VERDICTS["better" if gain.mean > 0 else "worse"]
            face = colour if filled and gain.excludes_zero else "none"
            _whisker(axes, gain, place, colour)
            axes.plot(gain.mean, place, marker, color=colour, markerfacecolor=face, markersize=7.5)
            _aside(axes, place, signed(gain.mean))
        axes.axvline(0, color=INK, linewidth=1)
        dress(axes, title, f"difference in {metric_label(metric)}", grid="x")
        return drawing

    return as_svg(title, draw)


def _rows(names: Sequence[str]) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    height = 1.35 + 0.27 * lines_of(names) + 0.16 * len(names)
    drawing = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = drawing.add_subplot()
    rows_of_names(axes, names)
    return drawing, axes


def _whisker(axes: Any, interval: Interval, place: int, colour: str) -> None:
    if interval.low is not None and interval.high is not None:
        axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=1.8, zorder=3)


def _aside(axes: Any, place: int, text: str) -> None:
    """Words to the right of a row."""
    transform = axes.get_yaxis_transform()
    axes.text(1.015, place, text, transform=transform, va="center", ha="left", fontsize=10.5, color=INK)


def _margin(axes: Any, margin: float | None) -> None:
    """The differences that are taken for none."""
    if margin is not None:
        axes.axvspan(-margin, margin, color=GREY, alpha=0.16, linewidth=0, zorder=0)
