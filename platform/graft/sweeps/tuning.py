"""Ray Tune at work: one trial per run, actors used again, every event told to a watcher.

What Tune itself writes (its state, pickled) goes into a folder that is thrown away: graft never reads it back, since
what is done is known from the runs themselves.
"""

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray import tune

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
    status: Status,
    changed: Callable[[str], None],
    concurrent: int,
    gpus: int = 0,
    trial: type[GraftTrial] = GraftTrial,
) -> None:
    """Carry out the runs; `status` then holds each as done or failed.

    Args:
        work: the runs.
        status: kept up to date.
        changed: called with the run_id whose state in `status` has changed.
        concurrent: trials at the same time at most.
        gpus: that each trial has for itself.
        trial: what carries out one run; a benchmark gives one that does nothing.
    """
    trainable = tune.with_resources(tune.with_parameters(trial, work=work), {"CPU": 1, "GPU": gpus})
    trainable.__name__ = trainable.__qualname__ = trial.__name__  # what the dashboard shows of an actor
    with _settings(), tempfile.TemporaryDirectory(prefix="graft-tune-") as folder:
        tuner = tune.Tuner(
            trainable,
            param_space={"run_id": tune.grid_search(list(work.experiments))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=concurrent,
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.config["run_id"],
                trial_dirname_creator=lambda trial: trial.config["run_id"],
            ),
            run_config=tune.RunConfig(
                name=status.sweep_id,
                storage_path=folder,
                callbacks=[_Events(status, changed)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=_WORKER_DEATHS),
                verbose=0,
            ),
        )
        tuner.fit()


class _Events(tune.Callback):  # type: ignore[misc]
    """Keeps the status as Tune's events change it."""

    def __init__(self, status: Status, changed: Callable[[str], None]):
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
        self._ended(trial, result.get("metrics"), result.get("error"))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A run's process died, again and again."""
        known = re.search(r"Worker exit detail: (.{1,160})", trial.get_error() or "")
        detail = f" ({known[1]})" if known else ""
        self._ended(trial, None, f"its process died{detail}, each time it was tried; its run.log says how far it came")

    def _ended(self, trial: Any, metrics: Mapping[str, float | None] | None, error: str | None) -> None:
        run_id = trial.config["run_id"]
        if error is None and metrics is not None:
            self.status.done[run_id] = metrics
        else:
            self.status.failed[run_id] = error or "it ended without a result"
        self.status.running.discard(run_id)
        self.changed(run_id)


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
