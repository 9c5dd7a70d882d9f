"""What an experiment comes to before any model runs: its rows, models, examples, graph, and the id of its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from graft import hashing, models
from graft.errors import SpecError
from graft.graph import Graph
from graft.spec import Experiment, ModelSource, Scaling
from graft.tasks.dataset import Dataset
from graft.tasks.reading import located
from graft.tasks.regimes import draw, hold_out
from graft.tasks.templates import Template, template_for


@dataclass(frozen=True)
class Plan:
    """An experiment with everything that can be known before a model runs."""

    experiment: Experiment
    dataset: Dataset
    template: Template
    examples: pa.Table
    test: pa.Table
    """The rows that are answered: the task's test rows, or in a search the held-out examples."""
    models: dict[str, Any]
    graph: Graph
    run_id: str

    @property
    def split(self) -> str:
        """What its metrics are of: `test`, or `validation` in a search."""
        return "test" if self.experiment.regime.fold is None else "validation"

    def describe(self) -> str:
        """What will be read, run and asked for, as text."""
        scaling, data = self.experiment.scaling, self.dataset
        answers = f"{len(data.labels)} labels ({', '.join(data.labels)})" if data.labels else "free-text target"
        lines = [
            f"run_id     {self.run_id}",
            f"task       {self.experiment.task.name}: {data.train.num_rows} rows to draw from, "
            f"{self.test.num_rows} {self.split} rows, {answers}",
            f"examples   {self.examples.num_rows} (seed {self.experiment.regime.seed})",
            *(f"model      {role}: {source.source} {_size(source)}" for role, source in self.experiment.models.items()),
            f"resources  {_processes(scaling)}, device {scaling.device}",
            *_schedule(self),
            "graph      " + self.graph.describe().replace("\n", "\n           "),
        ]
        if data.equal_inputs:
            note = f"           {data.equal_inputs} rows share their input with another: kept on one side of the split"
            lines.insert(2, note)
        return "\n".join(lines)


def _processes(scaling: Scaling) -> str:
    if scaling.workers == 1:
        return "1 process"
    least = "" if scaling.min_workers is None else f"{scaling.min_workers} to "
    return f"{least}{scaling.workers} workers ({scaling.strategy})"


def _schedule(planned: Plan) -> list[str]:
    """How long and on how much a node with gradients trains."""
    if not any(hasattr(node, "build") for node in planned.graph.nodes):
        return []
    training = planned.experiment.training
    return [
        f"training   {training.max_steps} steps of {training.tokens_per_batch} tokens, {training.optimizer} at "
        f"{training.learning_rate:g}"
    ]


def plan(experiment: Experiment, dataset: Dataset | None = None) -> Plan:
    """Read the task, find the models, draw the examples, build the graph; no model runs.

    Args:
        experiment: a single one.
        dataset: what `experiment.task.read()` gives, where that is at hand already.

    Raises:
        SpecError, DataError, ModelError: the experiment cannot be carried out as written.
    """
    return plans([experiment], {} if dataset is None else {experiment.task.model_dump_json(): dataset})[0]


def plans(experiments: Sequence[Experiment], known: Mapping[str, Dataset] | None = None) -> list[Plan]:
    """A plan per experiment; those that share a task read it once, and not at all where its rows are `known`."""
    datasets = dict(known or {})
    handles: dict[tuple[str, str], Any] = {}
    found = []
    singles = [experiment.resolved() for experiment in experiments]
    for path in dict.fromkeys(path for single in singles if single.method for path in single.method.files()):
        located(path)
    for experiment in singles:
        task, device = experiment.task.model_dump_json(), experiment.scaling.device
        if task not in datasets:
            datasets[task] = experiment.task.read()
        for source in experiment.models.values():
            if (source.model_dump_json(), device) not in handles:
                handles[source.model_dump_json(), device] = models.load(source, device)
        own = {role: handles[source.model_dump_json(), device] for role, source in experiment.models.items()}
        found.append(_plan(experiment, datasets[task], own))
    return found


def _plan(experiment: Experiment, dataset: Dataset, handles: dict[str, Any]) -> Plan:
    assert experiment.method is not None  # resolved() saw to it
    if experiment.task.parser is not None and dataset.labels is not None:
        raise SpecError(f"task.parser: {experiment.task.parser} reads free text; the answers are labels: leave it null")
    template = template_for(experiment.task.template, dataset.inputs, dataset.kind, dataset.labels is None)
    examples, test = draw(dataset, experiment.regime), dataset.test
    if experiment.regime.fold is not None:
        examples, test = hold_out(dataset, examples, experiment.regime)
    graph = experiment.method.graph(experiment.task, dataset, handles)
    own = run_id(experiment, dataset, handles, graph)
    return Plan(experiment, dataset, template, examples, test, handles, graph, own)


def run_id(experiment: Experiment, dataset: Dataset, handles: Mapping[str, Any], graph: Graph) -> str:
    """Slug and hash of the resolved spec, with the contents of rows and models in place of where they lie."""
    assert experiment.method is not None  # resolved() saw to it
    outside: Any = {
        "sweep": True,
        "serve": True,
        "task": {"path", "train", "test"},
        "method": experiment.method.places(),
    }
    # What changes no result is no part of the question.
    values = experiment.model_dump(mode="json", exclude={**outside, "training": {"checkpoint_seconds"}})
    if experiment.regime.fold is None:
        del values["regime"]["fold"]  # as it was before there were searches
    for role, handle in handles.items():
        values["models"][role]["source"] = handle.fingerprint
    # A node whose code gives other numbers says so by its version: another answer to the same question.
    values["nodes"] = [node.fingerprint() for node in graph.nodes]
    return f"{experiment.name}-{hashing.digest(values, dataset.fingerprint)[:10]}"


def _size(source: ModelSource) -> str:
    if source.source.startswith(("endpoint:", "features:")):
        return ""
    return f"({sum(path.stat().st_size for path in models.locate(source).glob('*.safetensors')) / 2**20:.0f} MiB)"
