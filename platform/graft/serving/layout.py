"""Which deployment runs which nodes: one per frozen model, however many graphs and nodes use it.

    run A:  embed ─► classify          embed-minilm-1a2b3c4d:  A[0:2], B[0:2]
    run B:  embed ─► retrieve ─► complete      complete-llama-9f8e7d6c:  B[2:3]

A node without a model rides with the one before it (the first ones with the one after): a hop between processes
costs more than they do.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from graft import runs
from graft.execution import class_path
from graft.graph import Graph
from graft.hashing import digest
from graft.node import Node
from graft.results.files import read_table
from graft.results.records import METRICS

ANSWER = ("prediction", "scores")
"""What is left of a row's columns at the end."""


@dataclass(frozen=True)
class Segment:
    """Nodes `start` to `stop` (exclusive) of one graph, which one deployment runs in one go."""

    deployment: str
    start: int
    stop: int
    keeps: tuple[str, ...]
    """Columns that a later segment or the caller reads; the others stay in the replica."""


@dataclass(frozen=True)
class ServedRun:
    """A finished run as it is served."""

    run_id: str
    created: int
    """When it was done, in seconds since 1970."""
    files: fs.SubTreeFileSystem
    folder: str
    inputs: tuple[str, ...]
    kind: str
    """Kind of the input columns: text, messages or vector."""
    classifies: bool
    """Its answer is one of its labels, with probabilities."""
    segments: tuple[Segment, ...]
    nodes: tuple[dict[str, Any], ...]
    """What `/v1/graph` says of each node."""
    aliases: tuple[str, ...] = ()
    """Other names that clients may ask for it by."""

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that clients may call it."""
        return (self.run_id, *self.aliases)


@dataclass(frozen=True)
class Layout:
    """Everything that is served together."""

    runs: tuple[ServedRun, ...]
    devices: dict[str, str]
    """Name of each deployment to the device that its models ask for."""


def lay_out(found: Sequence[tuple[fs.SubTreeFileSystem, str]]) -> Layout:
    """Load the graphs (not their weights) and share out their nodes.

    Args:
        found: file system and folder of each finished run; a run that is named twice is served once.

    Raises:
        GraftError: a run is damaged, or a model has changed since.
    """
    names: dict[str, str] = {}
    devices: dict[str, str] = {}
    served: dict[str, ServedRun] = {}
    for files, folder in found:
        run = _served(files, folder, names, devices)
        served.setdefault(run.run_id, run)
    used = {segment.deployment for run in served.values() for segment in run.segments}
    return Layout(tuple(served.values()), {name: device for name, device in devices.items() if name in used})


def _served(files: fs.SubTreeFileSystem, folder: str, names: dict[str, str], devices: dict[str, str]) -> ServedRun:
    spec, graph = runs.read_spec(files, folder), runs.load_graph(files, folder)
    owners = _owners(graph, spec.scaling.device, names)
    devices.update((owner, spec.scaling.device) for owner in owners if owner not in devices)
    metrics = f"{folder}/metrics.parquet"
    return ServedRun(
        run_id=read_table(files, metrics, METRICS)["run_id"][0].as_py(),
        created=int(files.get_file_info(metrics).mtime.timestamp()),
        files=files,
        folder=folder,
        inputs=graph.inputs,
        kind=spec.task.kind,
        classifies=any("scores" in node.writes for node in graph.nodes),
        segments=_segments(graph, owners),
        nodes=tuple(_describe(node, owner) for node, owner in zip(graph.nodes, owners, strict=True)),
    )


def _owners(graph: Graph, device: str, names: dict[str, str]) -> list[str]:
    """The deployment of each node."""
    own = [_name(node, device, names) if node.handles() else None for node in graph.nodes]
    last = graph.nodes[-1]
    alone = f"{type(last).__name__.lower()}-{graph.fingerprint()[:8]}"
    current = next((name for name in own if name), alone)
    owners = []
    for name in own:
        current = name or current
        owners.append(current)
    return owners


def _name(node: Node, device: str, names: dict[str, str]) -> str:
    """A deployment's name: the same for everyone who runs the same models in the same way."""
    handles = node.handles().values()
    # The fingerprint says what a model computes; where it is put may differ between runs.
    key = digest(sorted((handle.fingerprint, str(handle.source.device_map)) for handle in handles), device)
    model = "-".join(_slug(handle.source.source) for handle in handles)[:48]
    return names.setdefault(key, f"{type(node).__name__.lower()}-{model}-{key[:8]}")


def _slug(source: str) -> str:
    """`sentence-transformers/all-MiniLM-L6-v2` is all-minilm-l6-v2."""
    name = source.rstrip("/").rpartition("/")[2].lower()
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-") or "model"


def _segments(graph: Graph, owners: Sequence[str]) -> tuple[Segment, ...]:
    starts = [place for place, owner in enumerate(owners) if not place or owner != owners[place - 1]]
    segments = []
    for start, stop in zip(starts, [*starts[1:], len(owners)], strict=True):
        later = {column for node in graph.nodes[stop:] for column in node.reads}
        segments.append(Segment(owners[start], start, stop, tuple(sorted(later.union(ANSWER)))))
    return tuple(segments)


def _describe(node: Node, deployment: str) -> dict[str, Any]:
    models = {
        field: {"source": handle.source.source, "fingerprint": handle.fingerprint}
        for field, handle in node.handles().items()
    }
    return {
        "node": node.describe(),
        "class": class_path(type(node)),
        "reads": list(node.reads),
        "writes": list(node.writes),
        "deployment": deployment,
        "models": models,
    }
