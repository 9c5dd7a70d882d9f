"""What a run has spent, and the record of it: one place says what stands in the columns of every run."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from graft import hashing
from graft.execution import peak_memory_bytes
from graft.graph import Graph
from graft.planning import Plan
from graft.results.records import Record, environment, git_commit
from graft.store import ColumnStore


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
    before: Mapping[str, int],
    store: ColumnStore | None,
    answers: pa.Table,
    seconds: float,
    peak: int,
) -> Record:
    """The record of a run that has answered its rows.

    Args:
        planned: what was asked.
        graph: fitted.
        before: `so_far` of its models and its store when it began.
        store: what frozen nodes gave was kept there.
        answers: the rows with all columns.
        seconds: that it took, earlier attempts included.
        peak: the most memory that a training process has held, in bytes.
    """
    handles = planned.models
    trained = sum(node.parameters_trained() for node in graph.nodes)
    added = sum(node.parameters_added() for node in graph.nodes)
    cut = [name for name in answers.column_names if name.endswith("_tokens_cut")]
    return Record(
        **_head(planned),
        prompt_sha=hashing.digest(planned.template.sha, getattr(planned.experiment.method, "instruction", None)),
        device=next((str(handle.device) for handle in handles.values()), "cpu"),
        seconds=seconds,
        texts_cut=sum(int(np.count_nonzero(answers[name])) for name in cut),
        rationales_cut=_count_false(answers, "rationale_whole"),
        peak_memory_bytes=max(peak, peak_memory_bytes()),
        parameters_trainable=trained,
        parameters_total=added + sum(handle.parameters for handle in handles.values()),
        **since(before, handles, store),
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
