"""What several runs of a sweep read from one frozen model is computed once, before the first of them begins.

Concurrent trials would otherwise all begin with the same rows, each in its own process. Here the rows of all runs are
put together through what changes with no fit: the graph's frozen beginning, up to the last node that is worth storing,
and what a node asks before it is fitted. The trials then find their columns in the store.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from graft import costs, planning
from graft.errors import GraftError
from graft.execution import Pool, Progress, noting, run_node
from graft.node import Node
from graft.results.shared import Shared
from graft.store import ColumnStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Frozen nodes of a run, and the rows that it puts through them."""

    plan: planning.Plan
    nodes: tuple[Node, ...]
    tables: tuple[pa.Table, ...]

    @property
    def columns(self) -> list[str]:
        """What the rows must bring."""
        written = {name for node in self.nodes for name in node.writes}
        return sorted({"id", *(name for node in self.nodes for name in node.reads)} - written)


def compute_shared(
    plans: Sequence[planning.Plan],
    store: ColumnStore,
    pool: Pool | None,
    progress: Progress,
    keep: Callable[[Sequence[Shared]], None] = lambda costs: None,
) -> list[Shared]:
    """Fill the store with what the runs share; says what that has cost.

    What fails is left to the runs that need it: each then is a failed row with the reason. What it has cost until then
    is said too.

    Args:
        plans: of the runs.
        store: is filled.
        pool: computes very many rows.
        progress: watches the rows go by.
        keep: told all costs so far, again and again, so that a kill takes no more of them than of the rows.
    """
    groups: dict[tuple[str, ...], list[Part]] = {}
    for part in (part for plan in plans for part in _parts(plan)):
        key = (part.plan.dataset.fingerprint, *(node.column() for node in part.nodes))
        groups.setdefault(key, []).append(part)
    done: list[Shared] = []
    for parts in groups.values():
        # Where one run calls a model its teacher and another its student, what is written is the teacher's.
        lead = max(parts, key=lambda part: any(node.tally for node in part.nodes))
        rows = _rows(parts)
        spent = _meter(lead, rows.num_rows, store)
        watched = noting(progress, lambda spent=spent: keep([*done, spent()]))  # type: ignore[misc]
        try:
            for node in lead.nodes:
                rows = run_node(node, rows, store, watched, pool)
        except GraftError as error:
            log.warning("%s: %s", ", ".join(node.describe() for node in lead.nodes), error)
        finally:
            done.append(spent())
            keep(done)
    store.flush()
    return done


def _parts(plan: planning.Plan) -> Iterator[Part]:
    if nodes := plan.graph.frozen():
        yield Part(plan, nodes, (plan.examples, plan.test))
    for node in plan.graph.nodes:
        if nodes := node.asks():
            yield Part(plan, nodes, (plan.examples,))


def _rows(parts: Sequence[Part]) -> pa.Table:
    """Every row that the runs put through the nodes, once."""
    dataset, columns = parts[0].plan.dataset, parts[0].columns
    wanted = {row for part in parts for table in part.tables for row in table["id"].to_pylist()}
    tables = [
        table.filter(pa.array([row in wanted for row in table["id"].to_pylist()]))
        for table in (dataset.train, dataset.test)
    ]
    return pa.concat_tables([table.select(columns) for table in tables if table.num_rows])


def _meter(lead: Part, rows: int, store: ColumnStore) -> Callable[[], Shared]:
    """What gives the costs of a part's nodes from now on."""
    models = lead.plan.models
    before, began = costs.so_far(models, store), time.perf_counter()

    def spent() -> Shared:
        found = costs.since(before, models, store)
        return Shared(
            graph=" ─► ".join(node.describe() for node in lead.nodes),
            rows=rows,
            forward_passes=found["forward_passes"],
            tokens=found["tokens"],
            seconds=time.perf_counter() - began,
            teacher_calls=found["teacher_calls"],
        )

    return spent
