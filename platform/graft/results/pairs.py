"""Two runs, or two arms of a sweep, held against each other: what `graft compare` prints."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from graft.errors import DataError, suggest
from graft.results.arms import arms
from graft.results.comparisons import Comparison, compare_named
from graft.results.outcomes import outcomes
from graft.results.predictions import load_predictions
from graft.results.provenance import load_plans, margin_of
from graft.results.records import load_metrics
from graft.results.tables import LOWER_IS_BETTER, main_metric, metric_names, number
from graft.results.words import SYMBOLS, limits, numbers, p_text, plural, signed


@dataclass(frozen=True)
class Pair:
    """Two names and what their comparisons say."""

    metric: str
    comparisons: tuple[Comparison, ...]
    """One for each task and number of examples that both have."""

    def lines(self) -> Iterator[str]:
        """The comparisons as text, a paragraph each."""
        better = "lower" if self.metric in LOWER_IS_BETTER else "higher"
        for place, one in enumerate(self.comparisons):
            if place:
                yield ""
            yield f"{one.arm} against {one.other}"
            where = f"{one.task}, {plural(one.examples, 'labelled example')}"
            items = f", {plural(one.items, 'test row')}" if one.items else ""
            yield f"  {where}: {self.metric} ({better} is better), seeds {numbers(one.seeds)}{items}"
            known = f", 95 % interval {limits(one.difference, sign=True)}" if limits(one.difference) else ""
            over = f" over {one.difference.covers}" if known else "; one seed without predictions has no interval"
            yield f"  verdict               {SYMBOLS[one.verdict]} {one.verdict}"
            yield f"  difference            {signed(one.difference.mean)}{known}{over}"
            if one.p is not None:
                yield f"  p                     {p_text(one.p)}, of no difference; not corrected: the pair was named"
            if one.equivalent_p is not None:
                yield f"  p of equivalence      {p_text(one.equivalent_p)}, of a difference of {one.margin:g} or more"
            if one.detectable is not None:
                yield f"  smallest detectable   {number(one.detectable)}, found with a probability of 80 %"
            for test in one.mcnemar:
                only = f"only the first is right on {test.only_arm:,} rows, only the second on {test.only_other:,}"
                yield f"  McNemar, seed {test.seed:<8}{only}: p {p_text(test.p)}"


def compare_pair(
    first: str, second: str, sweep: str | None = None, storage: str = ".", metric: str | None = None
) -> Pair:
    """Two runs, or two arms of one sweep.

    Args:
        first: a run_id, a run folder, or with `sweep` the name of an arm.
        second: the same.
        sweep: folder of a sweep.
        storage: where runs are looked for by their id.
        metric: to be compared by; None is the main one.

    Raises:
        DataError: one of them is not there, or the two answer different questions.
    """
    paths = [sweep] if sweep is not None else [_folder(name, storage) for name in (first, second)]
    metrics = load_metrics(paths)
    names = [_only_run(path) for path in paths] if sweep is None else [first, second]
    known = set(metrics["run_id"].to_pylist())
    if set(names) <= known:
        metrics = metrics.filter(pc.is_in(metrics["run_id"], pa.array(names, pa.string())))
        names = _arms(metrics, names)
    metric = _metric(metrics, metric)
    predictions = load_predictions(paths, set(metrics["run_id"].to_pylist()))
    found = compare_named(
        outcomes(metrics, predictions, metric), names[0], names[1], margin_of(load_plans(paths if sweep else []))
    )
    return Pair(metric, tuple(found))


def _only_run(path: str) -> str:
    """The run_id of a run's folder."""
    run_ids = sorted(set(load_metrics([path])["run_id"].to_pylist()))
    if len(run_ids) > 1:
        raise DataError(f"{path}: holds {len(run_ids)} runs; name one of them, or give a sweep's folder with --sweep")
    return str(run_ids[0])


def _arms(metrics: pa.Table, run_ids: Sequence[str]) -> list[str]:
    """The names of two runs' arms."""
    if run_ids[0] == run_ids[1]:
        raise DataError(f"{run_ids[0]}: compared with itself; name two different runs")
    rows = {row["run_id"]: row for row in metrics.select(["run_id", "examples", "seed", "error"]).to_pylist()}
    for run_id in run_ids:
        if rows[run_id]["error"] is not None:
            raise DataError(f"{run_id}: this run failed: {rows[run_id]['error']}; run its spec again")
    of_run = arms(metrics)
    one, other = (of_run[run_id] for run_id in run_ids)
    if one.task != other.task:
        raise DataError(f"the runs answer different tasks, {one.task} and {other.task}; run both on the same rows")
    for column in ("examples", "seed"):
        a, b = (rows[run_id][column] for run_id in run_ids)
        if a != b:
            raise DataError(f"the runs have different {column}, {a} and {b}; run both with the same regime.{column}")
    if one.name == other.name:
        raise DataError(f"the runs are of one arm, {one.name}: they differ in no setting; name runs of two arms")
    return [one.name, other.name]


def _metric(metrics: pa.Table, metric: str | None) -> str:
    known = metric_names(metrics)
    if metric is None:
        return main_metric(metrics)
    if metric not in known:
        raise DataError(f"--metric: there is no metric {metric!r}; {suggest(metric, known)}")
    return metric


def _folder(name: str, storage: str) -> str:
    """The folder of a run, given by its id or by itself."""
    if "://" in name or Path(name).is_dir():
        return name
    inside = f"{storage.rstrip('/')}/runs/{name}"
    if "://" in storage or Path(inside).is_dir():
        return inside
    raise DataError(
        f"{name}: no run of this name under {storage}/runs, nor a run folder; `graft ls` lists them; to compare arms "
        "by name, give their sweep's folder with --sweep"
    )
