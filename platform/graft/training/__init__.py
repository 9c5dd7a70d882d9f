"""Training by gradients: one loop, in this process or in many."""

import dataclasses
import logging
from collections.abc import Callable, Mapping

import pyarrow as pa
from pyarrow import fs

from graft import hashing
from graft.errors import DataError
from graft.execution import Progress
from graft.node import Trains
from graft.spec import Experiment
from graft.tasks.regimes import folds, units_of
from graft.training.checkpoints import Checkpoints
from graft.training.loop import Loop
from graft.training.states import Job, Trained

__all__ = ["Job", "Together", "Trained", "carry_out", "train"]

log = logging.getLogger(__name__)

Together = Callable[[Job, str, Progress], Trained]
"""Trains with several processes: what, under which folder of the storage its checkpoints lie, and who watches."""


def train(
    node: Trains,
    rows: pa.Table,
    more: pa.Table | None,
    experiment: Experiment,
    files: fs.FileSystem,
    folder: str,
    progress: Progress,
    together: Together | None = None,
    worst: Mapping[int, float] | None = None,
    units: Mapping[str, int] | None = None,
) -> Trained:
    """Train a node on rows, from its last checkpoint where it was begun before.

    Args:
        node: what is trained.
        rows: examples with their `target`.
        more: encoded rows of which nothing is held out, or None.
        experiment: says how and where.
        files: storage of the checkpoints.
        folder: of the run; checkpoints lie in a folder below it.
        progress: watches the steps go by.
        together: trains with several processes; needed where `scaling.workers` is more than one.
        worst: after a step, the largest loss of held-out rows with which training goes on.
        units: by a row's id the number of its unit, which is held out whole; None where each stands for itself.

    Raises:
        PrunedError: the loss was larger.
        DataError: nothing can be held out, or a row has no target token.
        ModelError: the model cannot be trained as asked.
        TrainingError: training diverges, or its workers are lost.
    """
    job = dataclasses.replace(prepare(node, rows, more, experiment, units), worst=worst or {})
    if experiment.scaling.workers > 1 and together is None:
        raise DataError(
            f"scaling.workers: got {experiment.scaling.workers}, and nobody trains them together; use graft.runner.run"
        )
    return carry_out(job, files, folder, progress, together)


def carry_out(
    job: Job, files: fs.FileSystem, folder: str, progress: Progress, together: Together | None = None
) -> Trained:
    """A training from its last checkpoint to its end, in this process where nobody trains it `together`.

    Raises:
        TrainingError: it diverges, or its workers are lost.
    """
    own = f"{folder}/checkpoints/{identity(job)}"
    if together is not None:
        return together(job, own, progress)
    what = f"train {job.node.describe()}"
    with Checkpoints(files, own) as checkpoints:
        trained = Loop(job, checkpoints, lambda done, total: progress(what, done, total)).run()
    assert trained is not None  # one process is the first one
    return trained


def prepare(
    node: Trains,
    rows: pa.Table,
    more: pa.Table | None,
    experiment: Experiment,
    units: Mapping[str, int] | None = None,
) -> Job:
    """Encode the rows, some of them to validate on where training selects."""
    held_out = None
    if experiment.training.validate_every_steps is not None:
        learned, kept = folds(rows["target"].to_pylist(), experiment.regime, units_of(rows, units))[0]
        held_out = node.encode(rows.take(pa.array(kept)))
        rows = rows.take(pa.array(learned))
    encoded = node.encode(rows)
    if more is not None:
        encoded = pa.concat_tables([encoded, more]).combine_chunks()  # rows of several chunks are slow to take
    return Job(node, experiment.training, encoded, held_out, experiment.scaling.strategy)


def identity(job: Job) -> str:
    """What would make the same weights: a checkpoint of another training is never taken up."""
    settings = job.training.model_dump(exclude={"checkpoint_seconds"})
    encoded = [
        rows.fingerprint() if not isinstance(rows, pa.Table) else hashing.table_digest(rows)
        for rows in (job.encoded, job.held_out)
        if rows is not None
    ]
    return hashing.digest(job.node.fingerprint(), job.node.terms, settings, encoded)[:12]
