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
    gpus = trial.gpus
    if gpus is None:
        gpus = float(cluster.gpus > 0 and any(scaling.device != "cpu" for scaling in scalings))
    elif gpus > cluster.gpus:
        raise SpecError(f"sweep.trial.gpus: a run needs {gpus:g} GPUs, the cluster has {cluster.gpus:g}")
    if trial.cpus > cluster.cpus:
        raise SpecError(f"sweep.trial.cpus: a run needs {trial.cpus:g} CPUs, the cluster has {cluster.cpus:g}")
    limit = max(1, int(cluster.cpus / trial.cpus))
    return min(limit, asked or limit), {"CPU": trial.cpus, "GPU": gpus}
