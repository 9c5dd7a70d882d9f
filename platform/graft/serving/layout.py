"""Which deployment runs which nodes: one per frozen model, however many graphs and nodes use it.

    run A:  embed ─► classify          embed-minilm-1a2b3c4d:  A[0:2], B[0:2]
    run B:  embed ─► retrieve ─► complete      complete-llama-9f8e7d6c:  B[2:3]

A node without a model rides with the one before it (the first ones with the one after): a hop between processes
costs more than they do.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyarrow import fs

from graft import models, runs
from graft.execution import class_path
from graft.graph import Graph
from graft.hashing import digest
from graft.hosted import Hosting
from graft.node import Node
from graft.results.files import read_table
from graft.results.records import METRICS
from graft.serving.wire import Place, Segment
from graft.spec import Experiment

ANSWER = ("prediction", "scores")
"""What is left of a row's columns at the end."""


@dataclass(frozen=True)
class ServedRun:
    """A finished run as it is served."""

    place: Place
    created: int
    """When it was done, in seconds since 1970."""
    fingerprint: str
    """Of its graph: equal ones answer alike."""
    inputs: tuple[str, ...]
    kind: str
    """Kind of the input columns: text, messages, image, audio or vector."""
    classifies: bool
    """Its answer is one of its labels, with probabilities."""
    writes: bool
    """Its last node holds a model that writes text."""
    streams: bool
    """Its answer is a text that this model writes after one prompt, and nothing else."""
    embeds: int | None
    """Number of the segment in which its rows become vectors; None where they do not."""
    learns: bool
    """It was fitted by gradients: examples in a request cannot take the place of its own."""
    segments: tuple[Segment, ...]
    nodes: tuple[dict[str, Any], ...]
    """What `/v1/graph` says of each node."""
    aliases: tuple[str, ...] = ()
    """Other names that clients may ask for it by."""

    @property
    def run_id(self) -> str:
        """Its id."""
        return self.place.run_id

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that clients may call it."""
        return (self.run_id, *self.aliases)


@dataclass(frozen=True)
class Deployment:
    """One model on its processes."""

    device: str
    """That its model asks for."""
    models: tuple[str, ...]
    """Fingerprints of what it holds; none where its nodes have no model."""
    hosting: Hosting
    places: tuple[Place, ...]
    """Runs that use it."""


@dataclass(frozen=True)
class Layout:
    """Everything that is served together."""

    runs: tuple[ServedRun, ...]
    deployments: dict[str, Deployment]
    """By name."""


@dataclass
class _Plot:
    """A layout in the making: what deployments are called, and what is known of them."""

    serve: Mapping[str, Any]
    names: dict[str, str] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    models: dict[str, tuple[str, ...]] = field(default_factory=dict)
    hosting: dict[str, Hosting] = field(default_factory=dict)


def lay_out(found: Sequence[tuple[fs.SubTreeFileSystem, str]], serve: Mapping[str, Any] | None = None) -> Layout:
    """Load the graphs (not their weights) and share out their nodes.

    Args:
        found: file system and folder of each finished run; a run that is named twice is served once.
        serve: fields that differ from the section `serve` of each run's own spec. A model that several runs share is
            given what the first of them says.

    Raises:
        GraftError: a run is damaged, a model has changed since, or a field is wrong.
    """
    plot = _Plot(serve or {})
    served: dict[str, ServedRun] = {}
    for files, folder in found:
        run = _served(files, folder, plot)
        served.setdefault(run.run_id, run)
    deployments = {}
    for name, device in plot.devices.items():
        users = [run.place for run in served.values() if any(part.deployment == name for part in run.segments)]
        if users:
            deployments[name] = Deployment(device, plot.models[name], plot.hosting[name], tuple(users))
    return Layout(tuple(served.values()), deployments)


def _served(files: fs.SubTreeFileSystem, folder: str, plot: _Plot) -> ServedRun:
    spec, graph = runs.read_spec(files, folder), runs.load_graph(files, folder)
    owners = _owners(graph, spec.scaling.device, plot.names)
    serving = spec.serve.changed(plot.serve)
    for owner in dict.fromkeys(owners):
        plot.devices.setdefault(owner, spec.scaling.device)
        own = (node.handles().values() for node, its in zip(graph.nodes, owners, strict=True) if its == owner)
        held = sorted({handle.fingerprint for handles in own for handle in handles})
        plot.models.setdefault(owner, tuple(held))
        plot.hosting.setdefault(owner, serving.of(*_roles(spec, held)))
    metrics = f"{folder}/metrics.parquet"
    segments, last = _segments(graph, owners), graph.nodes[-1]
    speaker = getattr(last, "speaker", None)
    return ServedRun(
        place=Place(read_table(files, metrics, METRICS)["run_id"][0].as_py(), files, folder),
        created=int(files.get_file_info(metrics).mtime.timestamp()),
        fingerprint=graph.fingerprint(),
        inputs=graph.inputs,
        kind=spec.task.kind,
        classifies=any("scores" in node.writes for node in graph.nodes),
        writes=speaker is not None and speaker.kind != "encoder",
        streams=getattr(last, "streams", False),
        embeds=_embeds(graph, segments),
        learns=any(hasattr(node, "build") for node in graph.nodes),
        segments=segments,
        nodes=tuple(_describe(node, owner) for node, owner in zip(graph.nodes, owners, strict=True)),
    )


def _roles(spec: Experiment, held: Sequence[str]) -> list[str]:
    """What these models are to the method, in the spec's order."""
    return [role for role, source in spec.models.items() if models.fingerprint(source) in held]


def _embeds(graph: Graph, segments: Sequence[Segment]) -> int | None:
    place = next((at for at, node in enumerate(graph.nodes) if "embedding" in node.writes), None)
    return None if place is None else next(at for at, part in enumerate(segments) if place < part.stop)


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
    sources = {
        name: {"source": handle.source.source, "fingerprint": handle.fingerprint}
        for name, handle in node.handles().items()
    }
    return {
        "node": node.describe(),
        "class": class_path(type(node)),
        "reads": list(node.reads),
        "writes": list(node.writes),
        "deployment": deployment,
        "models": sources,
    }
