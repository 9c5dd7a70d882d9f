"""Carries out one experiment: rows, graph, numbers, files.

A run is a folder `runs/<run_id>`. Its id hashes the resolved spec with contents in place of paths, so the same
question is answered once, wherever the data lie; `metrics.parquet` is renamed into place last, so a run is done or
it is not. What a killed run has put through its frozen models is in the column store, and the same command goes on
from there.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import shutil
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyarrow import fs

from graft import costs, runs
from graft.errors import GraftError, ModelError, StoreError, naming_memory
from graft.execution import Pool, Progress, no_progress, noting, run_node
from graft.graph import Graph
from graft.methods.answering import Answer
from graft.methods.fiat import READ
from graft.models import recipes
from graft.node import Context, Node, Trains
from graft.planning import Plan, plan
from graft.pool import RayPool
from graft.results.files import write_table
from graft.results.records import Record, Result, metric_table, test_values
from graft.seeds import fresh_streams
from graft.spec import Experiment
from graft.storage import (
    clean_if_wrong,
    exists,
    local_root,
    logging_to,
    open_storage,
    read_bytes,
    write_atomic,
    writing,
)
from graft.store import DEFAULT_LIMIT_BYTES, ColumnStore
from graft.tasks.evaluation import by_group, evaluate
from graft.tasks.split import units

if TYPE_CHECKING:
    from graft.training import Together

log = logging.getLogger(__name__)


def run(
    experiment: Experiment,
    storage: str | Path = ".",
    *,
    progress: Progress = no_progress,
    store_limit_bytes: int = DEFAULT_LIMIT_BYTES,
    address: str | None = None,
) -> Result:
    """Carry out one experiment, or read its result where it was carried out before.

    Args:
        experiment: a single one; a sweep is expanded by `graft.sweeps`.
        storage: folder or URI that holds `runs/` and `store/`.
        progress: watches the rows go by.
        store_limit_bytes: size above which the column store evicts.
        address: of the Ray cluster on which very many rows are computed; None starts one on this machine for them.

    Raises:
        GraftError: wrong input; nothing half-written is left.
    """
    train_missing([experiment], progress, address)
    planned = plan(experiment)
    files = open_storage(storage)
    store = open_store(files, store_limit_bytes)
    try:
        with RayPool(storage, address, name=planned.run_id) as pool:
            return carry_out(planned, files, store, progress, pool, together(planned, storage, address))
    finally:
        store.flush()


def train_missing(experiments: Iterable[Experiment], progress: Progress, address: str | None) -> None:
    """Train the models that experiments name, whose recipes come with graft, and that were never trained.

    Raises:
        GraftError: a training fails.
    """
    sources = (source.source for experiment in experiments for source in experiment.models.values())
    for path in recipes.untrained(sources):
        from graft.pretraining import pretrain  # only now: it needs torch
        from graft.pretraining.recipe import Recipe

        pretrain(Recipe.from_yaml(path), progress, address)


def open_store(files: fs.SubTreeFileSystem, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> ColumnStore:
    """The column store of a storage."""
    return ColumnStore(fs.SubTreeFileSystem("store", files), limit_bytes)


def carry_out(
    planned: Plan,
    files: fs.SubTreeFileSystem,
    store: ColumnStore | None,
    progress: Progress = no_progress,
    pool: Pool | None = None,
    together: "Together | None" = None,
    worst: Mapping[int, float] | None = None,
) -> Result:
    """Fit, evaluate and write one planned experiment; a done one is only read.

    Args:
        planned: what is carried out.
        files: the storage.
        store: what frozen nodes give is kept there; None keeps nothing.
        progress: watches the rows go by.
        pool: computes very many rows.
        together: trains with several processes.
        worst: after a step of training, the largest loss of held-out examples with which it goes on.

    Raises:
        GraftError: it cannot be carried out, or (PrunedError) was stopped by `worst`.
    """
    folder = f"runs/{planned.run_id}"
    if runs.is_done(files, folder):
        _forget_attempts(files, folder)  # of a process that was killed before it could
        try:
            return runs.read_result(files, folder)
        except StoreError as error:
            log.warning("%s; the run is carried out again", error)
    streams = fresh_streams(planned.experiment.training.seed)
    with clean_if_wrong(files, folder), _logging_to(files, folder), naming_memory(), streams:
        log.info("%s begins: %s", planned.run_id, planned.experiment.model_dump_json())
        write_atomic(files, f"{folder}/spec.yaml", planned.experiment.to_yaml().encode())
        meter = costs.Meter(files, folder, planned.models, store)
        watched = noting(progress, meter.keep)
        test = _frozen_beginning(planned, store, watched, pool)
        known = units(planned.examples, planned.dataset.inputs, planned.dataset.items)
        train = _Train(planned.experiment, files, folder, progress, together, worst, known, meter)
        context = Context(planned.experiment, planned.dataset.labels, store, watched, pool, train, known)
        graph = planned.graph.fit(planned.examples, context)
        _warn_of_silence(test)
        rest = graph.after(len(planned.graph.frozen()))
        answers = rest.run(test.select(["id", *rest.inputs]), store, watched, pool)
        for column in ("target", "group", "checks"):
            if column in test.column_names and column not in answers.column_names:
                answers = answers.append_column(column, test[column])
        about = units(test, planned.dataset.inputs, planned.dataset.items)
        if len({*about.values()}) < len(about):
            answers = answers.append_column("together", pa.array([str(about[id]) for id in answers["id"].to_pylist()]))
        answers = planned.experiment.task.marked(answers)
        answers = with_target_probabilities(answers, graph.nodes[-1], planned.dataset.labels)
        spent = meter.total()
        spent["seconds"] += train.earlier_seconds
        spent["peak_memory_bytes"] = max(spent["peak_memory_bytes"], train.peak)
        record = costs.record(planned, graph, answers, spent)
        table = _metric_rows(record, answers, planned)
        if train.curves:
            write_table(files, f"{folder}/training.parquet", pa.concat_tables(train.curves))
        _save_graph(graph, files, f"{folder}/graph")
        write_table(files, f"{folder}/predictions.parquet", predictions(answers, planned.dataset.inputs, planned.split))
        log.info(
            "%s is done: %s",
            planned.run_id,
            test_values(table),
        )
        write_table(files, f"{folder}/metrics.parquet", table)
        _forget_attempts(files, folder)
    return runs.read_result(files, folder)


class _Train:
    """What the nodes of a run ask their context for: weights, and for the record how they came about."""

    def __init__(
        self,
        experiment: Experiment,
        files: fs.SubTreeFileSystem,
        folder: str,
        progress: Progress,
        together: "Together | None",
        worst: Mapping[int, float] | None,
        units: Mapping[str, int],
        meter: costs.Meter,
    ) -> None:
        self.experiment, self.files, self.folder = experiment, files, folder
        self.progress, self.together, self.worst, self.units = progress, together, worst, units
        self.meter = meter
        self.curves: list[pa.Table] = []
        self.earlier_seconds = 0.0
        """Spent on training by attempts before this one."""
        self.peak = 0
        """The most memory that a training process has held, in bytes."""

    def __call__(self, node: Trains, rows: pa.Table, more: pa.Table | None = None) -> dict[str, np.ndarray]:
        """Train a node."""
        from graft import training
        from graft.training.states import curve

        began = time.perf_counter()
        where = (self.files, self.folder, self.progress, self.together)
        with self.meter.training():
            trained = training.train(node, rows, more, self.experiment, *where, self.worst, self.units)
            for handle in list(node.handles().values())[:1]:
                handle.usage.add(trained.state.tokens, trained.state.sequences)
        self.earlier_seconds += max(0.0, trained.state.seconds - (time.perf_counter() - began))
        self.peak = max(self.peak, trained.state.peak_memory_bytes)
        self.curves.append(curve(trained.state, node.describe()))
        return trained.weights


def _frozen_beginning(planned: Plan, store: ColumnStore | None, progress: Progress, pool: Pool | None) -> pa.Table:
    """The test rows with what the nodes before the first fitted one give: what cannot be answered fails now.

    Raises:
        ModelError: a test row does not fit a model.
    """
    rows, node = planned.test, planned.graph.nodes[-1]
    for frozen in planned.graph.frozen():
        rows = run_node(frozen, rows, store, progress, pool)
    if hasattr(node, "build") and isinstance(node, Answer) and set(node.reads) <= set(rows.column_names):
        dataclasses.replace(node, labels=planned.dataset.labels or ()).check(rows)
    return rows


def _warn_of_silence(rows: pa.Table) -> None:
    """A teacher that writes nothing is no error, and what it is compared with is then no comparison."""
    if "rationale_whole" in rows.column_names:
        empty = rows["rationale"].to_pylist().count("")
        if empty > rows.num_rows / 2:
            log.warning("%d of %d rationales of test rows are empty: is this model a teacher?", empty, rows.num_rows)
        cut = rows["rationale_whole"].to_pylist().count(False)
        if cut > rows.num_rows / 2:
            log.warning("%d of %d were cut by method.max_rationale_tokens: raise it?", cut, rows.num_rows)


def together(planned: Plan, storage: str | Path, address: str | None) -> "Together | None":
    """Training with several workers, where the spec asks for them."""
    scaling = planned.experiment.scaling
    if scaling.workers == 1:
        return None
    from graft.training.workers import train_together

    return functools.partial(train_together, storage=storage, address=address, scaling=scaling, name=planned.run_id)


def _forget_attempts(files: fs.SubTreeFileSystem, folder: str) -> None:
    """A finished run needs no checkpoints, nor what its attempts have spent."""
    with contextlib.suppress(OSError):
        if exists(files, f"{folder}/checkpoints"):
            files.delete_dir(f"{folder}/checkpoints")
        if exists(files, f"{folder}/{costs.FILE}"):
            files.delete_file(f"{folder}/{costs.FILE}")


def _metric_rows(record: Record, answers: pa.Table, planned: Plan) -> pa.Table:
    """Metrics of all test rows and, where the task averages over groups, of each group and their mean."""
    task, labels = planned.experiment.task, planned.dataset.labels
    found = [(planned.split, evaluate(answers, labels, task), answers.num_rows)]
    if planned.split == "test":
        found += by_group(answers, labels, task)
    return pa.concat_tables([metric_table(record, values, n, split) for split, values, n in found])


def with_target_probabilities(answers: pa.Table, node: Node, labels: tuple[str, ...] | None) -> pa.Table:
    """Answers with `target_log_probability` and `target_tokens`, where a node in this process writes free text.

    Without them where a target does not fit the model: the log says so.
    """
    if labels is not None or not isinstance(node, Answer) or node.model.remote:
        return answers
    try:
        sums, tokens = node.target_log_probabilities(answers)
    except ModelError as error:
        # All rows are answered: one long target is no reason to lose them.
        log.warning("no perplexity, since not every target can be scored: %s", error)
        return answers
    return answers.append_column("target_log_probability", pa.array(sums)).append_column(
        "target_tokens", pa.array(tokens)
    )


def predictions(answers: pa.Table, inputs: Sequence[str], split: str = "test") -> pa.Table:
    """The columns of `predictions.parquet`: the row, its target, the answer, and the texts between, as they were read.

    Of a student's rationale that is what it has read itself: of a control, not what the teacher wrote.
    """
    if READ in answers.column_names:
        answers = answers.set_column(answers.column_names.index("rationale"), "rationale", answers[READ])
    wanted = ["id", *inputs, "group", "together", "target", "prediction", "written", "passed", "scores", "votes"]
    wanted += ["rationale", "rationale_whole", "demonstrations", "target_log_probability", "target_tokens"]
    # A graph may read the group or the rationale too.
    kept = answers.select([column for column in dict.fromkeys(wanted) if column in answers.column_names])
    return kept.add_column(1, "split", pa.array([split] * answers.num_rows))


def reason(error: BaseException) -> str:
    """Why a run failed, as its record says it."""
    return str(error) if isinstance(error, GraftError) else "".join(traceback.format_exception_only(error)).strip()


def _save_graph(graph: Graph, files: fs.SubTreeFileSystem, folder: str) -> None:
    """Write the graph; on a local disk whole or not at all, since another process may be writing the same one."""
    draft = f"{folder}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp" if local_root(files) else folder
    with writing(folder):
        try:
            with tempfile.TemporaryDirectory() as local:
                graph.save(local)
                fs.copy_files(local, draft, source_filesystem=fs.LocalFileSystem(), destination_filesystem=files)
            if draft != folder:
                if exists(files, folder):
                    files.delete_dir(folder)
                files.move(draft, folder)
        except OSError:
            with contextlib.suppress(OSError):
                files.delete_dir(draft)
            raise


@contextlib.contextmanager
def _logging_to(files: fs.SubTreeFileSystem, folder: str) -> Iterator[None]:
    """Log into the run's `run.log`; for remote storage beside it, uploaded at the end."""
    root = local_root(files)
    path = (root / folder if root else Path(tempfile.mkdtemp())) / "run.log"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    try:
        with logging_to(path):
            try:
                yield
            except GraftError as error:
                # Info: the terminal shows it anyway. A traceback only of what led to it, such as a library's error.
                log.info("the run stopped: %s", error, exc_info=error.__cause__)
                raise
            except BaseException:
                log.info("the run stopped", exc_info=True)
                raise
    finally:
        if root is None:
            with contextlib.suppress(StoreError):
                before = read_bytes(files, f"{folder}/run.log") if exists(files, f"{folder}/run.log") else b""
                write_atomic(files, f"{folder}/run.log", before + path.read_bytes())
            shutil.rmtree(path.parent)
