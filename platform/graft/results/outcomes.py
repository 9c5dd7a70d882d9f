"""What the arms of a sweep gave on the same test items, so that intervals and tests can look beneath their means.

metrics.parquet ──► cells (arm × examples)  ┐
predictions.parquet ──► items, in one order ┴──► outcomes: a cell with how seeds and items move its mean
"""

import dataclasses
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from graft.arrays import score_matrix
from graft.results import weighted
from graft.results.arms import arms
from graft.results.records import each_run_once
from graft.results.resampling import DRAWS, Spread, clusters, resample, shared_items
from graft.results.statistics import Interval
from graft.results.tables import Cell, summary
from graft.results.weighted import Floats, Ints, Weighted
from graft.tasks.metrics import ROW_SCORES, log_losses, normalised, rarer_label, row_score

log = logging.getLogger(__name__)

COLUMNS = (
    *("run_id", "id", "group", "together", "target", "prediction", "passed"),
    *("scores", "target_log_probability", "target_tokens"),
)
"""The columns of predictions that are looked at; the rest may be left out."""

SHARES = ("accuracy", "exact_match", "f1", "parsed", "boolean_accuracy", "pass_at_1")
"""Metrics that are means of a value between 0 and 1 that each item has."""

UNIT = (*SHARES, "balanced_accuracy", "macro_f1", "auroc", "auc_pr", "ece")
"""Metrics between 0 and 1: so are the limits of their intervals."""


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """One arm with one number of examples, and what is known of its mean."""

    cell: Cell
    method: str
    spread: Spread
    """Without draws where the metric cannot be had from predictions, or these are not there or not of these rows."""

    def interval(self, confidence: float = 0.95) -> Interval:
        """The mean over seeds with its interval; `covers` says whether over other test items too."""
        found = self.spread.interval(confidence)
        if self.cell.metric not in UNIT or found.low is None or found.high is None:
            return found
        return dataclasses.replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def outcomes(metrics: pa.Table, predictions: pa.Table | None, metric: str, draws: int = DRAWS) -> tuple[Outcome, ...]:
    """Every cell of `graft.results.tables.summary` that has a mean, in its order, with its spread.

    Resampled are the metrics of `graft.tasks.metrics`: means over rows as such, the others computed anew on every draw.
    A cell any of whose runs has no predictions here, or gives another value than its table holds, is left without
    draws, with a warning: its interval is Student's t over seeds.

    Args:
        metrics: rows of METRICS.
        predictions: the rows of these runs, with COLUMNS as far as their tasks have them; None where there are none.
        metric: name of one.
        draws: of items; the same for all arms of a task, and whenever this is called.

    Raises:
        DataError: scores are not finite.
    """
    metrics = each_run_once(metrics)
    of_run = arms(metrics)
    runs: dict[tuple[str, str, int], list[Mapping[str, Any]]] = defaultdict(list)
    columns = ["run_id", "seed", "examples", "method", "spec", "metric", "split", "value"]
    for row in metrics.select(columns).to_pylist():
        if row["metric"] == metric and row["split"] == "test" and row["value"] is not None:
            arm = of_run[row["run_id"]]
            runs[arm.task, arm.name, row["examples"]].append(row)
    cells = [cell for cell in summary(metrics, metric) if cell.interval]
    rows = _rows_of_runs(predictions)
    found: list[Outcome] = []
    for task in dict.fromkeys(cell.task for cell in cells):
        own = [cell for cell in cells if cell.task == task]
        of_cell = [runs[task, cell.arm, cell.examples] for cell in own]
        resampled = _resampled([run for group in of_cell for run in group], rows, metric, draws)
        for cell, group in zip(own, of_cell, strict=True):
            spread = _of_cell(cell, group, resampled)
            found.append(Outcome(cell, group[0]["method"], spread))
    return tuple(found)


def run_metric(rows: pa.Table, metric: str, parser: str | None = None) -> Weighted | Floats | None:
    """How one run's answers make up a metric: a value per row [N] whose mean it is, or a function of weights.

    Args:
        rows: the run's predictions.
        metric: name of one.
        parser: `task.parser`, which reads the targets of free text and says how answers are compared.

    Returns:
        None where these columns do not tell.
    """
    names = set(rows.column_names)
    if "scores" in names and rows["scores"].null_count == 0:
        return _classification(rows, metric)
    if metric in ROW_SCORES:
        pairs = list(zip(rows["target"].to_pylist(), rows["prediction"].to_pylist(), strict=True))
        score = row_score(metric, parser)
        seen = {(target, answer): score(target, answer) for target, answer in set(pairs)}
        return np.array([seen[pair] for pair in pairs], np.float64)
    if metric == "pass_at_1" and "passed" in names and not rows["passed"].null_count:
        return rows["passed"].to_numpy().astype(np.float64)
    if metric == "perplexity" and {"target_log_probability", "target_tokens"} <= names:
        sums, tokens = (rows[name].to_numpy() for name in ("target_log_probability", "target_tokens"))
        return weighted.perplexity(sums, tokens)
    return None


def _classification(rows: pa.Table, metric: str) -> Weighted | Floats | None:
    scores = rows["scores"].combine_chunks()
    # A joint table has the labels of every task in it.
    labels = sorted(field.name for field in scores.type if scores.field(field.name).null_count < len(scores))
    number = {label: index for index, label in enumerate(labels)}
    targets = rows["target"].to_pylist()
    true = np.array([number[target] for target in targets])
    predicted = np.array([number[answer] for answer in rows["prediction"].to_pylist()])
    if metric == "accuracy":
        return (true == predicted).astype(np.float64)
    if metric == "macro_f1":
        return weighted.macro_f1(true, predicted, len(labels))
    if metric == "balanced_accuracy":
        return weighted.balanced_accuracy(true, predicted, len(labels))
    probabilities = normalised(score_matrix(rows["scores"], labels).astype(np.float64))
    if metric == "log_loss":
        return log_losses(probabilities, true)
    if metric == "ece":
        return weighted.ece(probabilities[np.arange(len(true)), predicted], true == predicted)
    if metric in ("auroc", "auc_pr"):
        rarer = rarer_label(targets, labels)
        columns = np.unique(true).tolist() if rarer is None else [number[rarer]]
        area = weighted.auroc if metric == "auroc" else weighted.auc_pr
        return area(true, probabilities, columns)
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class _Resampled:
    """One run's metric on all items and on draws of them."""

    estimate: float
    draws_B: Floats
    values_N: Floats | None
    items: int
    clusters_N: Ints | None
    items_N: Ints | None


def _rows_of_runs(predictions: pa.Table | None) -> dict[str, pa.Table]:
    """Each run's predictions, its items sorted by id."""
    if predictions is None or not predictions.num_rows:
        return {}
    table = predictions.select([name for name in COLUMNS if name in predictions.column_names])
    run_ids = table["run_id"].combine_chunks().dictionary_encode()
    numbers = np.asarray(run_ids.indices)
    rows = {}
    for number, run_id in enumerate(run_ids.dictionary.to_pylist()):
        own = table.take(pa.array(np.flatnonzero(numbers == number)))
        rows[run_id] = own.take(pc.sort_indices(own["id"])).combine_chunks()
    return rows


def _resampled(
    runs: Sequence[Mapping[str, Any]], rows: Mapping[str, pa.Table], metric: str, draws: int
) -> dict[str, _Resampled]:
    """The runs of one task whose predictions give this metric on the same items."""
    found: dict[str, Weighted | Floats] = {}
    ids: pa.ChunkedArray | None = None
    groups = together = None
    for run in runs:
        own = rows.get(run["run_id"])
        if own is None or run["run_id"] in found:
            continue
        if ids is None:
            ids = own["id"]
            groups, together = (
                own[name].to_pylist() if name in own.column_names else None for name in ("group", "together")
            )
        if not own["id"].equals(ids):
            log.warning("%s: its test items are not those of the other runs of its task", run["run_id"])
            continue
        made = run_metric(own, metric, (json.loads(run["spec"] or "{}").get("task") or {}).get("parser"))
        if made is not None:
            found[run["run_id"]] = made
    if not found or ids is None:
        return {}
    clusters_N = clusters(groups)
    items_N = shared_items(together, clusters_N)
    functions = [weighted.mean(made) if isinstance(made, np.ndarray) else made for made in found.values()]
    estimates, drawn = resample(functions, len(ids), clusters_N, draws, items_N)
    values = [made if isinstance(made, np.ndarray) else None for made in found.values()]
    return {
        run_id: _Resampled(estimate, draws_B, values_N, len(ids), clusters_N, items_N)
        for run_id, values_N, estimate, draws_B in zip(found, values, estimates, drawn, strict=True)
    }


def _of_cell(cell: Cell, runs: Sequence[Mapping[str, Any]], resampled: Mapping[str, _Resampled]) -> Spread:
    """What the runs of a cell say together; runs of one seed are averaged, as the cell does."""
    known = [resampled[run["run_id"]] for run in runs if run["run_id"] in resampled]
    plain = Spread(cell.seeds, np.array([cell.values[seed] for seed in cell.seeds]))
    if len(known) < len(runs):
        return plain
    of_seed = [[part for part, run in zip(known, runs, strict=True) if run["seed"] == seed] for seed in cell.seeds]
    estimates = np.array([np.mean([part.estimate for part in parts]) for parts in of_seed])
    if not np.allclose(estimates, plain.estimates_S, rtol=1e-6, atol=1e-9):
        log.warning("%s on %s: its predictions give another %s than its table", cell.arm, cell.task, cell.metric)
        return plain
    values = [[part.values_N for part in parts if part.values_N is not None] for parts in of_seed]
    return Spread(
        cell.seeds,
        estimates,
        known[0].items,
        np.stack([np.mean([part.draws_B for part in parts], axis=0) for parts in of_seed]),
        np.stack([np.mean(own, axis=0) for own in values]) if all(values) else None,
        known[0].clusters_N,
        cell.metric in SHARES,
        known[0].items_N,
    )
