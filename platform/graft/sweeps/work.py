"""What all trials of a sweep share."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from graft.storage import local_root, open_storage
from graft.swept import Trial
from graft.tasks.dataset import Dataset


@dataclass(frozen=True)
class Work:
    """Where the runs of a sweep belong and what they read: put into the cluster's memory once, for every actor."""

    sweep_id: str
    datasets: Mapping[str, Dataset]
    """Fingerprint to rows: the driver has read them, so no other node needs the files."""
    storage: str
    """Absolute folder or URI."""
    store_limit_bytes: int
    limits: Trial
    """What one run may take."""
    folder: str
    """The driver's current directory: what relative paths of models mean."""

    @classmethod
    def of(
        cls,
        sweep_id: str,
        datasets: Mapping[str, Dataset],
        storage: str | Path,
        store_limit_bytes: int,
        limits: Trial | None = None,
    ) -> Self:
        """The work on these rows.

        Args:
            sweep_id: for messages.
            datasets: by anything; they are known by their fingerprints from here on.
            storage: folder or URI.
            store_limit_bytes: size above which the column store evicts.
            limits: of one run.
        """
        root = local_root(open_storage(storage))
        return cls(
            sweep_id=sweep_id,
            datasets={dataset.fingerprint: dataset for dataset in datasets.values()},
            storage=str(root or storage),
            store_limit_bytes=store_limit_bytes,
            limits=limits or Trial(),
            folder=os.getcwd(),
        )
