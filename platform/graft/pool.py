"""Many rows through a storable node: a Ray Data pool of processes, each with its models loaded once.

    rows, longest first ─► blocks ─► workers ─► column store ─► the process that asked
                                        └► counts: progress, usage

A pool is no second way to run a graph. `graph.run_node` asks the column store as ever; what is missing in great
number the pool computes and stores, and then the store is asked again. So a killed pool goes on where it ended, and
what could not be stored is computed in the process that asked.
"""

import contextlib
import logging
import math
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from graft.cluster import Cluster, check_shared, connect
from graft.crew import KEY, Crew, Work, distinct_handles
from graft.errors import ClusterError, from_words
from graft.execution import Progress
from graft.node import Node
from graft.store import ColumnStore

log = logging.getLogger(__name__)

MIN_ROWS = 10_000
"""Up to so many missing rows are computed in the process that asks."""

BLOCKS_PER_PROCESS = 4
"""At least, so that none waits long for the last one."""

FREE_SECONDS = 10.0
"""How long to wait for a CPU or GPU that something which has just ended gives back."""


class RayPool:
    """Computes on a cluster what the store lacks; a `graft.execution.Pool`, and a context manager.

    A cluster is started or joined when it is first needed, and left at the end. Where Ray runs in this process
    already, that cluster is used and stays.

    Args:
        storage: folder or URI that holds the store; on several machines one that all of them see.
        address: `host:port` of a cluster, `auto`, or None to start one on this machine.
        min_rows: up to so many missing rows are not worth a pool.
        name: of the job in the dashboard.
    """

    def __init__(
        self, storage: str | Path, address: str | None = None, min_rows: int = MIN_ROWS, name: str = "graft"
    ) -> None:
        self.storage = storage
        self.address = address
        self.min_rows = min_rows
        self.name = name
        self._cluster: Cluster | None = None
        self._connection = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster = None
        self._connection.close()

    def fill(self, node: Node, keys: Sequence[bytes], rows: pa.Table, store: ColumnStore, progress: Progress) -> None:
        """Compute rows and append them to the store, as far as it takes them.

        Args:
            node: a storable node.
            keys: one per row, all different.
            rows: the columns that the node reads.
            store: where they go, and are counted.
            progress: told after every block.

        Raises:
            ClusterError: there is no cluster or no room on it, or its processes fail.
            GraftError: what the node raises.
        """
        import ray

        cluster = self._connected()
        gpus = _gpus(node, cluster)
        processes = _room(cluster, gpus, node.describe())
        block_rows = max(1, min(node.chunk_rows, math.ceil(rows.num_rows / (BLOCKS_PER_PROCESS * processes))))
        work = Work(ray.put(node), node.column(), node.describe(), store, processes, gpus, block_rows)
        done = 0
        progress(work.about, done, rows.num_rows)
        with contextlib.closing(_counts(work, _blocks(keys, rows, block_rows))) as counts:
            for count in counts:
                _raise(count, work.about)
                for handle, *used in zip(distinct_handles(node), count["tokens"], count["forward_passes"], strict=True):
                    handle.usage.add(*used)
                store.count(node.tally, calls=count["rows"])
                done += count["rows"]
                progress(work.about, done, rows.num_rows)
                if count["refused"]:
                    log.warning("the column store takes nothing more; the other rows are computed in this process")
                    return

    def _connected(self) -> Cluster:
        if self._cluster is None:
            cluster = self._connection.enter_context(connect(self.address, self.name))
            check_shared(cluster, self.storage)
            self._cluster = cluster
        return self._cluster


def _counts(work: Work, blocks: list[pa.Table]) -> Generator[dict[str, Any], None, None]:
    """What each block took; when this is closed, every process of the pool ends.

    Raises:
        ClusterError: the pool cannot go on.
    """
    import ray

    # Several threads: `begins` answers while `counts` goes on.
    crew = ray.remote(num_cpus=0, max_concurrency=8)(Crew).remote(work)
    try:
        for count in crew.counts.options(num_returns="streaming").remote(blocks):
            yield ray.get(count)
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[-300:]
        raise ClusterError(f"{work.about}: the pool of processes failed: {reason}; run the same again") from error
    finally:
        ray.kill(crew)


def _raise(count: dict[str, Any], about: str) -> None:
    """What went wrong in a worker: an error of graft as what it was there."""
    if count["error"] is None:
        return
    if known := from_words(count["error"], count["failure"]):
        raise known
    raise ClusterError(f"{about}: a process of the pool failed: {count['error']}: {count['failure']}")


def _blocks(keys: Sequence[bytes], rows: pa.Table, block_rows: int) -> list[pa.Table]:
    """Rows with their keys, longest first: what does not fit shows at once, and the rows of a block are alike."""
    order = np.argsort(-_lengths(rows), kind="stable")
    keyed = rows.append_column(KEY, pa.array(list(keys), pa.binary())).take(order)
    return [keyed.slice(start, block_rows).combine_chunks() for start in range(0, keyed.num_rows, block_rows)]


def _lengths(rows: pa.Table) -> np.ndarray:
    """Roughly how much there is to read in each row: bytes of text, characters of anything else."""
    total = np.zeros(rows.num_rows, np.int64)
    for column in rows.columns:
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
            total += pc.binary_length(column).fill_null(0).to_numpy()
        else:
            total += np.array([len(str(value)) for value in column.to_pylist()], np.int64)
    return total


def _gpus(node: Node, cluster: Cluster) -> int:
    """GPUs of each worker: its models compute as they would in this process, so that the numbers are the same."""
    local = [handle for handle in distinct_handles(node) if not handle.remote]
    if any(str(handle.device).startswith("cuda") for handle in local):
        return 1
    if local and cluster.gpus:
        log.warning(
            "%s: here it computes on a CPU, so the pool does too; start this on a machine with a GPU to use the %g of "
            "the cluster",
            node.describe(),
            cluster.gpus,
        )
    return 0


def _room(cluster: Cluster, gpus: int, about: str) -> int:
    """How many workers there may be.

    Raises:
        ClusterError: there is no room for any, or all of it is taken.
    """
    import ray

    needed = {"CPU": cluster.cpus, **({"GPU": cluster.gpus} if gpus else {})}
    for resource, count in needed.items():
        until = time.monotonic() + FREE_SECONDS
        while (free := ray.available_resources().get(resource, 0.0)) < 1:
            if count < 1 or time.monotonic() > until:
                raise ClusterError(
                    f"{about}: a pool needs a free {resource}; the cluster at {cluster.address} has {count:g}, "
                    f"{free:g} of them free; wait for what runs there, or leave --address out to use this machine"
                )
            time.sleep(0.2)
    return int(min(needed.values()))
