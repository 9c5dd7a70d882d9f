"""What a run has spent, and the record of it: one place says what stands in the columns of every run."""

import contextlib
import functools
import json
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from graft import hashing
from graft.errors import StoreError
from graft.execution import peak_memory_bytes
from graft.graph import Graph
from graft.planning import Plan
from graft.results.records import Record, environment, git_commit
from graft.storage import exists, read_bytes, write_atomic
from graft.store import ColumnStore

log = logging.getLogger(__name__)

FILE = "spent.json"
"""In the folder of a run that is not done: what its attempts have spent."""
KEPT = ("seconds", "tokens", "forward_passes", "teacher_calls")


class Meter:
    """What a run spends over all of its attempts.

    An attempt writes it down as its rows are stored; what is spent on training is in the checkpoints. A kill thus takes
    the costs of what has to be computed again, and of the second before it. Reads are no costs: `store_reads` and
    `teacher_reads` are those of the last attempt, which also reads what earlier ones have stored.

    Args:
        files: the storage.
        folder: of the run.
        models: by role.
        store: what frozen nodes give is kept there.
    """

    def __init__(self, files: fs.FileSystem, folder: str, models: Mapping[str, Any], store: ColumnStore | None) -> None:
        self.files, self.path, self.models, self.store = files, f"{folder}/{FILE}", models, store
        self.earlier = _read(files, self.path)
        self.began, self.before = time.perf_counter(), so_far(models, store)
        self.trained: dict[str, Any] = dict.fromkeys(KEPT, 0)
        """What trainings have spent in this attempt."""

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Inside, a training runs and nothing is written down."""
        self.keep()
        began = self._own()
        yield
        ended = self._own()
        for name in KEPT:
            self.trained[name] += ended[name] - began[name]

    def keep(self) -> None:
        """Write down what was spent until now; storage that refuses costs no result."""
        own = self._own()
        values = {name: self.earlier[name] + own[name] - self.trained[name] for name in KEPT}
        values["peak_memory_bytes"] = self.peak
        try:
            write_atomic(self.files, self.path, json.dumps(values).encode())
        except StoreError as error:
            log.info("what this run has spent is not written down: %s", error)

    def total(self) -> dict[str, Any]:
        """What all attempts have spent, but for the seconds that checkpoints of earlier ones count."""
        own = self._own()
        return {**own, **{name: self.earlier[name] + own[name] for name in KEPT}, "peak_memory_bytes": self.peak}

    @property
    def peak(self) -> int:
        """The most memory that a process of an attempt has held, in bytes."""
        return max(self.earlier["peak_memory_bytes"], peak_memory_bytes())

    def _own(self) -> dict[str, Any]:
        """Of this attempt."""
        return {"seconds": time.perf_counter() - self.began, **since(self.before, self.models, self.store)}


def _read(files: fs.FileSystem, path: str) -> dict[str, Any]:
    """What earlier attempts have spent."""
    names = (*KEPT, "peak_memory_bytes")
    try:
        if exists(files, path):
            values = json.loads(read_bytes(files, path))
            return {name: values[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: what earlier attempts have spent is not known: %s", path, error)
    return dict.fromkeys(names, 0)


def so_far(handles: Mapping[str, Any], store: ColumnStore | None) -> dict[str, int]:
    """What these models have computed and this store has given so far; a run's own costs are a difference."""
    distinct = {id(handle): handle for handle in handles.values()}.values()
    return {
        "tokens": sum(handle.usage.tokens for handle in distinct),
        "forward_passes": sum(handle.usage.forward_passes for handle in distinct),
        "store_reads": store.reads if store else 0,
        "teacher_calls": store.tallies["teacher_calls"] if store else 0,
        "teacher_reads": store.tallies["teacher_reads"] if store else 0,
    }


def since(before: Mapping[str, int], handles: Mapping[str, Any], store: ColumnStore | None) -> dict[str, Any]:
    """What has come to `so_far` since."""
    return {name: value - before[name] for name, value in so_far(handles, store).items()}


def record(
    planned: Plan,
    graph: Graph,
    answers: pa.Table,
    spent: Mapping[str, Any],
) -> Record:
    """The record of a run that has answered its rows.

    Args:
        planned: what was asked.
        graph: fitted.
        answers: the rows with all columns.
        spent: costs by their columns, earlier attempts included.
    """
    handles = planned.models
    trained = sum(node.parameters_trained() for node in graph.nodes)
    added = sum(node.parameters_added() for node in graph.nodes)
    cut = [name for name in answers.column_names if name.endswith("_tokens_cut")]
    return Record(
        **_head(planned),
        prompt_sha=hashing.digest(planned.template.sha, getattr(planned.experiment.method, "instruction", None)),
        device=next((str(handle.device) for handle in handles.values()), "cpu"),
        texts_cut=sum(int(np.count_nonzero(answers[name])) for name in cut),
        rationales_cut=_count_false(answers, "rationale_whole"),
        parameters_trainable=trained,
        parameters_total=added + sum(handle.parameters for handle in handles.values()),
        **spent,
    )


def _count_false(answers: pa.Table, name: str) -> int:
    return answers.num_rows - sum(answers[name].to_pylist()) if name in answers.column_names else 0


def failure(planned: Plan, error: str) -> Record:
    """The record of a planned experiment that could not be carried out."""
    return Record(**_head(planned), error=error)


def _head(planned: Plan) -> dict[str, Any]:
    """What a record says of an experiment whether or not it could be carried out."""
    experiment = planned.experiment
    assert experiment.method is not None
    return {
        "run_id": planned.run_id,
        "name": experiment.name,
        "method": experiment.method.name,
        "task": experiment.task.name,
        "examples": planned.examples.num_rows,
        "seed": experiment.regime.seed,
        "spec": experiment.question(),
        "task_sha": planned.dataset.fingerprint,
        "equal_inputs": planned.dataset.equal_inputs,
        "models": {
            role: {"source": handle.source.source, "fingerprint": handle.fingerprint}
            for role, handle in planned.models.items()
        },
        "versions": _environment(),
        "git_commit": _git_commit(),
    }


# Neither changes while the process lives, and git is a process of its own.
_environment = functools.cache(environment)
_git_commit = functools.cache(git_commit)
