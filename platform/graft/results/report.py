"""One self-contained HTML page and one Markdown file that say what was compared and what came out.

    metrics, predictions, searches ──► Report (plain values) ──► report.html.jinja, report.md.jinja

Nothing in them depends on the time or the machine of writing: the same runs give the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa

from graft.results import provenance, words
from graft.results.arms import arms
from graft.results.ladders import ladder_caption
from graft.results.outcomes import Outcome, outcomes
from graft.results.predictions import load_predictions
from graft.results.provenance import Plan, load_plans
from graft.results.records import COSTS, load_metrics
from graft.results.resampling import DRAWS_BESIDE
from graft.results.searches import load_searches
from graft.results.sections import Section, named_searches, section, with_intervals
from graft.results.shared import Shared, load_shared
from graft.results.tables import (
    Cell,
    caption,
    cell_parts,
    cell_text,
    markdown,
    markdown_text,
    metric_names,
    number,
    ordered,
    summary,
)
from graft.storage import open_storage, write_atomic

COSTS_NOTE = (
    "Means over the runs that are done, of what each run itself spent, attempts that were killed included; not counted "
    "is what a kill took with it: rows that were not stored yet, steps after the last checkpoint. What the sweep "
    "computed once for all its runs (said at the top), or any earlier run left in the column store, is read, not "
    "computed: seconds, tokens and forward passes are therefore not comparable between arms that share a store."
)
"""Stands beneath the costs."""


@dataclass(frozen=True)
class Report:
    """All that the page says, as plain values."""

    title: str
    facts: Mapping[str, tuple[str, ...]]
    sections: tuple[Section, ...]
    cost_columns: Mapping[str, str]
    failures: tuple[Mapping[str, Any], ...]
    made_with: Mapping[str, tuple[str, ...]]
    plans: tuple[Plan, ...]
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
    paths = [str(path) for path in paths]
    metrics = load_metrics(paths)
    predictions = load_predictions(paths, set(metrics["run_id"].to_pylist()))
    report = gather(metrics, load_shared(paths), predictions, load_searches(paths), load_plans(paths))
    folder = str(out) if out is not None else _home(paths[0])
    files = open_storage(folder)
    for name in ("report.html", "report.md"):
        write_atomic(files, name, _rendered(report, f"{name}.jinja").encode())
    folder = folder.rstrip("/")
    return f"{folder}/report.html", f"{folder}/report.md"


def gather(
    metrics: pa.Table,
    shared: Sequence[Shared] = (),
    predictions: pa.Table | None = None,
    searches: pa.Table | None = None,
    plans: Sequence[Plan] = (),
) -> Report:
    """Everything that a report says about these runs.

    Args:
        metrics: rows of METRICS.
        shared: what was computed once for all of them.
        predictions: of these runs, as `load_predictions` reads them; without, intervals are those over seeds.
        searches: rows of SEARCH.
        plans: the specs of the sweeps, one of which may state a margin of equivalence.
    """
    of_run = arms(metrics)
    runs = provenance.runs_of(metrics, of_run)
    tried = named_searches(searches, of_run)
    known, cells = _outcomes(metrics, predictions)
    costs = {column: heading for column, heading in COSTS.items() if any(run[column] for run in runs)}
    margin = provenance.margin_of(plans)
    sections = tuple(
        section(
            task,
            {name: [one for one in found if one.cell.task == task] for name, found in known.items()},
            [cell for cell in cells if cell.task == task],
            [run for run in runs if run["arm"].task == task],
            metrics,
            [row for row in tried if row["arm"].task == task],
            costs,
            margin,
        )
        for task in sorted({cell.task for cell in cells})
    )
    return Report(
        title=", ".join(sorted({run["name"] for run in runs})),
        facts=provenance.facts(runs, shared, tried),
        sections=sections,
        cost_columns=costs,
        failures=provenance.failures(runs),
        made_with=provenance.made_with(runs, metrics),
        plans=tuple(plans),
        notes=provenance.notes(runs, cells, [one for part in sections for one in part.differences], margin),
    )


def _outcomes(metrics: pa.Table, predictions: pa.Table | None) -> tuple[dict[str, list[Outcome]], list[Cell]]:
    """What the tasks' main metrics gave, and the cells of all metrics with the intervals that the outcomes know.

    Only the main metrics' draws are kept; those of others are let go with their interval.
    """
    names = metric_names(metrics)
    plain = {name: summary(metrics, name) for name in names}
    of_task: dict[str, set[str]] = {}
    for cell in (cell for found in plain.values() for cell in found):
        of_task.setdefault(cell.task, set()).add(cell.metric)
    main = {task: ordered(found)[0] for task, found in of_task.items()}
    kept: dict[str, list[Outcome]] = {}
    cells: list[Cell] = []
    for name in names:
        own = [task for task, metric in main.items() if metric == name]
        found = outcomes(metrics, predictions, name) if own else outcomes(metrics, predictions, name, DRAWS_BESIDE)
        kept[name] = [one for one in found if one.cell.task in own]
        cells += with_intervals(plain[name], found)
    return kept, cells


def _home(path: str) -> str:
    """Where a report belongs: beside a sweep's tables, or at the root of the storage that holds the runs."""
    folder = path.rstrip("/") if "://" in path else str(Path(path).expanduser().resolve())
    if folder.rsplit("/", 1)[-1] == "runs":
        return folder.rsplit("/", 1)[0]
    parts = folder.rsplit("/", 2)
    return parts[0] or "/" if len(parts) == 3 and parts[1] == "runs" else folder


def _rendered(report: Report, template: str) -> str:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = resources.files("graft.results")
    environment = Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=template.startswith("report.html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "md": markdown_text,
        "sentence": words.markdown_sentence,
        "number": number,
        "signed": words.signed,
        "limits": words.limits,
        "p": words.p_text,
        "cost": words.cost_text,
        "count": "{:,}".format,
    }
    environment.globals |= {
        "caption": caption,
        "costs_note": COSTS_NOTE,
        "cell_parts": cell_parts,
        "cell_text": cell_text,
        "ladder_caption": ladder_caption,
        "markdown": _markdown,
        "names": words.names,
        "plural": words.plural,
        "symbols": words.SYMBOLS,
    }
    return environment.get_template(template).render(report=report)


def _markdown(part: Section, place: int) -> str:
    """One of a section's grids; the main one with the verdicts."""
    verdicts = {} if place else dict(part.verdicts)
    if not place:
        verdicts |= {(arm, size): "reference" for size, arm in part.references.items()}
    return markdown(list(part.grids[place].cells.values()), verdicts)
