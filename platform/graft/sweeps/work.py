"""What all trials of a sweep share."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from graft.planning import Plan
from graft.storage import local_root, open_storage
from graft.tasks.dataset import Dataset


@dataclass(frozen=True)
class Work:
    """The experiments of a sweep and where they belong: put into the cluster's memory once, read by every actor."""

    sweep_id: str
    experiments: Mapping[str, Mapping[str, Any]]
    """run_id to the resolved spec."""
    tasks: Mapping[str, str]
    """run_id to the fingerprint of its rows."""
    datasets: Mapping[str, Dataset]
    """Fingerprint to rows: the driver has read them, so no other node needs the files."""
    storage: str
    """Absolute folder or URI."""
    store_limit_bytes: int
    folder: str
    """The driver's current directory: what relative paths of models mean."""

    @classmethod
    def of(cls, sweep_id: str, plans: Mapping[str, Plan], storage: str | Path, store_limit_bytes: int) -> Self:
        """What these plans need."""
        root = local_root(open_storage(storage))
        return cls(
            sweep_id=sweep_id,
            experiments={run_id: plan.experiment.to_mapping() for run_id, plan in plans.items()},
            tasks={run_id: plan.dataset.fingerprint for run_id, plan in plans.items()},
            datasets={plan.dataset.fingerprint: plan.dataset for plan in plans.values()},
            storage=str(root or storage),
            store_limit_bytes=store_limit_bytes,
            folder=os.getcwd(),
        )
