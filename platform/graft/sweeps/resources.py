"""How many runs of a sweep go on at once, and what each has for itself."""

from collections.abc import Iterable

from graft.cluster import Cluster
from graft.errors import SpecError
from graft.spec import Scaling
from graft.swept import Trial


def share_out(
    cluster: Cluster, trial: Trial, scalings: Iterable[Scaling], asked: int | None
) -> tuple[int, dict[str, float]]:
    """Runs at the same time, and Tune's resources for each.

    Args:
        cluster: what there is.
        trial: what a run may take.
        scalings: of the runs.
        asked: runs at the same time at most; None leaves it to the cluster.

    Raises:
        SpecError: more than the cluster has.
    """
    if asked is not None:
        cluster.require(asked, f"--concurrent {asked}")
    scalings = list(scalings)
    workers = max(scaling.workers for scaling in scalings)
    gpus = trial.gpus
    if gpus is None:
        gpus = float(cluster.gpus > 0 and any(scaling.device != "cpu" for scaling in scalings))
    elif gpus > cluster.gpus:
        raise SpecError(f"sweep.trial.gpus: a run needs {gpus:g} GPUs, the cluster has {cluster.gpus:g}")
    if trial.cpus > cluster.cpus:
        raise SpecError(f"sweep.trial.cpus: a run needs {trial.cpus:g} CPUs, the cluster has {cluster.cpus:g}")
    if workers > 1:
        return _share_out_workers(cluster, workers, gpus, asked)
    limit = max(1, int(cluster.cpus / trial.cpus))
    return min(limit, asked or limit), {"CPU": trial.cpus, "GPU": gpus}


def _share_out_workers(cluster: Cluster, workers: int, gpus: float, asked: int | None) -> tuple[int, dict[str, float]]:
    """The same for runs that train with several workers.

    Ray Train takes their places by itself, and Tune does not know of them: where it filled the cluster with runs, each
    would hold some workers and wait for the others. So the number of runs is what the cluster has whole teams for. A
    run's own process only waits meanwhile: it needs no CPU of its own, but a GPU to compute before and after.

    Raises:
        SpecError: the cluster has no room for one.
    """
    cluster.require(workers, f"scaling.workers: {workers}")
    limit = int(cluster.cpus / workers)
    if gpus:
        if (needed := workers + gpus) > cluster.gpus:
            raise SpecError(
                f"scaling.workers: {workers} need a GPU each and their run {gpus:g} (sweep.trial.gpus), the cluster "
                f"has {cluster.gpus:g}; ask for fewer workers, or train on CPUs with scaling.device: cpu"
            )
        limit = min(limit, int(cluster.gpus / needed))
    return min(limit, asked or limit), {"memory": 1, "GPU": gpus}
