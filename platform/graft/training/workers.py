"""Several processes train together: Ray Train starts them, and starts them anew when some are lost.

    this process ─► supervisor ─► workers: the one loop, side by side
         ▲               │ steps       │ checkpoints, at last the weights
         ├───────────────┘             ▼
         └─────────────────────────  storage

Whatever is killed, workers, a node or this process: training goes on from its own last checkpoint. Errors travel as
data and weights through the storage, so both are what they were.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graft.cluster import Cluster, check_shared, connect
from graft.errors import ClusterError, SpecError, StoreError, TrainingError, from_words
from graft.execution import Progress
from graft.models.loading import resolve_device
from graft.spec import Scaling
from graft.storage import local_root, open_storage
from graft.training.states import Job, Trained
from graft.training.team import News, Supervisor, Team, read_trained

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Times in a row that workers may end without training having come further than ever."""
MOST_ATTEMPTS = 1000
"""Times in all: machines that come and go are no reason to give up, but nothing goes on for ever."""
WAIT_SECONDS = 1800.0
"""How long training waits for room for its workers, such as a node in the place of a lost one."""
START_SECONDS = 10.0
"""How long Ray Train waits before it counts again: an elastic training goes on with fewer after that."""
RESIZE_SECONDS = 30.0
"""Between two looks whether an elastic training can have more workers."""
ASK_SECONDS = 0.5
"""Between two questions to the supervisor."""

_SETTINGS = {
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's Train tab
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(START_SECONDS),
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the driver's folder
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # who is lost never answers
    "TRAIN_ENABLE_SHARE_CUDA_VISIBLE_DEVICES": "0",  # a worker sees its own GPU only, and takes it
}


def train_together(
    job: Job,
    folder: str,
    progress: Progress,
    *,
    storage: str | Path,
    address: str | None,
    scaling: Scaling,
    name: str,
) -> Trained:
    """Train with `scaling.workers` processes; what was trained before is only read.

    Args:
        job: what is trained.
        folder: of the storage, for checkpoints and the trained weights.
        progress: told about steps.
        storage: folder or URI that all nodes see.
        address: `host:port` of a cluster, `auto`, or None to start one on this machine.
        scaling: how many workers, and on what.
        name: of the run in the dashboard.

    Raises:
        SpecError: the cluster is too small.
        ClusterError: there is no cluster, or no room on it.
        TrainingError: training diverges, or its workers are lost again and again.
        GraftError: what a worker raises.
    """
    files = open_storage(storage)
    about = f"train {job.node.describe()}"
    if trained := read_trained(files, folder):
        log.info("%s: read, it was trained before", about)
        return trained
    with connect(address, name) as cluster:
        import ray

        gpus = _gpus_of_each(cluster, scaling)
        check_shared(cluster, storage)
        least = scaling.min_workers or scaling.workers
        team = Team(
            job=ray.put(job),
            about=about,
            settings=job.training.model_dump(),
            storage=str(local_root(files) or storage),
            folder=folder,
            name=name,
            workers=(least, scaling.workers) if least < scaling.workers else scaling.workers,
            gpus=gpus,
            resize_seconds=RESIZE_SECONDS,
            attempts=ATTEMPTS,
            most_attempts=MOST_ATTEMPTS,
        )
        _supervised(team, cluster, progress)
    if (trained := read_trained(files, folder)) is None:
        raise StoreError(f"{folder}: the trained weights cannot be read; run the same again")
    return trained


def _gpus_of_each(cluster: Cluster, scaling: Scaling) -> int:
    """GPUs of each worker: it computes where this process would.

    Raises:
        SpecError: the cluster has no room even for the fewest workers.
    """
    least, what = scaling.min_workers or scaling.workers, f"scaling.workers: {scaling.workers}"
    cluster.require(least, what)
    if not resolve_device(scaling.device).startswith("cuda"):
        if cluster.gpus:
            log.warning("%s train on CPUs, as this process would; start it on a machine with a GPU to use GPUs", what)
        return 0
    if cluster.gpus < least:
        raise SpecError(
            f"{what} needs {least} GPUs, the cluster at {cluster.address} has {cluster.gpus:g}; ask for less, or train "
            "on CPUs with scaling.device: cpu"
        )
    return 1


def _supervised(team: Team, cluster: Cluster, progress: Progress) -> None:
    """Train to the end; whatever happens, no worker is left.

    Raises:
        GraftError: training has failed.
    """
    import ray

    supervisor = _supervisor(team)
    try:
        with _terminable():
            end = supervisor.train.remote()
            ended: list[Any] = []
            while not ended:
                ended, _ = ray.wait([end], timeout=ASK_SECONDS)
                _pass_on(ray.get(supervisor.news.remote()), team, cluster, progress)
            failure = ray.get(end)
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[-300:]
        raise ClusterError(f"{team.about}: its supervisor failed: {reason}; run the same again") from error
    finally:
        ray.kill(supervisor)  # with it goes all that it has started
    if failure is not None:
        raise from_words(*failure) or TrainingError(failure[1])


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM is Ctrl-C: Ray would end the process by it and leave no time to end the workers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: a handler of Ray's, which is not Python's


def _supervisor(team: Team) -> Any:
    """The actor, on this machine: a lost node must not take along what would notice it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_concurrency=16)(Supervisor)  # it answers while it runs
    return actor.options(scheduling_strategy=here, runtime_env={"env_vars": _SETTINGS}).remote(team)


def _pass_on(news: News, team: Team, cluster: Cluster, progress: Progress) -> None:
    """Show and log what the workers say.

    Raises:
        ClusterError: there has been no room for too long.
    """
    for level, name, text in news.records:
        logging.getLogger(name).log(level, "%s", text)
    if news.steps:
        progress(team.about, news.step, news.steps)
    if news.waited > WAIT_SECONDS:
        least = team.workers if isinstance(team.workers, int) else team.workers[0]
        raise ClusterError(
            f"{team.about}: no room for {least} workers on the cluster at {cluster.address} for {news.waited:.0f} "
            "seconds; wait for what runs there, or add nodes; the same command goes on from the last checkpoint"
        )
