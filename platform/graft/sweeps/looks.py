"""What the trainings of a search saw at their looks at held-out examples.

A run that was stopped leaves no result: `looks/<run_id>.json` in the sweep's folder says that it was, and how far it
came. Of one that went to its end, `training.parquet` has the looks.
"""

import json
from collections.abc import Mapping

from pyarrow import fs

from graft.results.files import read_table
from graft.storage import exists, read_bytes, write_atomic


class Looks:
    """The looks of a sweep's runs.

    Args:
        files: the storage.
        folder: of the sweep in it.
    """

    def __init__(self, files: fs.SubTreeFileSystem, folder: str):
        self.files, self.folder = files, f"{folder}/looks"

    def was_pruned(self, run_id: str) -> bool:
        """Whether an earlier command has stopped this run."""
        return exists(self.files, self._path(run_id))

    def write(self, run_id: str, looks: Mapping[int, float]) -> None:
        """Keep what a run that was stopped has seen."""
        write_atomic(self.files, self._path(run_id), json.dumps(looks).encode())

    def read(self, run_id: str) -> dict[int, float]:
        """Steps to loss of held-out examples; nothing of a run that failed."""
        if self.was_pruned(run_id):
            return {int(step): loss for step, loss in json.loads(read_bytes(self.files, self._path(run_id))).items()}
        path = f"runs/{run_id}/training.parquet"
        if not exists(self.files, path):
            return {}
        from graft.training.states import looks  # only now: it needs torch

        return looks(read_table(self.files, path).to_pylist())

    def _path(self, run_id: str) -> str:
        return f"{self.folder}/{run_id}.json"
