"""A composed model: a chain of nodes over a table, each reading columns and adding columns.

    rows ─► embed ─► embedding ─► classify ─► prediction, scores

The same graph object is fitted, evaluated, saved and served. What a storable node computes goes through the
column store, so no row is put through a frozen model twice.
"""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from graft import hashing
from graft.errors import DataError, GraftError, ModelError, SpecError, suggest
from graft.execution import Pool, Progress, class_path, no_progress, run_node
from graft.node import Context, Models, Node
from graft.spec import catalogue
from graft.store import ColumnStore

FORMAT = 1


class Graph:
    """An ordered chain of nodes, checked when it is built.

    Args:
        nodes: in the order in which they run.
        inputs: the columns that a row must bring.

    Raises:
        SpecError: a node reads a column that nothing before it writes, or writes one again.
    """

    def __init__(self, nodes: Sequence[Node], inputs: Sequence[str]):
        self.nodes = tuple(nodes)
        self.inputs = tuple(inputs)
        written = {"id", *self.inputs}
        for node in self.nodes:
            for column in node.reads:
                if column not in written:
                    cure = suggest(column, written)
                    raise SpecError(f"{node.describe()} reads {column!r}, which nothing before it writes; {cure}")
            for column in node.writes:
                if column in written:
                    raise SpecError(
                        f"{node.describe()} writes {column!r}, which is there already; give it another name"
                    )
            written.update(node.writes)

    def fit(self, rows: pa.Table, context: Context) -> "Graph":
        """A fitted copy: node by node, fit on the rows so far, then run on them for the next."""
        fitted, _ = fit_nodes(self.nodes, rows, context, last=True)
        return Graph(fitted, self.inputs)

    def run(
        self,
        rows: pa.Table,
        store: ColumnStore | None = None,
        progress: Progress = no_progress,
        pool: Pool | None = None,
    ) -> pa.Table:
        """The rows with every written column added; rows without `id` are numbered.

        Raises:
            DataError: an input column is missing.
        """
        if not isinstance(rows, pa.Table):
            raise DataError(f"rows are a {type(rows).__name__}; give a pyarrow Table, for example pa.table({{...}})")
        for column in self.inputs:
            if column not in rows.column_names:
                raise DataError(f"column {column!r} is missing from the rows; {suggest(column, rows.column_names)}")
        if "id" not in rows.column_names:
            numbers = pa.array([f"question-{place}" for place in range(rows.num_rows)])
            rows = rows.add_column(0, "id", numbers)
        for node in self.nodes:
            rows = run_node(node, rows, store, progress, pool)
        return rows

    def frozen(self) -> tuple[Node, ...]:
        """The nodes before the first that is fitted, up to the last storable one: what they give, runs share."""
        found: list[Node] = []
        for node in self.nodes:
            if type(node).fit is not Node.fit:
                break
            found.append(node)
        while found and not found[-1].storable:
            found.pop()
        return tuple(found)

    def after(self, count: int) -> "Graph":
        """What is left when the first nodes have run: their columns are inputs then."""
        begun = [column for node in self.nodes[:count] for column in node.writes]
        return Graph(self.nodes[count:], (*self.inputs, *begun))

    def __repr__(self) -> str:
        return self.describe()

    def fingerprint(self) -> str:
        """Identity by content of the whole chain."""
        return hashing.digest([node.fingerprint() for node in self.nodes])

    def describe(self) -> str:
        """The chain as text, a line per node."""
        lines = [f"rows({', '.join(self.inputs)})"]
        for node in self.nodes:
            kept = "  [stored]" if node.storable else ""
            lines.append(f"  ─► {node.describe()}: {', '.join(node.reads)} ─► {', '.join(node.writes)}{kept}")
        return "\n".join(lines)

    def save(self, directory: str | Path) -> None:
        """Write `graph.json` and one folder per node; frozen models are named by path and fingerprint, not copied."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        entries = []
        for position, node in enumerate(self.nodes):
            folder = f"{position}-{type(node).__name__.lower()}"
            node.save(directory / folder)
            entries.append(
                {
                    "class": class_path(type(node)),
                    "folder": folder,
                    "reads": node.reads,
                    "writes": node.writes,
                    "storable": node.storable,
                    "fingerprint": node.fingerprint(),
                }
            )
        content = {"format": FORMAT, "inputs": self.inputs, "nodes": entries}
        (directory / "graph.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path, models: Models) -> "Graph":
        """The graph that `save` wrote.

        Raises:
            DataError: there is no graph, or one that this version cannot read.
            ModelError: a model it names is not the one it was fitted with.
        """
        directory = Path(directory)
        try:
            content = json.loads((directory / "graph.json").read_text(encoding="utf-8"))
            entries = [
                (entry["class"], directory / entry["folder"], entry["fingerprint"]) for entry in content["nodes"]
            ]
            found, inputs = content["format"], content["inputs"]
        except FileNotFoundError:
            raise DataError(f"{directory}: no graph.json here; give a run's graph folder") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{directory}/graph.json cannot be read: {error!r}; run its spec again") from error
        if found != FORMAT:
            raise DataError(f"{directory}: format {found}, this graft reads {FORMAT}; run its spec again")
        nodes = []
        for path, folder, fingerprint in entries:
            node = _load_node(_node_class(path), folder, models)
            if node.fingerprint() != fingerprint:
                raise ModelError(
                    f"{folder}: a model or a saved part has changed since this graph was fitted; run its spec again"
                )
            nodes.append(node)
        return cls(nodes, inputs)


def fit_nodes(
    nodes: Sequence[Node], rows: pa.Table, context: Context, last: bool = False
) -> tuple[list[Node], pa.Table]:
    """Fitted copies of nodes that follow one another, and the rows with what they have added.

    Args:
        nodes: in their order.
        rows: the examples, with what earlier nodes have added, and `target`.
        context: what fitting needs beside them.
        last: nothing follows, so the last one is fitted and does not run.
    """
    fitted: list[Node] = []
    for position, node in enumerate(nodes):
        fitted.append(node.fit(rows, context))
        if not isinstance(fitted[-1], Node):
            raise GraftError(f"{class_path(type(node))}.fit gave {fitted[-1]!r}; it must return a node, such as self")
        fitted[-1].fingerprint()  # what cannot be saved shows now, not after everything is computed
        if position + 1 < len(nodes) or not last:
            rows = run_node(fitted[-1], rows, context.store, context.progress, context.pool)
    return fitted, rows


def _load_node(cls: type[Node], folder: Path, models: Models) -> Node:
    from safetensors import SafetensorError

    try:
        return cls.load(folder, models)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{folder} is damaged: {type(error).__name__}: {reason}; delete the run and run its spec again"
        ) from error


def _node_class(path: str) -> type[Node]:
    """A node's class by its path: graft's own, or in a module that a registered method comes from."""
    module, _, name = path.partition(":")
    allowed = {target.partition(":")[0] for target in catalogue("method").values()}
    if not (module.startswith("graft.") or module in allowed):
        raise DataError(
            f"graph.json names {path}, which no installed method provides; install the package it comes from"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DataError(f"graph.json names {path}, which cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Node)):
        raise DataError(f"graph.json names {path}, which is not a node")
    return found
