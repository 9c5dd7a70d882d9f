"""What several runs of a sweep read from one frozen model is computed once, before the first of them begins.

Concurrent trials would otherwise all begin with the same test rows, each in its own process. Here the rows of all
runs are put through the graph's frozen beginning together: the nodes that no fit changes, up to the last that is
worth storing. The trials then find their columns in the store.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from graft import planning, runner
from graft.errors import GraftError
from graft.execution import Pool, Progress, run_node
from graft.graph import Node
from graft.results.shared import Shared
from graft.store import ColumnStore

log = logging.getLogger(__name__)


def compute_shared(
    plans: Sequence[planning.Plan], store: ColumnStore, pool: Pool | None, progress: Progress
) -> list[Shared]:
    """Fill the store with what the runs share; says what that has cost.

    A beginning that fails is left to the runs that need it: each then is a failed row with the reason.
    """
    groups: dict[tuple[str, ...], list[planning.Plan]] = {}
    for plan in plans:
        if nodes := plan.graph.frozen():
            groups.setdefault((plan.dataset.fingerprint, *(node.column() for node in nodes)), []).append(plan)
    costs = []
    for members in groups.values():
        nodes = members[0].graph.frozen()
        try:
            costs.append(_compute(nodes, _rows(members), members[0].models, store, pool, progress))
        except GraftError as error:
            log.warning("%s: %s", ", ".join(node.describe() for node in nodes), error)
    store.flush()
    return costs


def _rows(plans: Sequence[planning.Plan]) -> pa.Table:
    """Every row that the runs put through the graph, once: their examples and what they answer."""
    dataset = plans[0].dataset
    columns = ["id", *plans[0].graph.inputs]
    wanted = {row for plan in plans for table in (plan.examples, plan.test) for row in table["id"].to_pylist()}
    tables = [
        table.filter(pa.array([row in wanted for row in table["id"].to_pylist()]))
        for table in (dataset.train, dataset.test)
    ]
    return pa.concat_tables([table.select(columns) for table in tables])


def _compute(
    nodes: Sequence[Node],
    rows: pa.Table,
    models: Mapping[str, Any],
    store: ColumnStore,
    pool: Pool | None,
    progress: Progress,
) -> Shared:
    before, began, count = runner.costs(models, store), time.perf_counter(), rows.num_rows
    for node in nodes:
        rows = run_node(node, rows, store, progress, pool)
    after = runner.costs(models, store)
    return Shared(
        graph=" ─► ".join(node.describe() for node in nodes),
        rows=count,
        forward_passes=after["forward_passes"] - before["forward_passes"],
        tokens=after["tokens"] - before["tokens"],
        seconds=time.perf_counter() - began,
        teacher_calls=after["teacher_calls"] - before["teacher_calls"],
    )
