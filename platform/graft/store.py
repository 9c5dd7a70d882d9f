"""The column store: what a frozen node computes for a row is computed once and kept by content.

    store/columns/<node fingerprint>/<digest of the bytes>.arrow    append-only shards: row key, written columns
    store/columns/<node fingerprint>/about.json                     which node this is, for people
    store/usage/<time>-<random>.json                                what a process read, and when

Many processes on many machines write at once without a lock: a shard is written beside its place and renamed into
it, and its name is the digest of its content, so a torn or damaged one is recognised, set aside and recomputed.
Two processes that compute the same row both store it; readers take either. A process killed at any instant loses
at most the rows it has not yet appended.
"""

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa
from pyarrow import fs

from graft.errors import StoreError
from graft.hashing import KEY_BYTES, digest
from graft.storage import children, exists, read_bytes, write_atomic

log = logging.getLogger(__name__)

DEFAULT_LIMIT_BYTES = 20 * 2**30
_MEMORY_BYTES = 2 * 2**30
_MEASURE_SECONDS = 30.0
_STALE_SECONDS = 3600.0
_USAGE_FILES = 64
_EVICT_TO = 0.9
_KEY = "__key"


@dataclass
class Column:
    """One node's stored rows, as one process has read them."""

    index: dict[bytes, int] = field(default_factory=dict)
    shards: dict[str, pa.Table] = field(default_factory=dict)
    seconds: list[np.ndarray] = field(default_factory=list)
    rows: int = 0

    def add(self, name: str, table: pa.Table) -> None:
        """Take in a shard; one that is known already changes nothing, a key that is known keeps its first row."""
        if name in self.shards:
            return
        for offset, key in enumerate(table[_KEY].to_pylist()):
            self.index.setdefault(key, self.rows + offset)
        seconds = float((table.schema.metadata or {}).get(b"seconds", b"0"))
        self.seconds.append(np.full(table.num_rows, seconds / max(1, table.num_rows)))
        self.shards[name] = table
        self.rows += table.num_rows

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return sum(table.nbytes for table in self.shards.values())


@dataclass(frozen=True)
class Holding:
    """What the store keeps for one node, for `graft ls --store`."""

    fingerprint: str
    node: str
    shards: int
    bytes: int
    reads: int
    seconds_saved: float
    last_used: float


class ColumnStore:
    """Columns by (fingerprint of the fitted node, key of the row's read columns).

    Args:
        files: file system rooted at the store's folder.
        limit_bytes: size above which the least recently used shards are evicted.
    """

    def __init__(self, files: fs.FileSystem, limit_bytes: int = DEFAULT_LIMIT_BYTES):
        self.files = files
        self.limit_bytes = limit_bytes
        self.reads = 0
        self.tallies: Counter[str] = Counter()
        """Distinct rows by what they are counted as: NAME_calls were computed, NAME_reads were there."""
        self.corrupt = 0
        self.seconds_saved = 0.0
        self.refused = False
        self._process = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._columns: OrderedDict[str, Column] = OrderedDict()
        self._usage: dict[str, dict[str, float]] = {}
        self._lock = threading.RLock()
        self._measured_at = -_MEASURE_SECONDS
        self._bytes = 0

    def __reduce__(self) -> tuple[type[Self], tuple[fs.FileSystem, int]]:
        """Another process opens the same store; what this one has read stays here."""
        return type(self), (self.files, self.limit_bytes)

    def lookup(
        self, fingerprint: str, keys: Sequence[bytes], counted: bool = True
    ) -> tuple[np.ndarray, pa.Table | None]:
        """What is stored for these rows.

        Args:
            fingerprint: of the node that computed them.
            keys: one per row.
            counted: False where reading them saves nothing, for the account of what the store saves.

        Returns:
            Positions in `keys` that were found (int64, ascending), and their columns in that order
            (None when nothing was found).
        """
        with self._lock:
            try:
                column = self._refresh(fingerprint)
            except OSError as error:
                log.warning("the column store cannot be read (%s); rows are computed again", error)
                column = self._column(fingerprint)
            positions = np.array([i for i, key in enumerate(keys) if key in column.index], dtype=np.int64)
            if not len(positions):
                return positions, None
            rows = np.array([column.index[keys[i]] for i in positions], dtype=np.int64)
            found = pa.concat_tables(column.shards.values()).drop_columns([_KEY]).take(rows)
            if counted:
                self._record(fingerprint, len(rows), float(np.concatenate(column.seconds)[rows].sum()))
            return positions, found.replace_schema_metadata(None)

    def count(self, tally: str, calls: int = 0, reads: int = 0) -> None:
        """Count rows of a node that has a name for them."""
        if tally:
            self.tallies.update({f"{tally}_calls": calls, f"{tally}_reads": reads})

    def append(
        self, fingerprint: str, keys: Sequence[bytes], columns: pa.Table, seconds: float, about: str = ""
    ) -> None:
        """Keep computed rows; storage that refuses is reported once and costs no result.

        Args:
            fingerprint: of the node that computed them.
            keys: one per row.
            columns: the written columns, row for row.
            seconds: what computing them took, for the account of what the store saves.
            about: the node in words.
        """
        if self.refused or not len(keys):
            return
        key_array = pa.array(list(keys), pa.binary(KEY_BYTES))
        table = columns.append_column(_KEY, key_array).replace_schema_metadata({"seconds": repr(seconds)})
        data = _to_bytes(table)
        folder = f"columns/{fingerprint}"
        name = f"{digest(bytes(data))}.arrow"
        with self._lock:
            try:
                if about and not exists(self.files, f"{folder}/about.json"):
                    write_atomic(self.files, f"{folder}/about.json", json.dumps({"node": about}).encode())
                write_atomic(self.files, f"{folder}/{name}", data)
                self._record(fingerprint, 0, 0.0)
                self._column(fingerprint).add(name, table)
                self._bytes += len(data)
                self._keep_within_limit()
            except (StoreError, OSError) as error:
                self.refused = True
                log.warning("the column store keeps nothing more in this process: %s", error)

    def forget(self) -> None:
        """Let go of the rows held in memory; what is stored can be read again."""
        with self._lock:
            self._columns.clear()

    def flush(self) -> None:
        """Write what was read since the last time, so that others see it and evict by it."""
        if not self._usage or self.refused:
            return
        with self._lock, contextlib.suppress(StoreError):
            name = f"usage/{time.time():.0f}-{uuid.uuid4().hex[:8]}.json"
            write_atomic(self.files, name, json.dumps(self._usage).encode())
            self._usage.clear()

    def holdings(self) -> list[Holding]:
        """What is kept, the most recently used first."""
        usage = self._all_usage()
        found = []
        for fingerprint, shards in self._shards_on_disk().items():
            account = usage.get(fingerprint, {})
            try:
                node = json.loads(read_bytes(self.files, f"columns/{fingerprint}/about.json"))["node"]
            except (OSError, ValueError, KeyError, TypeError):
                node = "?"
            found.append(
                Holding(
                    fingerprint,
                    node,
                    len(shards),
                    sum(info.size for info in shards),
                    int(account.get("reads", 0)),
                    account.get("seconds_saved", 0.0),
                    account.get("last_used", max((_modified(info) for info in shards), default=0.0)),
                )
            )
        return sorted(found, key=lambda holding: -holding.last_used)

    def _column(self, fingerprint: str) -> Column:
        """The column as this process knows it, now its most recently used one."""
        column = self._columns.setdefault(fingerprint, Column())
        self._columns.move_to_end(fingerprint)
        while len(self._columns) > 1 and sum(held.nbytes for held in self._columns.values()) > _MEMORY_BYTES:
            self._columns.popitem(last=False)
        return column

    def _refresh(self, fingerprint: str) -> Column:
        """Take in the shards that others have written since the last look."""
        column = self._column(fingerprint)
        for name in children(self.files, f"columns/{fingerprint}"):
            if name.endswith(".arrow") and name not in column.shards:
                table = self._read_shard(f"columns/{fingerprint}/{name}")
                if table is not None:
                    column.add(name, table)
        return column

    def _read_shard(self, path: str) -> pa.Table | None:
        """A shard whose content is what its name promises; one that is not is set aside."""
        try:
            data = read_bytes(self.files, path)
        except FileNotFoundError:
            return None  # evicted by another process since it was listed
        except OSError as error:
            log.warning("store shard %s cannot be read (%s); its rows are computed again", path, error)
            return None
        if digest(data) == path.rpartition("/")[2].removesuffix(".arrow"):
            return pa.ipc.open_file(pa.py_buffer(data)).read_all()
        self.corrupt += 1
        log.warning("store shard %s is damaged; it is set aside as .corrupt and its rows are computed again", path)
        with contextlib.suppress(OSError):
            self.files.move(path, f"{path}.corrupt")
        return None

    def _record(self, fingerprint: str, reads: int, seconds_saved: float) -> None:
        _add(self._usage, fingerprint, {"reads": reads, "seconds_saved": seconds_saved, "last_used": time.time()})
        self.reads += reads
        self.seconds_saved += seconds_saved

    def _all_usage(self) -> dict[str, dict[str, float]]:
        """The accounts of all processes added up."""
        self.flush()
        return self._summed(children(self.files, "usage"))

    def _summed(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        total: dict[str, dict[str, float]] = {}
        for name in names:
            try:
                for fingerprint, account in json.loads(read_bytes(self.files, f"usage/{name}")).items():
                    _add(total, fingerprint, account)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # an account that cannot be read costs a statistic, nothing more
        return total

    def _fold_usage(self) -> None:
        """Many small accounts into one. A renamed one is ours alone, so that none is counted twice."""
        names = children(self.files, "usage")
        if len(names) < _USAGE_FILES:
            return
        mine = []
        for name in names:
            claimed = f".{name}.{self._process}.tmp"
            with contextlib.suppress(OSError):
                self.files.move(f"usage/{name}", f"usage/{claimed}")
                mine.append(claimed)
        total = json.dumps(self._summed(mine)).encode()
        write_atomic(self.files, f"usage/{time.time():.0f}-{uuid.uuid4().hex[:8]}.json", total)
        for name in mine:
            with contextlib.suppress(OSError):
                self.files.delete_file(f"usage/{name}")

    def _shards_on_disk(self) -> dict[str, list[fs.FileInfo]]:
        """Every shard by fingerprint; drafts of killed processes and damaged shards are removed once they are old."""
        shards: dict[str, list[fs.FileInfo]] = {}
        for folder in ("columns", "usage"):
            for info in self.files.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True)):
                if info.type != fs.FileType.File:
                    continue
                if info.base_name.endswith(".arrow"):
                    shards.setdefault(info.path.split("/")[-2], []).append(info)
                elif info.base_name.endswith((".tmp", ".corrupt")) and time.time() - _modified(info) > _STALE_SECONDS:
                    with contextlib.suppress(OSError):
                        self.files.delete_file(info.path)
        return shards

    def _keep_within_limit(self) -> None:
        """Evict the least recently used columns' oldest shards while the store is larger than its limit."""
        now = time.monotonic()
        if self._bytes <= self.limit_bytes and now - self._measured_at < _MEASURE_SECONDS:
            return
        self._measured_at = now
        self._fold_usage()
        shards = self._shards_on_disk()
        self._bytes = sum(info.size for infos in shards.values() for info in infos)
        if self._bytes <= self.limit_bytes:
            return
        usage = self._all_usage()
        by_age = sorted(
            ((usage.get(fingerprint, {}).get("last_used", 0.0), _modified(info), info.path, info.size))
            for fingerprint, infos in shards.items()
            for info in infos
        )
        for _, _, path, size in by_age:
            # Below the limit by a margin, so that not every append has to measure and evict.
            if self._bytes <= _EVICT_TO * self.limit_bytes:
                break
            with contextlib.suppress(FileNotFoundError):
                self.files.delete_file(path)
            self._bytes -= size
            log.info("store: evicted %s (%d bytes), the least recently used", path, size)


def _add(total: dict[str, dict[str, float]], fingerprint: str, account: Mapping[str, float]) -> None:
    """Add one account of a column to what is known of it."""
    mine = total.setdefault(fingerprint, {"reads": 0, "seconds_saved": 0.0, "last_used": 0.0})
    mine["reads"] += account["reads"]
    mine["seconds_saved"] += account["seconds_saved"]
    mine["last_used"] = max(mine["last_used"], account["last_used"])


def _modified(info: fs.FileInfo) -> float:
    return info.mtime.timestamp() if info.mtime else 0.0


def _to_bytes(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()
