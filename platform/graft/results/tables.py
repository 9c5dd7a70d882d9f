"""What a reader compares: arms side by side, over the number of labelled examples.

    metrics.parquet ──► arms (what differs between the runs) ──► summary (mean over seeds) ──► grids ──► text

What an arm is, and which runs answer the same question, is said in `graft.results.arms`.
"""

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from graft.results.ablations import FULL, rung_of
from graft.results.arms import Arm, arms
from graft.results.records import each_run_once
from graft.results.statistics import Interval, mean_interval

if TYPE_CHECKING:
    from rich.table import Table

METRIC_ORDER = (
    *("pass_at_1", "accuracy", "f1", "balanced_accuracy", "macro_f1", "auroc", "auc_pr", "log_loss", "ece"),
    *("exact_match", "chrf", "perplexity", "parsed", "boolean_accuracy"),
)
"""How metrics follow one another; unknown ones come last, by name."""

LOWER_IS_BETTER = frozenset({"log_loss", "ece", "perplexity"})
"""Metrics whose best value is the smallest."""

TERMINAL_NAME = 28
"""Characters of an arm's name on one line of a terminal."""


@dataclass(frozen=True)
class Cell:
    """One arm with one number of examples: a metric over its seeds."""

    metric: str
    task: str
    arm: str
    examples: int
    interval: Interval | None
    """None where every run failed."""
    values: Mapping[int, float]
    """Seed to value; the mean of the runs that share a seed."""
    runs: int
    """Runs that are done and have this metric."""
    n: int
    """Test rows; 0 where every run failed."""
    failed: int
    """Runs that failed."""
    whole: str | None = None
    """What this is an ablation of, as `arms.Arm` has it; None where there are no ablations."""
    ablation: str | None = None
    """What it lacks."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that the mean is taken over."""
        return tuple(sorted(self.values))


@dataclass(frozen=True)
class Grid:
    """A metric on one task: arms from the best to the worst at the largest number of examples.

    Ablations stand below their whole, the rungs of a ladder in its order.
    """

    task: str
    metric: str
    sizes: tuple[int, ...]
    arms: tuple[str, ...]
    cells: Mapping[tuple[str, int], Cell]

    @property
    def seeds(self) -> int:
        """The most seeds that any cell has."""
        return max((len(cell.values) for cell in self.cells.values()), default=0)

    @property
    def test_rows(self) -> tuple[int, ...]:
        """Distinct numbers of test rows; one, unless runs with different test sets are mixed."""
        return tuple(sorted({cell.n for cell in self.cells.values() if cell.n}))

    def ranked(self, size: int) -> list[Cell]:
        """The cells of one column that have a mean, best first."""
        found = [self.cells[arm, size] for arm in self.arms if (arm, size) in self.cells]
        return sorted((cell for cell in found if cell.interval), key=_badness)

    def is_best(self, cell: Cell) -> bool:
        """Whether no cell of this column has a better mean."""
        return cell.interval is not None and _badness(cell) == _badness(self.ranked(cell.examples)[0])


def ordered(names: Iterable[str]) -> list[str]:
    """Each metric once, the main one first."""
    names = set(names)
    return [name for name in METRIC_ORDER if name in names] + sorted(names - set(METRIC_ORDER))


def metric_names(metrics: pa.Table) -> list[str]:
    """The metrics that these rows hold, the main one first; none where every run failed."""
    return ordered(metrics["metric"].drop_null().to_pylist())


def main_metric(metrics: pa.Table) -> str:
    """The metric to look at first: accuracy for a classification, f1 for a generation, pass_at_1 for programs."""
    return next(iter(metric_names(metrics)), METRIC_ORDER[0])


def summary(metrics: pa.Table, metric: str, split: str = "test") -> list[Cell]:
    """The mean and 95 % interval over seeds of a metric on the test rows, per task, arm and number of examples.

    Sorted by task, arm and examples. A failed run counts on those tasks where some run has the metric; a run that
    the table holds twice counts once. `split` may also be `test/macro` or `test/GROUP`, where the tasks have them.
    """
    metrics = each_run_once(metrics)
    of_run = arms(metrics)
    groups: dict[tuple[Arm, int], list[dict[str, Any]]] = defaultdict(list)
    columns = ["run_id", "metric", "value", "n", "examples", "seed", "split", "status"]
    for row in metrics.select(columns).to_pylist():
        failed = row["status"] == "failed"
        if failed or (row["metric"] == metric and row["split"] == split and row["value"] is not None):
            groups[of_run[row["run_id"]], row["examples"]].append(row)
    tasks = {arm.task for (arm, _), rows in groups.items() if any(row["metric"] == metric for row in rows)}
    return [_cell(metric, *key, rows) for key, rows in sorted(groups.items()) if key[0].task in tasks]


def run_to_serve(metrics: pa.Table) -> str | None:
    """The run to begin with: of the arm with the best mean at the largest number of examples, its first seed.

    Not the run with the best number: which draw of the examples was lucky on the test rows says nothing about new ones.
    None where no run is done; of several tasks, the first.
    """
    found = grids(summary(metrics, main_metric(metrics)))
    for grid in found:
        for size in reversed(grid.sizes):
            for best in grid.ranked(size)[:1]:
                of_run = arms(metrics)
                runs = metrics.select(["run_id", "examples", "seed", "status"]).to_pylist()
                return next(
                    run["run_id"]
                    for run in runs
                    if (of_run[run["run_id"]].name, of_run[run["run_id"]].task) == (best.arm, best.task)
                    and (run["examples"], run["seed"], run["status"]) == (size, best.seeds[0], "done")
                )
    return None


def grids(cells: Sequence[Cell]) -> list[Grid]:
    """The same cells as one grid per task."""
    return [_grid([cell for cell in cells if cell.task == task]) for task in sorted({cell.task for cell in cells})]


def number(value: float) -> str:
    """A metric's value as tables write it: three decimals, fewer for large values."""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def cell_parts(cell: Cell, seeds: int) -> tuple[str, str, str]:
    """Mean, half of the interval, and remarks: failed runs, and fewer seeds than the table's `seeds`; "" for none."""
    if cell.interval is None:
        return "failed", "", f"{cell.failed} runs" if cell.failed > 1 else "1 run"
    half, count = cell.interval.half_width, len(cell.values)
    remarks = [f"{cell.failed} failed"] if cell.failed else []
    if count + cell.failed != seeds:  # the failed runs do not explain it
        remarks.insert(0, "one seed" if count == 1 else f"{count} seeds")
    return number(cell.interval.mean), f"±{number(half)}" if half is not None else "", ", ".join(remarks)


def cell_text(cell: Cell, seeds: int) -> str:
    """`0.812 ±0.010 (2 failed)`: the parts of `cell_parts` on one line."""
    mean, half, remarks = cell_parts(cell, seeds)
    return " ".join(part for part in (mean, half, f"({remarks})" if remarks else "") if part)


def caption(grid: Grid, rows: str = "test rows") -> str:
    """What the numbers of a grid are; `rows` says what each is a mean of."""
    counts = " or ".join(f"{n:,}" for n in grid.test_rows)
    better = "lower" if grid.metric in LOWER_IS_BETTER else "higher"
    return f"{grid.metric}, {better} is better; {_spread_caption(grid)}; {counts} {rows}"


def markdown(cells: Sequence[Cell], words: Mapping[tuple[str, int], str] | None = None) -> str:
    """Tables in GitHub's Markdown, one per task: arms × examples, the best mean of a column bold.

    Args:
        cells: of one metric.
        words: arm and examples to what stands behind the number.
    """
    return "\n\n".join(_markdown(grid, words or {}) for grid in grids(cells))


def terminal(cells: Sequence[Cell]) -> "Table":
    """One table for a terminal: arms × examples, the best mean of a column bold, a section per task."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = grids(cells)
    sizes = sorted({size for grid in found for size in grid.sizes})
    notes = "\n".join(f"{grid.task}: {caption(grid)}" for grid in found)
    table = Table(caption=notes, caption_justify="left", box=box.SIMPLE, padding=0)
    if len(found) > 1:
        table.add_column("task")
    # Where the terminal is narrow the numbers break in two, not the names.
    table.add_column("examples", no_wrap=True)
    for size in sizes:
        table.add_column(f"{size:,}", justify="right")
    for grid in found:
        for arm in grid.arms:
            row = [Text(grid.task)] if len(found) > 1 else []
            row.append(Text(_wrapped(arm)))
            for size in sizes:
                cell = grid.cells.get((arm, size))
                style = "bold" if cell and grid.is_best(cell) else ""
                # Remarks stand below their number, so that they do not widen the column.
                row.append(Text(cell_text(cell, grid.seeds).replace(" (", "\n(") if cell else "", style=style))
            table.add_row(*row)
        table.add_section()
    return table


def _wrapped(arm: str) -> str:
    """A name over several lines, none of which ends in the dash of an ablation."""
    bound = arm.replace(" - ", " -\N{NO-BREAK SPACE}")
    return "\n".join(textwrap.wrap(bound, TERMINAL_NAME)).replace("-\N{NO-BREAK SPACE}", "- ")


def markdown_text(text: str) -> str:
    """Text from outside on one line, without anything that Markdown or HTML would read as markup."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{char}" if char in "|*`[]\\" else char for char in text)


def _spread_caption(grid: Grid) -> str:
    """What the intervals of a grid cover."""
    covers = {cell.interval.covers for cell in grid.cells.values() if cell.interval and cell.interval.low is not None}
    if not covers:
        return "one seed, so no interval" if grid.seeds == 1 else f"mean over {grid.seeds} seeds"
    units = "groups of test items" if any("groups" in one for one in covers) else "test items"
    seeds = "one seed" if grid.seeds == 1 else f"{grid.seeds} seeds"
    if covers == {"seeds"}:
        return f"mean ± half its 95 % interval over {seeds}"
    some = ", where predictions are at hand," if "seeds" in covers else ""
    over = units if grid.seeds == 1 else f"seeds and{some} {units}"
    return f"mean of {seeds} ± half its 95 % interval over {over}"


def _markdown(grid: Grid, words: Mapping[tuple[str, int], str]) -> str:
    lines = [f"**{markdown_text(grid.task)}**: {caption(grid)}", ""]
    lines.append("| examples | " + " | ".join(f"{size:,}" for size in grid.sizes) + " |")
    lines.append("|---|" + "---:|" * len(grid.sizes))
    for arm in grid.arms:
        texts = []
        for size in grid.sizes:
            cell = grid.cells.get((arm, size))
            text = " ".join(filter(None, [cell_text(cell, grid.seeds) if cell else "", words.get((arm, size))]))
            texts.append(f"**{text}**" if cell and grid.is_best(cell) else text)
        lines.append(f"| {markdown_text(arm)} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _grid(cells: Sequence[Cell]) -> Grid:
    sizes = tuple(sorted({cell.examples for cell in cells}))
    placed = {(cell.arm, cell.examples): cell for cell in cells}

    def standing(arm: str) -> list[tuple[bool, float]]:
        """Its column of the largest size first; an arm without a mean there stands below."""
        column = [placed.get((arm, size)) for size in reversed(sizes)]
        return [(False, _badness(cell)) if cell and cell.interval else (True, 0.0) for cell in column]

    def place(arm: str) -> tuple[Any, ...]:
        """That of its whole, then its own below it."""
        whole, ablation = of_arm[arm]
        if whole is None or ablation is None:
            return standing(arm), arm
        return standing(f"{whole} {FULL}"), f"{whole} {FULL}", ablation != FULL, rung_of(ablation) or 0, standing(arm)

    of_arm = {cell.arm: (cell.whole, cell.ablation) for cell in cells}
    names = sorted(sorted(of_arm), key=place)
    return Grid(cells[0].task, cells[0].metric, sizes, tuple(names), placed)


def _badness(cell: Cell) -> float:
    """The mean, turned so that less is better."""
    if cell.interval is None:
        raise ValueError(f"{cell.arm}: every run failed, there is no mean to compare")
    return cell.interval.mean if cell.metric in LOWER_IS_BETTER else -cell.interval.mean


def _cell(metric: str, arm: Arm, examples: int, rows: Sequence[Mapping[str, Any]]) -> Cell:
    done = [row for row in rows if row["status"] != "failed"]
    of_seed: dict[int, list[float]] = defaultdict(list)
    for row in done:
        of_seed[row["seed"]].append(row["value"])
    values = {seed: sum(found) / len(found) for seed, found in sorted(of_seed.items())}
    interval = mean_interval(values.values()) if values else None
    n = max((row["n"] or 0 for row in done), default=0)
    failed = len(rows) - len(done)
    return Cell(metric, arm.task, arm.name, examples, interval, values, len(done), n, failed, arm.whole, arm.ablation)
