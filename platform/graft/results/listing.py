"""What a storage holds, as `graft ls` and `graft show` print it."""

import difflib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import yaml
from pyarrow import fs

from graft.errors import DataError, StoreError
from graft.results.arms import arms
from graft.results.files import read_table
from graft.results.records import COSTS, METRICS, test_values
from graft.results.tables import main_metric, summary, terminal
from graft.storage import children, exists, open_storage, read_bytes
from graft.store import ColumnStore

if TYPE_CHECKING:
    from rich.table import Table

CUTS = ("texts_cut", "rationales_cut")
"""Columns of METRICS that count what a limit has cut: shown where it has."""


def run_table(storage: str) -> "Table":
    """Runs and sweeps, a line each; a run is called by what it has other than the others that are listed."""
    from rich.table import Table
    from rich.text import Text

    files = open_storage(storage, create=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("id", overflow="fold")  # it is copied into other commands, so it is never cut
    for heading in ("status", "task", "arm", "examples", "seed", "metric", "value"):
        table.add_column(heading)
    for name in children(files, "sweeps"):
        status = "done" if exists(files, f"sweeps/{name}/metrics.parquet") else "not done"
        table.add_row(name, f"sweep, {status}", "", "", "", "", "", "")
    found = {name: _listed(files, name) for name in children(files, "runs")}
    named = arms(pa.concat_tables([METRICS.empty_table(), *(metrics for _, metrics in found.values())]))
    for name, (status, metrics) in found.items():
        if not metrics.num_rows:
            table.add_row(name, status, "?", "?", "?", "?", "", "")
            continue
        first = metrics.slice(0, 1).to_pylist()[0]
        arm = named[first["run_id"]]
        # A text of the spec's may look like markup.
        cells = (Text(arm.task), Text(arm.name), str(first["examples"]), str(first["seed"]))
        table.add_row(name, status, *cells, *_value(metrics))
    return table


def store_table(storage: str) -> "Table":
    """What the column store keeps for each node, and what reading it has saved."""
    from rich.table import Table

    holdings = ColumnStore(fs.SubTreeFileSystem("store", open_storage(storage, create=False))).holdings()
    saved = sum(holding.seconds_saved for holding in holdings)
    size = sum(holding.bytes for holding in holdings)
    title = f"{len(holdings)} columns, {_size(size)}, {saved:.0f} s of computing saved"
    table = Table("node", "fingerprint", "shards", "size", "rows read", "saved", "last used", title=title, box=None)
    for holding in holdings:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(holding.last_used))
        cells = (str(holding.shards), _size(holding.bytes), str(holding.reads), f"{holding.seconds_saved:.1f} s", used)
        table.add_row(holding.node, holding.fingerprint[:12], *cells)
    return table


def details(name: str, storage: str) -> Iterator[Any]:
    """A run's spec, graph, numbers and costs, or a sweep's table.

    Raises:
        DataError: there is neither a run nor a sweep of this name.
    """
    if (Path(name) / "spec.yaml").is_file() or (Path(name) / "sweep.yaml").is_file():
        folder = Path(name).resolve()
        name, storage = folder.name, str(folder.parent.parent)
    files = open_storage(storage, create=False)
    if name in children(files, "sweeps"):
        yield from _sweep_details(files, f"sweeps/{name}")
    elif name in children(files, "runs"):
        yield from _run_details(files, f"runs/{name}")
    else:
        known = [*children(files, "runs"), *children(files, "sweeps")]
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise DataError(f"{name}: no run or sweep of this name in {storage}{hint}; `graft ls` lists them")


def _listed(files: fs.FileSystem, name: str) -> tuple[str, pa.Table]:
    """A run's status and its rows of METRICS: of one without results, what its spec says; none where that is unread."""
    path = f"runs/{name}/metrics.parquet"
    try:
        if exists(files, path):
            metrics = read_table(files, path, METRICS)
            return metrics["status"][0].as_py(), metrics
        status = "not done"
    except StoreError:
        status = "damaged"
    except DataError:
        status = "of another graft"  # `graft show` says which
    return status, _asked(files, name)


def _asked(files: fs.FileSystem, name: str) -> pa.Table:
    """What the spec of a run says of it, as the one row of a run that has no metrics."""
    try:
        spec = yaml.safe_load(read_bytes(files, f"runs/{name}/spec.yaml"))
        row = {
            "run_id": name,
            "method": spec["method"]["name"],
            "task": spec["task"]["name"],
            "examples": spec["regime"]["examples"],
            "seed": spec["regime"]["seed"],
            "status": "failed",  # as far as its numbers go
            "spec": json.dumps(spec, sort_keys=True),  # as a record has it
        }
        return pa.Table.from_pylist([row], schema=METRICS)
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException, yaml.YAMLError):
        return METRICS.empty_table()


def _value(metrics: pa.Table) -> tuple[str, str]:
    """The main metric and its value; nothing of a run that has none."""
    metric, values = main_metric(metrics), test_values(metrics)
    return (metric, _number(values[metric])) if metric in values else ("", "")


def _run_details(files: fs.FileSystem, folder: str) -> Iterator[Any]:
    spec = f"{folder}/spec.yaml"
    yield read_bytes(files, spec).decode() if exists(files, spec) else "spec.yaml: missing"
    if not exists(files, f"{folder}/metrics.parquet"):
        yield "not done: run its spec again, it goes on from the column store"
        return
    yield _graph_text(files, folder)
    metrics = read_table(files, f"{folder}/metrics.parquet", METRICS)
    first = metrics.slice(0, 1).to_pylist()[0]
    for row in metrics.to_pylist():
        # A failed run has one row without a metric, and no split.
        of_group = "" if row["split"] in (None, "test", "validation") else f"  ({row['split']}, n={row['n']})"
        yield f"{row['metric']:<20} {_number(row['value'])}{of_group}"
    for cost in COSTS:
        yield f"{cost:<20} {_amount(first[cost])}"
    for cut in CUTS:
        if first[cut]:
            yield f"{cut:<20} {_amount(first[cut])}"


def _graph_text(files: fs.FileSystem, folder: str) -> str:
    try:
        nodes = json.loads(read_bytes(files, f"{folder}/graph/graph.json"))["nodes"]
        lines = [f"{node['class']}: {', '.join(node['reads'])} ─► {', '.join(node['writes'])}" for node in nodes]
    except (OSError, ValueError, KeyError, TypeError):
        return "graph: missing or damaged; delete the run and run its spec again"
    return "\n".join(lines)


def _sweep_details(files: fs.FileSystem, folder: str) -> Iterator[Any]:
    if not exists(files, f"{folder}/metrics.parquet"):
        try:
            runs = yaml.safe_load(read_bytes(files, f"{folder}/sweep.yaml"))["runs"]
        except (OSError, KeyError, TypeError, yaml.YAMLError):
            yield "not done, and its sweep.yaml is missing or damaged; give the same command again"
            return
        runs = list(dict.fromkeys(runs))  # equal members of a sweep are one run
        done = sum(exists(files, f"runs/{run}/metrics.parquet") for run in runs)
        yield f"not done: {done} of {len(runs)} runs; the same command goes on"
        return
    metrics = read_table(files, f"{folder}/metrics.parquet", METRICS)
    metric = main_metric(metrics)
    yield terminal(summary(metrics, metric))


def _number(value: float | None) -> str:
    """A metric's value."""
    return "undefined" if value is None else f"{value:.4f}"


def _amount(value: float | None) -> str:
    """A cost as its run counted it."""
    return "not counted" if value is None else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _size(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
