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
from graft.results.records import COSTS, read_table, test_values
from graft.results.tables import main_metric, summary, terminal
from graft.storage import children, exists, open_storage, read_bytes
from graft.store import ColumnStore

if TYPE_CHECKING:
    from rich.table import Table


def run_table(storage: str) -> "Table":
    """Runs and sweeps, a line each."""
    from rich.table import Table

    files = open_storage(storage, create=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("id", overflow="fold")  # it is copied into other commands, so it is never cut
    for heading in ("status", "task", "method", "examples", "seed", "metric", "value"):
        table.add_column(heading)
    for name in children(files, "sweeps"):
        status = "done" if exists(files, f"sweeps/{name}/metrics.parquet") else "not done"
        table.add_row(name, f"sweep, {status}", "", "", "", "", "", "")
    for name in children(files, "runs"):
        table.add_row(name, *_run_line(files, f"runs/{name}"))
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


def _run_line(files: fs.FileSystem, folder: str) -> tuple[str, ...]:
    if not exists(files, f"{folder}/metrics.parquet"):
        return ("not done", *_asked(files, folder), "", "")
    try:
        metrics = read_table(files, f"{folder}/metrics.parquet")
    except StoreError:
        return ("damaged", *_asked(files, folder), "", "")
    first = metrics.slice(0, 1).to_pylist()[0]
    metric = main_metric(metrics)
    asked = (first["task"], _method(json.loads(first["spec"])["method"]), str(first["examples"]), str(first["seed"]))
    return (first["status"], *asked, metric, f"{_value(metrics, metric):.4f}")


def _asked(files: fs.FileSystem, folder: str) -> tuple[str, ...]:
    try:
        spec = yaml.safe_load(read_bytes(files, f"{folder}/spec.yaml"))
        return (
            spec["task"]["name"],
            _method(spec["method"]),
            str(spec["regime"]["examples"]),
            str(spec["regime"]["seed"]),
        )
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return ("?", "?", "?", "?")


def _method(section: dict[str, Any]) -> str:
    """A method's name and settings in one line."""
    settings = [f"{key}={value}" for key, value in section.items() if key != "name" and value not in (None, False)]
    return " ".join([section["name"], *settings])


def _run_details(files: fs.FileSystem, folder: str) -> Iterator[Any]:
    spec = f"{folder}/spec.yaml"
    yield read_bytes(files, spec).decode() if exists(files, spec) else "spec.yaml: missing"
    if not exists(files, f"{folder}/metrics.parquet"):
        yield "not done: run its spec again, it goes on from the column store"
        return
    yield _graph_text(files, folder)
    metrics = read_table(files, f"{folder}/metrics.parquet")
    first = metrics.slice(0, 1).to_pylist()[0]
    for row in metrics.to_pylist():
        # A failed run has one row without a metric, and no split.
        of_group = "" if row["split"] in (None, "test", "validation") else f"  ({row['split']}, n={row['n']})"
        yield f"{row['metric']:<20} {'undefined' if row['value'] is None else format(row['value'], '.4f')}{of_group}"
    for cost in COSTS:
        yield f"{cost:<20} {first[cost]:,.1f}" if cost == "seconds" else f"{cost:<20} {first[cost]:,}"


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
    metrics = read_table(files, f"{folder}/metrics.parquet")
    metric = main_metric(metrics)
    yield terminal(summary(metrics, metric))


def _value(metrics: pa.Table, metric: str) -> float:
    value = test_values(metrics).get(metric)
    return float("nan") if value is None else value


def _size(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
