"""Ray Tune at work: one trial per run, actors used again, every event told to a watcher.

What Tune itself writes (its state, pickled) goes into a folder that is thrown away: graft never reads it back, since
what is done is known from the runs themselves.
"""

import contextlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.search import Searcher

from graft.errors import MEMORY_CURE
from graft.sweeps.agenda import Agenda
from graft.sweeps.status import Status
from graft.sweeps.trial import GraftTrial
from graft.sweeps.work import Work

_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # we name those that we want
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt ends the command, as everywhere in graft
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the driver's folder
    "RAY_AIR_NEW_OUTPUT": "0",  # the watcher shows what happens
}
_WORKER_DEATHS = 3
"""How often a run is given to a new process when its own was killed, or ended itself after another run's failure."""


def tune_runs(
    work: Work,
    agenda: Agenda,
    status: Status,
    changed: Callable[[str], None],
    concurrent: int,
    resources: Mapping[str, float],
    trial: type[GraftTrial] = GraftTrial,
) -> None:
    """Carry out what is on the agenda, until nothing is; `status` then holds each run as done or failed.

    Args:
        work: what all runs share.
        agenda: says which run is next, and is told how each ended.
        status: kept up to date.
        changed: called with the run_id whose state in `status` has changed.
        concurrent: trials at the same time at most.
        resources: that each trial has for itself: `CPU`, `GPU`.
        trial: what carries out one run; a benchmark gives one that does nothing.
    """
    trainable = tune.with_resources(tune.with_parameters(trial, work=work), dict(resources))
    trainable.__name__ = trainable.__qualname__ = trial.__name__  # what the dashboard shows of an actor
    with _settings(), _memory_ends_a_run(), tempfile.TemporaryDirectory(prefix="graft-tune-") as folder:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_Due(agenda, concurrent),
                num_samples=-1,  # until the agenda is empty
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.config["run_id"],
                trial_dirname_creator=lambda trial: trial.config["run_id"],
            ),
            run_config=tune.RunConfig(
                name=status.sweep_id,
                storage_path=folder,
                callbacks=[_Events(agenda, status, changed)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=_WORKER_DEATHS),
                verbose=0,
            ),
        )
        tuner.fit()


class _Due(Searcher):  # type: ignore[misc]
    """The agenda as Tune asks it."""

    def __init__(self, agenda: Agenda, concurrent: int):
        super().__init__()
        self.agenda, self.concurrent = agenda, concurrent
        self.running: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as of the events."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """The run that is due; None while others have to end first."""
        if len(self.running) >= self.concurrent:
            return None
        plan = self.agenda.next()
        if plan is None:
            return None if self.running else Searcher.FINISHED
        self.running.add(trial_id)
        experiment = json.dumps(plan.experiment.to_mapping())
        worst = json.dumps(self.agenda.worst(plan.run_id))
        return {"run_id": plan.run_id, "experiment": experiment, "rows": plan.dataset.fingerprint, "worst": worst}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Room for another; the events tell the agenda."""
        self.running.discard(trial_id)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the agenda is made anew from the runs that are done."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Events(tune.Callback):  # type: ignore[misc]
    """Keeps the status as Tune's events change it."""

    def __init__(self, agenda: Agenda, status: Status, changed: Callable[[str], None]):
        self.agenda = agenda
        self.status = status
        self.changed = changed

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes its callbacks down, and the terminal cannot be."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A run begins."""
        run_id = trial.config["run_id"]
        self.status.running.add(run_id)
        self.changed(run_id)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A run ended, or failed and said why."""
        result = trial.last_result
        if pruned := result.get("pruned"):
            return self._pruned(trial, {int(step): loss for step, loss in pruned.items()})
        self._ended(trial, result.get("metrics"), result.get("error"), result.get("seconds"))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A run's process died, again and again."""
        self._ended(trial, None, death(trial.get_error() or ""))

    def _pruned(self, trial: Any, looks: Mapping[int, float]) -> None:
        run_id = trial.config["run_id"]
        self.status.pruned.add(run_id)
        self.status.running.discard(run_id)
        self.agenda.pruned(run_id, looks)
        self.changed(run_id)

    def _ended(
        self, trial: Any, metrics: Mapping[str, float | None] | None, error: str | None, seconds: float | None = None
    ) -> None:
        run_id = trial.config["run_id"]
        if error is None and metrics is not None:
            self.status.done[run_id] = metrics
        else:
            self.status.failed[run_id] = error or "it ended without a result"
        self.status.running.discard(run_id)
        self.agenda.ended(run_id, self.status.done.get(run_id), self.status.failed.get(run_id), seconds or 0.0)
        self.changed(run_id)


def death(said: str) -> str:
    """Why a run's process died, again and again, in a line.

    Args:
        said: what Ray says of each death.
    """
    if low := re.search(r"low on memory.*? was (\S+ used / \S+ limit)", said, re.DOTALL):
        return (
            f"ran out of memory (Ray ended its process, each time it was tried: its node had {low[1]}); {MEMORY_CURE}"
        )
    known = re.search(r"Worker exit detail: (.{1,160}?)(?:\.? Some common causes|$)", said, re.MULTILINE)
    detail = f" ({known[1]})" if known else ""
    # A system that is out of memory kills without a word, and Ray can only guess.
    cure = f"; if it was killed for memory, {MEMORY_CURE}" if "OOM killer" in said else ""
    return f"its process died{detail}, each time it was tried; its run.log says how far it came{cure}"


@contextlib.contextmanager
def _memory_ends_a_run() -> Iterator[None]:
    """A process that Ray ends because its node is low on memory has died like any other, while Tune runs.

    Tune knows no such error and ends the whole sweep by it.
    """
    failed = RayActorManager._actor_task_failed

    def as_death(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        failed(self, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = as_death
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = failed


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Tune's own switches, and its loggers silent, while it runs."""
    before = {name: os.environ.get(name) for name in _SETTINGS}
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    levels = [logger.level for logger in loggers]
    os.environ.update(_SETTINGS)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
