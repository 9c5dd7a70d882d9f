"""What trains on the cluster: a supervisor that runs Ray Train, and the workers.

    Supervisor ─► Ray Train's controller ─► workers
        ▲  │            │ these have ended       │
        │  └─ goes on? ◄┘                        │
        └───────── steps, log lines, errors ◄────┘

Ray Train starts all workers again after any error of any of them, so the supervisor counts, and ends that.
"""

import dataclasses
import functools
import logging
import re
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from graft import hashing
from graft.errors import GraftError, StoreError, TrainingError, to_words
from graft.storage import open_storage
from graft.training.checkpoints import Checkpoint, Checkpoints
from graft.training.loop import Loop
from graft.training.states import Job, State, Trained

log = logging.getLogger(__name__)

SAY_SECONDS = 0.5
"""Between two words of a worker about where training stands."""


@dataclass(frozen=True)
class Team:
    """What all workers of a training share."""

    job: Any
    """A Ray reference to the Job: its rows go through the object store, once per node."""
    about: str
    """What is trained, in words."""
    settings: dict[str, Any]
    """Of the training, for the dashboard."""
    storage: str
    folder: str
    name: str
    workers: int | tuple[int, int]
    """How many, or the least and the most."""
    gpus: int
    """GPUs of each worker: 0 or 1."""
    resize_seconds: float
    """Between two looks whether there can be more."""
    attempts: int
    """Times in a row that workers may end without training having come further than ever."""
    most_attempts: int
    """Times in all."""


@dataclass(frozen=True)
class News:
    """What a supervisor has heard."""

    step: int
    steps: int
    waited: float
    """Seconds for which there have been no workers."""
    records: list[tuple[int, str, str]]
    """Log lines: level, logger, text."""


class Supervisor:
    """Runs Ray Train, in a process of its own: what Ray Train has to say goes to that process's log."""

    def __init__(self, team: Team) -> None:
        self._team = team
        self._step = self._steps = 0
        self._records: deque[tuple[int, str, str]] = deque()
        self._failure: tuple[str, str] | None = None
        self._waits_since: float | None = time.monotonic()
        self._furthest = self._furthest_before = self._in_vain = 0

    def train(self) -> tuple[str, str] | None:
        """Train to the end; class and text of the error where it failed."""
        from ray.train import TrainingFailedError

        try:
            self._trainer().fit()
        except TrainingFailedError as error:
            self.fails("TrainingError", f"{self._team.about}: {_line(error)}; run the same again")
        return self._failure

    def _trainer(self) -> Any:
        import ray
        from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        team, me = self._team, ray.get_runtime_context().current_actor
        trainer = TorchTrainer(
            functools.partial(work, team, me),
            train_loop_config=team.settings,
            scaling_config=ScalingConfig(
                num_workers=team.workers,
                use_gpu=bool(team.gpus),
                resources_per_worker={"CPU": 1, **({"GPU": team.gpus} if team.gpus else {})},
                elastic_resize_monitor_interval_s=team.resize_seconds,
            ),
            run_config=RunConfig(
                name=team.name,
                # Ray Train itself keeps nothing that matters: it needs no place that all nodes see.
                storage_path="ray-train",
                storage_filesystem=fs.PyFileSystem(fs.FSSpecHandler(MemoryFileSystem())),
                failure_config=FailureConfig(
                    max_failures=team.most_attempts,
                    controller_failure_limit=team.most_attempts,
                    max_preemption_failures=team.most_attempts,
                ),
                callbacks=[_give_up_with(me)],
            ),
        )
        if isinstance(team.workers, tuple):
            # By this id Ray reserves room for an elastic training, for three minutes, whether or not it lives:
            # measured: under another one the same command waited that long after a kill.
            object.__setattr__(trainer.train_run_context, "run_id", hashing.digest(team.name, team.folder))
        return trainer

    def begins(self) -> None:
        """The workers are there."""
        self._waits_since = None

    def reached(self, step: int, steps: int) -> None:
        """Training stands at a step."""
        self._step, self._steps = step, steps
        self._furthest = max(self._furthest, step)

    def says(self, level: int, name: str, text: str) -> None:
        """A worker has logged something."""
        self._records.append((level, name, text))

    def fails(self, kind: str, text: str) -> None:
        """Training has failed: class and text of its first error."""
        self._failure = self._failure or (kind, text)

    def ends(self, reason: str) -> str | None:
        """Workers have ended; why to give up, or None to start them anew."""
        self._waits_since = time.monotonic()
        self._in_vain = 1 if self._furthest > self._furthest_before else self._in_vain + 1
        self._furthest_before, about = self._furthest, self._team.about
        if self._failure is None and self._in_vain >= self._team.attempts:
            what = f"workers ended {self._in_vain} times at step {self._furthest} and came no further: {reason}"
            cure = "look at the reason; for memory, lower training.tokens_per_device or use larger machines"
            self.fails("TrainingError", f"{about}: {what}; {cure}")
        if self._failure is None:
            self.says(logging.WARNING, log.name, f"{about}: {reason}; all workers start anew from the last checkpoint")
        return self._failure[1] if self._failure else None

    def news(self) -> News:
        """What has come since this was last asked."""
        # Others may say more meanwhile: what is taken is exactly what goes.
        records = [self._records.popleft() for _ in range(len(self._records))]
        waited = time.monotonic() - self._waits_since if self._waits_since else 0.0
        return News(self._step, self._steps, waited, records)

    def __repr__(self) -> str:
        return f"graft {self._team.about}"


def _give_up_with(supervisor: Any) -> Any:
    """What ends Ray Train's attempts when the supervisor says so."""
    import ray
    from ray.train import UserCallback

    class GiveUp(UserCallback):  # type: ignore[misc]
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            if failure := ray.get(supervisor.ends.remote(_reason(worker_exceptions))):
                raise TrainingError(failure)

    return GiveUp()


def _reason(failures: dict[int, Exception]) -> str:
    """Why workers ended, in a line; Ray Train wraps the errors in others."""
    causes = {
        rank: getattr(error, "_base_exc", None) or getattr(error, "health_check_failure", None) or error
        for rank, error in failures.items()
    }

    lost = {rank for rank, cause in causes.items() if _is_broken_connection(cause)}
    if lost == set(causes):
        return f"worker {min(lost)} has lost its connection to another one"
    rank = min(set(causes) - lost)
    return f"worker {rank}: {_line(causes[rank])}"


def _is_broken_connection(error: BaseException) -> bool:
    """It says no more than that another worker is gone."""
    if type(error).__module__ == "torch.distributed":
        return True
    return type(error) is RuntimeError and ("gloo" in str(error) or "NCCL" in str(error))


def _line(error: BaseException) -> str:
    """An error as one line, without Ray's advice."""
    text = re.sub(r"^.*exit detail: |Some common causes.*$", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:300].strip()}"


def work(team: Team, supervisor: Any, settings: dict[str, Any]) -> None:
    """Be one of the workers: the loop, from its last checkpoint; the first one keeps the trained weights."""
    import ray
    from ray.train import get_context

    warnings.simplefilter("ignore", DeprecationWarning)  # of libraries; nobody reads a worker's
    context = get_context()
    first = context.get_world_rank() == 0
    logger = logging.getLogger("graft")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Telling(supervisor, logging.INFO if first else logging.WARNING))
    log.info("%s: worker %d of %d begins", team.about, context.get_world_rank(), context.get_world_size())
    ray.get(supervisor.begins.remote())
    try:
        files = open_storage(team.storage)
        with Checkpoints(files, team.folder) as checkpoints:
            trained = Loop(_opened(team.job), checkpoints if first else None, _watch(supervisor)).run()
        if trained is not None:
            write_trained(files, team.folder, trained)
    except GraftError as error:
        ray.get(supervisor.fails.remote(*to_words(error)))
        raise


class _Telling(logging.Handler):
    """Tells the supervisor what is logged here."""

    def __init__(self, supervisor: Any, level: int) -> None:
        super().__init__(level)
        self.supervisor = supervisor

    def emit(self, record: logging.LogRecord) -> None:
        self.supervisor.says.remote(record.levelno, record.name, self.format(record))


def _watch(supervisor: Any) -> Callable[[int, int], None]:
    """Tells the supervisor where training stands, now and then."""
    told = 0.0

    def watch(step: int, steps: int) -> None:
        nonlocal told
        if step == steps or time.monotonic() - told > SAY_SECONDS:
            told = time.monotonic()
            supervisor.reached.remote(step, steps)

    return watch


def _opened(reference: Any) -> Job:
    """The job, its models opened here.

    Raises:
        ModelError: they are not here.
    """
    import ray

    try:
        job: Job = ray.get(reference)
    except ray.exceptions.RaySystemError as error:  # Ray's wrapping of what unpickling raises
        raise error.client_exc if isinstance(error.client_exc, GraftError) else error from None
    return job


def write_trained(files: fs.FileSystem, folder: str, trained: Trained) -> None:
    """Keep what was trained: it outlives the workers, and whoever asked for it.

    Raises:
        StoreError: the storage refuses.
    """
    import torch

    tensors = {name: torch.from_numpy(value) for name, value in trained.weights.items()}
    with Checkpoints(files, f"{folder}/trained") as kept:
        kept.save(Checkpoint(trained.state.step, tensors, dataclasses.asdict(trained.state)))
    if kept.problems:
        raise StoreError(f"{folder}: the trained weights cannot be written; free some space and run the same again")


def read_trained(files: fs.FileSystem, folder: str) -> Trained | None:
    """What was trained, if it was."""
    found = Checkpoints(files, f"{folder}/trained").last()
    if found is None:
        return None
    return Trained({name: value.numpy() for name, value in found.tensors.items()}, State.from_json(found.state))
