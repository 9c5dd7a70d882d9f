"""The search inside a sweep: which setting of an arm is tried next, and which of those tried was best.

    propose settings ──► fit to a part of a tuning seed's examples, judge by the rest ──► tell Optuna ─► ... ─► best

Proposals depend on what was told before, in the order of the trials, and on nothing else: no clock and no order in
which processes end. So a search that was killed needs no memory: asked again, it proposes the same settings, whose
runs are done and are read.
"""

import contextlib
import functools
import importlib.util
import json
import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from pyarrow import fs

from graft import hashing
from graft.errors import SpecError
from graft.results.tables import LOWER_IS_BETTER, ordered
from graft.spec import Experiment
from graft.storage import local_root, write_atomic
from graft.sweeps.axes import Cell
from graft.swept import FIRST_TUNING_SEED, Dimension, Search
from graft.tasks.regimes import fold_count

REDUCTION = 3
"""Of the settings that reach a rung one in so many goes on."""

PLAIN = (bool, int, float, str, type(None))


@dataclass
class Attempt:
    """One setting of one arm, and what became of it."""

    number: int
    settings: dict[str, Any]
    trial: optuna.Trial
    runs: list[str] = field(default_factory=list)
    """run_ids: a run per fold and tuning seed."""
    value: float | None = None
    error: str | None = None
    pruned: bool = False
    looks: Mapping[int, float] = field(default_factory=dict)
    """Steps to loss of held-out rows, where training looked at some."""
    seconds: float = 0.0
    told: bool = False
    """Whether Optuna knows."""

    @property
    def status(self) -> str:
        """`done`, `failed` or `pruned`."""
        return "pruned" if self.pruned else "done" if self.error is None else "failed"


class CellSearch:
    """The search for the best setting of one arm with one amount of data.

    Args:
        cell: the arm.
        search: how it is looked for.
        space: dotted keys of the cell's own spec to what they may be.
        storage: Optuna's.
        place: of the cell in the sweep; it names the study and decides nothing.
        run_id: of a run of the cell with the spec's own settings. The sampler's seed is drawn from it alone: it hashes
            contents, so that what is proposed depends on no path and on no order of axes.
    """

    def __init__(
        self,
        cell: Cell,
        search: Search,
        space: Mapping[str, Dimension],
        storage: BaseStorage,
        place: int,
        run_id: str,
    ):
        # A sampler draws for one key after the other, and the order in which they are written is no part of the search.
        self.cell, self.search, self.space = cell, search, dict(sorted(space.items()))
        self.base = cell.experiment(FIRST_TUNING_SEED)
        self.attempts: list[Attempt] = []
        self.metric = search.metric
        name = f"{place} {self.base.method.name if self.base.method else ''} {self.base.regime.examples} examples"
        if cell.ablation.name:
            name += f" {cell.ablation.name}"
        down = search.metric in LOWER_IS_BETTER
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            sampler=_sampler(search, int(hashing.digest(run_id)[:8], 16) % 2**31),
            direction="minimize" if down else "maximize",
        )
        if (own := self._own_settings()) is not None:
            self.study.enqueue_trial(own)

    @property
    def over(self) -> bool:
        """Whether every setting was tried."""
        return len(self.attempts) == self.search.trials and not self._out()

    @property
    def runs_to_come(self) -> int:
        """Runs of the settings that are not proposed yet."""
        return (self.search.trials - len(self.attempts)) * self.search.seeds * fold_count(self.base.regime)

    @property
    def best(self) -> Attempt | None:
        """The best setting, of several equal ones the first; None where all failed."""
        done = [attempt for attempt in self.attempts if attempt.value is not None and not attempt.pruned]
        sign = 1 if self.study.direction == optuna.study.StudyDirection.MINIMIZE else -1
        return min(done, key=lambda attempt: (sign * (attempt.value or 0.0), attempt.number), default=None)

    def ask(self) -> list[Attempt]:
        """The settings to try now; none while others of the same round are out, or when all were tried."""
        if self._out():
            return []
        asked = []
        for _ in range(min(self.search.together, self.search.trials - len(self.attempts))):
            trial = self.study.ask()
            settings = {key: _suggested(trial, key, dimension) for key, dimension in self.space.items()}
            attempt = Attempt(len(self.attempts), settings, trial)
            self.attempts.append(attempt)
            asked.append(attempt)
        return asked

    def experiments(self, settings: Mapping[str, Any]) -> list[Experiment]:
        """The runs that judge a setting: each tuning seed with each fold of the examples."""
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.search.seeds)
        folds = range(fold_count(self.base.regime))
        return [self.cell.experiment(seed, **settings, **{"regime.fold": fold}) for seed in seeds for fold in folds]

    def judge(self, attempt: Attempt, results: Sequence[Mapping[str, float | None]]) -> None:
        """Take in what an attempt's runs gave; Optuna is told when the whole round is in, in the order proposed."""
        if self.metric is None:
            self.metric = ordered(results[0])[0]
        values = [result.get(self.metric) for result in results]
        if any(value is None for value in values):
            known = ", ".join(ordered(results[0]))
            attempt.error = f"the held-out examples have no {self.metric} (they have: {known})"
        else:
            attempt.value = sum(value for value in values if value is not None) / len(values)
        self._tell()

    def fail(self, attempt: Attempt, error: str) -> None:
        """An attempt that gave nothing."""
        attempt.error = error
        self._tell()

    def prune(self, attempt: Attempt) -> None:
        """An attempt that was stopped at one of its looks."""
        attempt.pruned = True
        self._tell()

    @functools.cached_property
    def rungs(self) -> list[int]:
        """Steps at which a setting may be stopped: the looks at a ninth and at a third of its steps, or just behind.

        None where nothing prunes, or a setting is judged by several runs, of which no single one stands for it.
        """
        training, every = self.base.training, self.base.training.validate_every_steps
        one_run = self.search.seeds * fold_count(self.base.regime) == 1
        if self.search.pruner is None or every is None or not one_run:
            return []
        ends = (math.ceil(training.max_steps / REDUCTION**power / every) * every for power in (2, 1))
        return sorted({end for end in ends if end < training.max_steps})

    def worst(self) -> dict[int, float]:
        """After a rung's step, the loss of held-out rows above which a setting of the next round is stopped.

        Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934, algorithm 2): the best third goes on. A
        setting is compared with those of the rounds before: which of its own round is faster must not matter.
        """
        found = {}
        for rung in self.rungs:
            losses = sorted(attempt.looks[rung] for attempt in self.attempts if attempt.told and rung in attempt.looks)
            if len(losses) + 1 >= REDUCTION:
                found[rung] = losses[(len(losses) + 1) // REDUCTION - 1]
        return found

    def rows(self, reports: str | None) -> list[dict[str, Any]]:
        """Rows of `graft.results.searches.SEARCH`."""
        best = self.best
        assert self.base.method is not None
        return [
            {
                "method": self.base.method.name,
                "task": self.base.task.name,
                "examples": self.base.regime.examples,
                "ablation": self.cell.ablation.name,
                "reports": reports,
                "trial": attempt.number,
                "settings": json.dumps(attempt.settings, sort_keys=True, ensure_ascii=False),
                "metric": self.metric,
                "value": attempt.value,
                "status": attempt.status,
                "error": attempt.error,
                "chosen": attempt is best,
                "seconds": attempt.seconds,
                "runs": attempt.runs,
            }
            for attempt in self.attempts
        ]

    def _out(self) -> list[Attempt]:
        return [one for one in self.attempts if one.value is None and one.error is None and not one.pruned]

    def _tell(self) -> None:
        """Tell Optuna of a round when all of it is in: the order in which runs end must not matter."""
        if self._out():
            return
        for attempt in self.attempts:
            if not attempt.told:
                attempt.told = True
                if attempt.value is not None:
                    self.study.tell(attempt.trial, attempt.value)
                else:
                    self.study.tell(attempt.trial, state=TrialState.PRUNED if attempt.pruned else TrialState.FAIL)

    def _own_settings(self) -> dict[str, Any] | None:
        """The cell's own values as Optuna has them; None where one of them is not in the space."""
        found = {}
        for key, dimension in self.space.items():
            value: Any = self.base.to_mapping()
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if dimension.kind == "choice":
                if value not in dimension.ends:
                    return None
                value = _label(value)
            elif not isinstance(value, int | float) or not dimension.ends[0] <= value <= dimension.ends[1]:
                return None
            found[key] = value
        return found


class Journal:
    """Optuna's storage of a sweep in a file, for Optuna's dashboard.

    It is begun anew by every command, since a search is replayed from the runs that are done.

    Args:
        files: the storage.
        path: of the file in it.
    """

    def __init__(self, files: fs.SubTreeFileSystem, path: str):
        self.files, self.path = files, path

    @functools.cached_property
    def storage(self) -> BaseStorage:
        """Optuna's storage; the file is there once something was searched."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with contextlib.suppress(FileNotFoundError):
            self._local.unlink()
        self._local.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(self._local)))

    def keep(self) -> None:
        """Write what was kept on this machine to a storage elsewhere."""
        if local_root(self.files) is None and self._local.exists():
            write_atomic(self.files, self.path, self._local.read_bytes())

    @functools.cached_property
    def _local(self) -> Path:
        root = local_root(self.files)
        return root / self.path if root else Path(tempfile.mkdtemp(prefix="graft-optuna-")) / "optuna.log"


def _sampler(search: Search, seed: int) -> optuna.samplers.BaseSampler:
    samplers = optuna.samplers
    if search.sampler == "tpe":
        # Its own default of 10 random trials would leave nothing of a small budget.
        startup = min(10, 1 + search.trials // 3)
        return samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=search.together > 1)
    # Optuna itself misses it only when it is first asked, in the middle of a sweep.
    if search.sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise SpecError("sweep.search.sampler: cmaes needs a package: pip install cmaes")
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        return _other_sampler(search.sampler, seed)


def _other_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    samplers = optuna.samplers
    made: dict[str, Any] = {"random": samplers.RandomSampler, "qmc": samplers.QMCSampler, "gp": samplers.GPSampler}
    made["cmaes"] = samplers.CmaEsSampler
    sampler: optuna.samplers.BaseSampler = made[name](seed=seed)
    return sampler


def _suggested(trial: optuna.Trial, key: str, dimension: Dimension) -> Any:
    if dimension.kind == "choice":
        labels = {_label(value): value for value in dimension.ends}
        return labels[trial.suggest_categorical(key, list(labels))]
    low, high = dimension.ends
    if dimension.kind.endswith("int"):
        return trial.suggest_int(key, low, high, log=dimension.kind == "logint")
    return trial.suggest_float(key, low, high, log=dimension.kind == "loguniform")


def _label(value: Any) -> Any:
    """What Optuna keeps of a choice: plain values as they are, others as JSON."""
    return value if isinstance(value, PLAIN) else json.dumps(value, sort_keys=True)
