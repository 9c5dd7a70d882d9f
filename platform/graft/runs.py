"""Finished runs, read back: their result, their spec, their graph."""

import tempfile
from pathlib import Path
from typing import Any

import yaml
from pyarrow import fs

from graft import models
from graft.errors import DataError
from graft.graph import Graph
from graft.results.files import read_table
from graft.results.records import METRICS, PREDICTIONS, Result
from graft.spec import Experiment, ModelSource
from graft.storage import exists, local_root, open_storage, read_bytes


def is_done(files: fs.FileSystem, folder: str) -> bool:
    """Whether a run folder holds a finished run: nothing of it was taken away since."""
    parts = ("metrics.parquet", "predictions.parquet", "graph/graph.json")
    return all(exists(files, f"{folder}/{part}") for part in parts)


def read_result(files: fs.SubTreeFileSystem, folder: str) -> Result:
    """The result of a finished run; its graph is loaded when it is asked for.

    Raises:
        StoreError: a table is missing or damaged.
        DataError: only another graft understands a table: the run is not to be carried out over it.
    """
    table = read_table(files, f"{folder}/metrics.parquet", METRICS)
    return Result(
        run_id=table["run_id"][0].as_py(),
        metrics=table,
        predictions=read_table(files, f"{folder}/predictions.parquet", PREDICTIONS, others=True),
        load_graph=lambda: load_graph(files, folder),
        folder=f"{root / folder}" if (root := local_root(files)) else folder,
    )


def read_spec(files: fs.FileSystem, folder: str) -> Experiment:
    """The spec of a run.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        values = yaml.safe_load(read_bytes(files, f"{folder}/spec.yaml"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{folder}/spec.yaml cannot be read: {error}; delete the run and run its spec again") from error
    return Experiment.from_mapping(values, origin=f"{folder}/spec.yaml")


def load_graph(files: fs.SubTreeFileSystem, folder: str) -> Graph:
    """The fitted graph of a finished run, its models on the device that its spec names."""
    device = read_spec(files, folder).scaling.device

    def handle(source: ModelSource) -> Any:
        return models.load(source, device)

    root = local_root(files)
    if root is not None:
        return Graph.load(root / folder / "graph", handle)
    with tempfile.TemporaryDirectory() as local:
        fs.copy_files(f"{folder}/graph", local, source_filesystem=files, destination_filesystem=fs.LocalFileSystem())
        return Graph.load(local, handle)


def open_run(run: str | Path, storage: str | Path = ".") -> tuple[fs.SubTreeFileSystem, str]:
    """File system and folder of a run, given by its id or by its folder.

    Raises:
        DataError: there is no such run, or it is not done.
    """
    for root, folder in ((storage, f"runs/{run}"), (run, ".")):
        if "://" not in str(root) and not (Path(root) / folder).is_dir():
            continue
        files = open_storage(root, create=False)
        if is_done(files, folder):
            return files, folder
        if exists(files, f"{folder}/spec.yaml"):
            raise DataError(f"{run} is not done: run its spec again, it goes on from the column store")
    if (Path(str(storage)) / "sweeps" / str(run)).is_dir():
        raise DataError(f"{run} is a sweep; name one of its runs: `graft ls` lists them")
    raise DataError(
        f"{run}: no finished run of this name under {storage}/runs, nor a run folder; `graft ls` lists them"
    )


def load(run: str | Path, storage: str | Path = ".") -> Graph:
    """The fitted graph of a run, by id or folder; a bare graph folder loads too."""
    if (Path(run) / "graph.json").exists():
        return Graph.load(run, models.load)
    return load_graph(*open_run(run, storage))
