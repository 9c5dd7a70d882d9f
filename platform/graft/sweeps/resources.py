"""How many runs of a sweep go on at once, and what each has for itself."""

from collections.abc import Iterable

from graft.cluster import Cluster
from graft.errors import SpecError
from graft.spec import Scaling
from graft.swept import Trial

DRIVER = {"memory": 1.0}
"""What a run takes whose training has workers of its own: Ray Train takes their CPUs, of which Ray Tune knows nothing,
and Tune starts no trial for nothing at all. A byte leaves all CPUs to the workers."""


def share_out(
    cluster: Cluster, trial: Trial, scalings: Iterable[Scaling], asked: int | None
) -> tuple[int, dict[str, float]]:
    """Runs at the same time, and Tune's resources for each.

    Where runs train with several workers, as many go on as the cluster has room for with all their workers: each would
    else hold some and wait for the rest, for ever.

    Args:
        cluster: what there is.
        trial: what a run may take.
        scalings: of the runs.
        asked: runs at the same time at most; None leaves it to the cluster.

    Raises:
        SpecError: more than the cluster has.
    """
    scalings = list(scalings)
    workers = max((scaling.workers for scaling in scalings), default=1)
    if asked is not None:
        cluster.require(asked, f"--concurrent {asked}")
    gpus = trial.gpus
    if gpus is None:
        gpus = float(cluster.gpus > 0 and any(scaling.device != "cpu" for scaling in scalings))
    elif gpus > cluster.gpus:
        raise SpecError(f"sweep.trial.gpus: a run needs {gpus:g} GPUs, the cluster has {cluster.gpus:g}")
    of_all = trial.cpus * workers
    if of_all > cluster.cpus:
        what = f"sweep.trial.cpus: a run with {workers} workers" if workers > 1 else "sweep.trial.cpus: a run"
        raise SpecError(f"{what} needs {of_all:g} CPUs, the cluster has {cluster.cpus:g}; ask for less")
    limit = max(1, int(cluster.cpus / of_all))
    if workers == 1:
        return min(limit, asked or limit), {"CPU": trial.cpus, "GPU": gpus}
    if gpus:
        limit = max(1, min(limit, int(cluster.gpus / workers)))
    return min(limit, asked or limit), dict(DRIVER)
