"""One self-contained HTML page and one Markdown file that say what was compared and what came out.

    metrics ──► Report (plain values: sections, costs, failures, provenance) ──► report.html.jinja, report.md.jinja

Nothing in them depends on the time or the machine of writing: the same runs give the same bytes.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa

from graft.results.arms import Arm, arms
from graft.results.ladders import Ladder, ladder_caption, ladders
from graft.results.plots import colour, learning_curve
from graft.results.records import COSTS, load_metrics
from graft.results.shared import Shared, load_shared
from graft.results.statistics import Interval, paired_interval, wilson
from graft.results.tables import (
    Cell,
    Grid,
    caption,
    cell_parts,
    cell_text,
    grids,
    markdown,
    markdown_text,
    metric_names,
    number,
    ordered,
    summary,
)
from graft.storage import open_storage, write_atomic

CURVES = ("log_loss",)
"""Metrics drawn besides the main one."""

COSTS_NOTE = (
    "Means over the runs that are done, of what each run itself spent. What the sweep computed once for all its runs "
    "(said at the top), or any earlier run left in the column store, is read, not computed: seconds, tokens and "
    "forward passes are therefore not comparable between arms that share a store."
)
"""Stands beneath the costs."""


@dataclass(frozen=True)
class Verdict:
    """The best mean of a column against the second best."""

    best: Cell
    second: Cell | None
    """None where one arm only has a mean."""
    difference: Interval | None
    """Best minus second over common seeds; None without a second or a common seed."""

    @property
    def word(self) -> str:
        """`ahead` where the paired 95 % interval excludes zero, else `undecided`; `alone` without a second."""
        if self.second is None:
            return "alone"
        return "ahead" if self.difference and self.difference.excludes_zero else "undecided"


@dataclass(frozen=True)
class Section:
    """One task: its metrics, the main one first."""

    task: str
    grids: tuple[Grid, ...]
    curves: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    """One per number of examples, on the main metric."""
    ladders: tuple[Ladder, ...]
    """The ablations of each arm that has some, on the main metric."""
    costs: tuple[Mapping[str, Any], ...]
    colours: Mapping[str, str]


@dataclass(frozen=True)
class Report:
    """All that the page says, as plain values."""

    title: str
    facts: Mapping[str, tuple[str, ...]]
    sections: tuple[Section, ...]
    cost_columns: Mapping[str, str]
    failures: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]


def write_report(paths: Sequence[str], out: str | None = None) -> tuple[str, str]:
    """Compare runs and write `report.html` and `report.md`.

    Args:
        paths: run folders, sweep folders and storage roots, in any mix; local paths or URIs.
        out: folder or URI to write to; None is the first path's folder for a sweep, the storage root for runs.

    Returns:
        The paths of the HTML page and the Markdown file.

    Raises:
        DataError: no run that is done is found.
        StoreError: a file is damaged, or the storage refuses.
    """
    report = gather(load_metrics(paths), load_shared(paths))
    folder = str(out) if out is not None else _home(str(paths[0]))
    files = open_storage(folder)
    for name in ("report.html", "report.md"):
        write_atomic(files, name, _rendered(report, f"{name}.jinja").encode())
    folder = folder.rstrip("/")
    return f"{folder}/report.html", f"{folder}/report.md"


def gather(metrics: pa.Table, shared: Sequence[Shared] = ()) -> Report:
    """Everything that a report says about these rows of METRICS, and what was computed once for all of them."""
    of_run = arms(metrics)
    runs = [run | {"arm": of_run[run["run_id"]]} for run in _runs(metrics)]
    cells = [cell for name in metric_names(metrics) for cell in summary(metrics, name)]
    costs = {column: heading for column, heading in COSTS.items() if any(run[column] for run in runs)}
    tasks = sorted({cell.task for cell in cells})
    return Report(
        title=", ".join(sorted({run["name"] for run in runs})),
        facts=_facts(runs, metrics, shared),
        sections=tuple(_section(task, cells, runs, costs) for task in tasks),
        cost_columns=costs,
        failures=_failures(runs),
        notes=_notes(runs, cells),
    )


def _section(task: str, cells: Sequence[Cell], runs: Sequence[Mapping[str, Any]], costs: Iterable[str]) -> Section:
    cells = [cell for cell in cells if cell.task == task]
    names = ordered({cell.metric for cell in cells})
    found = [grids([cell for cell in cells if cell.metric == name])[0] for name in names]
    drawn = [name for name in (names[0], *CURVES) if name in names and len(found[0].sizes) > 1]
    titles = {name: f"{name.replace('_', ' ').capitalize()} on {task}" for name in drawn}
    return Section(
        task=task,
        grids=tuple(found),
        curves=tuple(learning_curve(cells, name, titles[name]) for name in dict.fromkeys(drawn)),
        verdicts=tuple(_verdict(found[0].ranked(size)) for size in found[0].sizes if found[0].ranked(size)),
        ladders=ladders(found[0].cells.values()),
        costs=_costs([run for run in runs if run["arm"].task == task], costs, found[0].arms),
        colours={arm: colour(place) for place, arm in enumerate(sorted({cell.arm for cell in cells}))},
    )


def _verdict(ranked: Sequence[Cell]) -> Verdict:
    if len(ranked) == 1:
        return Verdict(ranked[0], None, None)
    best, second = ranked[:2]
    paired = best.values.keys() & second.values.keys()
    return Verdict(best, second, paired_interval(best.values, second.values) if paired else None)


def _costs(
    runs: Sequence[Mapping[str, Any]], columns: Iterable[str], order: Sequence[str]
) -> tuple[Mapping[str, Any], ...]:
    """Means over an arm's runs that are done."""
    rows = []
    for name in order:
        own = [run for run in runs if run["arm"].name == name and run["status"] == "done"]
        means = {column: sum(run[column] or 0 for run in own) / len(own) for column in columns} if own else {}
        rows.append({"arm": name, "runs": len(own), **means})
    return tuple(rows)


def _failures(runs: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Failed runs, one entry per arm, size and error with its seeds."""
    seeds: dict[tuple[Arm, int, str], list[int]] = defaultdict(list)
    for run in runs:
        if run["status"] == "failed":
            seeds[run["arm"], run["examples"], run["error"] or "no message"].append(run["seed"])
    return tuple(
        {"task": arm.task, "arm": arm.name, "examples": examples, "seeds": sorted(found), "error": error}
        for (arm, examples, error), found in sorted(seeds.items())
    )


def _facts(
    runs: Sequence[Mapping[str, Any]], metrics: pa.Table, shared: Sequence[Shared]
) -> dict[str, tuple[str, ...]]:
    """What was compared and with what; each value once, in order."""
    failed = sum(run["status"] == "failed" for run in runs)
    tested = sorted({(run["arm"].task, n) for run in runs for n in run["test_rows"]})
    equal = sorted({(run["arm"].task, run["equal_inputs"]) for run in runs if run["equal_inputs"]})
    models = {
        f"{role}: {model.get('source')} (fingerprint {str(model.get('fingerprint'))[:12]})"
        for run in runs
        for role, model in json.loads(run["models"] or "{}").items()
    }
    versions: dict[str, set[str]] = defaultdict(set)
    for text in set(metrics["versions"].to_pylist()):
        for package, version in json.loads(text or "{}").items():
            versions[package].add(version)
    facts = {
        "task": tuple(f"{task}, {n:,} test rows" for task, n in tested),
        "equal inputs": tuple(
            f"{task}: {n:,} rows share their input with another row; kept on one side of the split" for task, n in equal
        ),
        "labelled examples": (", ".join(f"{size:,}" for size in sorted({run["examples"] for run in runs})),),
        "seeds": (", ".join(str(seed) for seed in sorted({run["seed"] for run in runs})),),
        "runs": (f"{len(runs) - failed:,} done, {failed:,} failed",),
        "models": tuple(sorted(models)),
        "computed once": tuple(
            f"{cost.graph}: {cost.rows:,} rows for all runs, {cost.forward_passes:,} forward passes, "
            f"{cost.tokens:,} tokens, {cost.seconds:,.0f} s"
            + (f", {cost.teacher_calls:,} rationales" if cost.teacher_calls else "")
            for cost in shared
        ),
        "device": tuple(sorted({run["device"] for run in runs if run["device"]})),
        "versions": (", ".join(f"{name} {' / '.join(sorted(found))}" for name, found in sorted(versions.items())),),
        "git commit": tuple(sorted({run["git_commit"] for run in runs if run["git_commit"]})),
    }
    return {name: values for name, values in facts.items() if any(values)}


def _notes(runs: Sequence[Mapping[str, Any]], cells: Sequence[Cell]) -> tuple[str, ...]:
    """What a reader must not read into the numbers."""
    notes = [
        "An interval is Student's t over seeds. It covers what the draw of the labelled examples and the training "
        "change, on one fixed test set; it does not cover the draw of the test rows, which all runs share.",
        *_test_set_notes(cells),
        "A verdict compares the best mean of a column with the second best by the 95 % interval of their difference, "
        "paired by seed: ahead where it excludes 0, else undecided. The two are picked after seeing the means, and "
        "nothing is corrected for the number of comparisons: take it as a pointer, not as a test.",
    ]
    if cells and all(len(cell.values) <= 1 for cell in cells):
        notes.insert(0, "One seed per cell: there are no intervals, and no order of arms is established.")
    if any(cell.runs > len(cell.values) for cell in cells):
        notes.append("Some runs share arm, examples and seed; they count as one value, their mean.")
    cut = sum(run["texts_cut"] or 0 for run in runs)
    if cut:
        notes.append(f"{cut:,} texts, summed over runs, were longer than task.max_tokens and were cut.")
    if any((run["git_commit"] or "").endswith("-dirty") for run in runs):
        notes.append("A commit marked -dirty had local changes: its code cannot be recovered from the commit alone.")
    return tuple(notes)


def _test_set_notes(cells: Sequence[Cell]) -> list[str]:
    """For scale: what the draw of the test rows alone does to the best accuracy of each task."""
    notes = []
    for grid in grids([cell for cell in cells if cell.metric == "accuracy"]):
        best = next(ranked[0] for size in reversed(grid.sizes) if (ranked := grid.ranked(size)))
        if best.interval and best.n:
            limits = wilson(round(best.interval.mean * best.n), best.n)
            notes.append(
                f"For scale, on {grid.task}: another draw of {best.n:,} test rows alone could put an accuracy of "
                f"{number(best.interval.mean)} anywhere from {number(limits.low or 0)} to {number(limits.high or 1)} "
                "(Wilson, 95 %)."
            )
    return notes


def _runs(metrics: pa.Table) -> list[dict[str, Any]]:
    """The run-level columns, one row per run, and the numbers of test rows it was measured on."""
    found: dict[str, dict[str, Any]] = {}
    for row in metrics.drop_columns(["versions", "spec"]).to_pylist():
        run = found.setdefault(row["run_id"], row | {"test_rows": set()})
        if row["split"] == "test" and row["n"]:
            run["test_rows"].add(row["n"])
    return list(found.values())


def _home(path: str) -> str:
    """Where a report belongs: beside a sweep's tables, or at the root of the storage that holds the runs."""
    folder = path.rstrip("/") if "://" in path else str(Path(path).expanduser().resolve())
    if folder.rsplit("/", 1)[-1] == "runs":
        return folder.rsplit("/", 1)[0]
    parts = folder.rsplit("/", 2)
    return parts[0] or "/" if len(parts) == 3 and parts[1] == "runs" else folder


def _rendered(report: Report, template: str) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=template.startswith("report.html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "md": markdown_text,
        "number": number,
        "signed": lambda value: f"{value:+.3f}".replace("-", "\N{MINUS SIGN}"),
        "cost": _cost_text,
    }
    environment.globals |= {
        "caption": caption,
        "costs_note": COSTS_NOTE,
        "cell_parts": cell_parts,
        "cell_text": cell_text,
        "ladder_caption": ladder_caption,
        "markdown": lambda grid: markdown(list(grid.cells.values())),
    }
    source = resources.files("graft.results").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(source).render(report=report)


def _cost_text(value: float) -> str:
    """Four significant figures at most: 0.42, 61.3, 1,204, 22.7 M."""
    for limit, unit in ((1e9, " G"), (1e6, " M")):
        if value >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
