"""What a pool runs on the cluster: a crew of workers, each a process that has loaded its models once.

Ray Data hands the blocks out. It starts a process that has died again, and its block too, for ever:
`Crew.begins` counts, and ends that.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from graft.errors import ClusterError, GraftError, ModelError, to_words
from graft.execution import computed
from graft.node import Node
from graft.store import ColumnStore

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Processes that a block may end before it is given up: mostly they ran out of memory."""

KEY = "__key"
"""The column of a block that holds the rows' keys."""

COUNTS = pa.schema(
    {
        "rows": pa.int64(),
        "tokens": pa.list_(pa.int64()),
        "forward_passes": pa.list_(pa.int64()),
        "refused": pa.bool_(),
        "error": pa.string(),
        "failure": pa.string(),
    }
)
"""What comes back for a block; tokens and passes of each model, `error` and `failure` are its class and text."""


@dataclass(frozen=True)
class Work:
    """What all workers of a crew share."""

    node: Any
    """A Ray reference to the node."""
    column: str
    """The store's name for the node where the rows were asked for."""
    about: str
    """The node in words."""
    store: ColumnStore
    processes: int
    gpus: int
    """GPUs of each process: 0 or 1."""
    block_rows: int


class Crew:
    """Runs Ray Data, in a process of its own: what Ray Data has to say goes to that process's log."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._begun: Counter[bytes] = Counter()

    def counts(self, blocks: list[pa.Table]) -> Iterator[dict[str, Any]]:
        """The COUNTS of each block, in the order in which they end."""
        import ray
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        done = ray.data.from_arrow(blocks).map_batches(
            Worker,
            fn_constructor_args=(self._work, ray.get_runtime_context().current_actor),
            batch_format="pyarrow",
            batch_size=self._work.block_rows,
            compute=ray.data.ActorPoolStrategy(size=self._work.processes),
            num_cpus=1,
            num_gpus=self._work.gpus or None,
        )
        yield from done.iter_rows()

    def begins(self, block: bytes) -> int:
        """How often this block has begun, now included."""
        self._begun[block] += 1
        return self._begun[block]

    def __repr__(self) -> str:
        return f"graft pool {self._work.about}"


class Worker:
    """One process: computes blocks and stores them; only counts go back."""

    def __init__(self, work: Work, crew: Any) -> None:
        self._work = work
        self._crew = crew
        self._node: Node | None = None

    def __call__(self, block: pa.Table) -> pa.Table:
        """One row of COUNTS. An error is an answer too: raised, it would arrive wrapped in those of Ray Data."""
        count: dict[str, Any] = {"rows": block.num_rows, "tokens": [], "forward_passes": []}
        try:
            self._begin(block)
            count.update(self._compute(block))
        except Exception as error:
            log.warning("%s failed", self._work.about, exc_info=True)
            count["error"], count["failure"] = to_words(error)
        return pa.Table.from_pylist([count], schema=COUNTS)

    def _begin(self, block: pa.Table) -> None:
        import ray

        if ray.get(self._crew.begins.remote(block[KEY][0].as_py())) > ATTEMPTS:
            raise ClusterError(
                f"{self._work.about}: a block of {block.num_rows} rows has ended {ATTEMPTS} processes, mostly because "
                "they ran out of memory; use machines with more of it, or a smaller model"
            )

    def _compute(self, block: pa.Table) -> dict[str, Any]:
        node, work = self._opened(), self._work
        usages = [handle.usage for handle in distinct_handles(node)]
        before = [(usage.tokens, usage.forward_passes) for usage in usages]
        began = time.perf_counter()
        columns = computed(node, block.drop_columns([KEY]))
        work.store.append(work.column, block[KEY].to_pylist(), columns, time.perf_counter() - began, work.about)
        work.store.flush()
        work.store.forget()
        return {
            "tokens": [usage.tokens - tokens for usage, (tokens, _) in zip(usages, before, strict=True)],
            "forward_passes": [
                usage.forward_passes - passes for usage, (_, passes) in zip(usages, before, strict=True)
            ],
            "refused": work.store.refused,
        }

    def _opened(self) -> Node:
        """The node, its models opened here.

        Raises:
            ModelError: they are not here, or not the ones of the process that asked.
        """
        import ray

        if self._node is None:
            try:
                node: Node = ray.get(self._work.node)
            except ray.exceptions.RaySystemError as error:  # Ray's wrapping of what unpickling raises
                raise error.client_exc if isinstance(error.client_exc, GraftError) else error from None
            if node.column() != self._work.column:
                raise ModelError(
                    f"{self._work.about}: {os.uname().nodename} would compute something else (another release of graft "
                    "or transformers, or another floating-point type); install the same on all nodes"
                )
            self._node = node
        return self._node


def distinct_handles(node: Node) -> list[Any]:
    """The node's models, each once, in the order of its fields."""
    return list({id(handle): handle for handle in node.handles().values()}.values())
