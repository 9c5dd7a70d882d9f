"""TensorBoard's files of a sweep: `sweeps/<sweep_id>/tensorboard/<run_id>/`, written whenever a run is done.

Each run is one point: its metrics over the number of labelled examples, and its settings in the HParams tab.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import fs

from graft.planning import Plan
from graft.storage import files_below, write_atomic, writing


class Curves:
    """Writes one folder per run.

    Args:
        files: the storage.
        folder: of the sweep, in the storage.
    """

    def __init__(self, files: fs.SubTreeFileSystem, folder: str) -> None:
        self.files = files
        self.folder = f"{folder}/tensorboard"
        # By their files, which are whole: a kill may have left a run's folder with nothing in it.
        self.known = {PurePosixPath(path).parent.name for path in files_below(files, self.folder)}

    def write(self, plan: Plan, metrics: Mapping[str, float | None]) -> None:
        """Write a run's point, unless an earlier command did.

        Raises:
            StoreError: the storage refuses.
        """
        if plan.run_id in self.known:
            return
        self.known.add(plan.run_id)
        values = {name: value for name, value in metrics.items() if value is not None}
        place = f"{self.folder}/{plan.run_id}"
        with writing(place), tempfile.TemporaryDirectory() as local:
            _write(local, flat(plan.experiment.question()), values, plan.examples.num_rows)
            for file in Path(local).iterdir():
                write_atomic(self.files, f"{place}/{file.name}", file.read_bytes())


def _write(folder: str, settings: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    with SummaryWriter(logdir=folder, write_to_disk=True) as writer:
        for summary in hparams(dict(settings), dict(metrics)):
            writer.file_writer.add_summary(summary)
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to plain values; what is null says nothing."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
