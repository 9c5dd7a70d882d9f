"""A reasoning module behind a frozen encoder: it reads labelled rows, and answers without any training.

    text ─► embed ─► embedding ─► reason ─► prediction, scores          (vectors skip embed)

Bhatia et al. 2023 (TART, arXiv:2306.07536). The head was trained on synthetic tasks alone (`graft pretrain`). Two come
with graft: `tart`, the authors' (interleaved points and labels), and `hybrid`, which begins as logistic regression.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from graft.arrays import answer_columns, matrix
from graft.errors import DataError, SpecError
from graft.graph import Graph
from graft.methods.embed import Embed
from graft.methods.embed_in_context import EmbedInContext
from graft.models.heads import deviations, open_head, shuffled
from graft.node import Context, Node
from graft.spec import Method, Task

if TYPE_CHECKING:
    from graft.tasks.dataset import Dataset


class Tart(Method):
    """A reasoning module on frozen features."""

    name: Literal["tart"] = "tart"
    head: str = "hybrid"
    """hybrid, tart, or the folder of a head that graft pretrain made."""
    protocol: Literal["stream", "vanilla", "loo"] = "stream"
    """What the encoder reads: stream, each text by itself; of a causal model also vanilla, labelled rows in one prompt,
    each behind those before it, and loo, each behind all the others. Asked rows then stand behind all labelled ones."""
    components: int | None = Field(None, ge=1)
    """Principal components of the features that the head is told of; null for as many as it reads."""
    faithful_span: bool = False
    """Average over the words around a labelled row's text too, as the authors' code does, in vanilla and loo."""
    faithful_order: bool = False
    """Labelled rows in the order of the regime, one of each label first, and not shuffled by regime.seed; loo then
    keeps that order for every row, which costs k / (2 log2 k) times as much as dividing them."""

    def places(self) -> dict[str, Any]:
        """A head is in the fingerprint of its node."""
        return {"head": True}

    def roles(self, task: Task) -> tuple[str, ...]:
        """An encoder, unless the task's inputs are vectors already."""
        return () if task.kind == "vector" else ("encoder",)

    def graph(self, task: Task, dataset: "Dataset", models: Mapping[str, Any]) -> Graph:
        """Embed and reason, or reason alone.

        Raises:
            SpecError: the targets are free text.
            ModelError: there is no such head.
        """
        if dataset.labels is None:
            raise SpecError("method tart answers with labels, the task's targets are free text; use icl, or task.label")
        head = open_head(self.head)
        if (self.components or 0) > head.components:
            raise SpecError(f"method.components: got {self.components}; head {self.head} reads {head.components}")
        reason = Reason(head, components=self.components, faithful_order=self.faithful_order)
        if self.protocol == "stream" and self.faithful_span:
            raise SpecError("method.faithful_span is for protocol vanilla or loo; leave it false")
        if task.kind == "vector" and self.protocol != "stream":
            raise SpecError("method.protocol: the task's rows are vectors, not texts; use stream")
        if task.kind == "vector":
            return Graph([dataclasses.replace(reason, reads=dataset.inputs, standardise=True)], dataset.inputs)
        embed: Node
        if self.protocol == "stream":
            embed = Embed.of(models["encoder"], task, dataset)
        else:
            how = (self.protocol == "loo", self.faithful_span, self.faithful_order)
            embed = EmbedInContext.of(models["encoder"], task, dataset, *how)
        return Graph([embed, reason], dataset.inputs)


@dataclasses.dataclass(frozen=True)
class Reason(Node):
    """A vector column to `prediction` and `scores` (struct of label to log-probability)."""

    head: Any
    reads: tuple[str, ...] = ("embedding",)
    standardise: bool = False
    """Divide each number by its deviation: columns in units of their own."""
    components: int | None = None
    faithful_order: bool = False
    labels: tuple[str, ...] = ()
    memory: np.ndarray | None = None
    """[k, D] the labelled rows, in the order in which the head reads them."""
    memory_labels: np.ndarray | None = None
    """[k] positions in `labels`."""

    writes = ("prediction", "scores")

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Keep the labelled rows: nothing is trained.

        Raises:
            DataError: they have one label only, or the head cannot read so many.
        """
        assert context.labels is not None  # Tart.graph saw to it
        if len(context.labels) < 2:
            raise DataError(f"the rows have one label only, {context.labels[0]!r}: there is nothing to tell apart")
        features = self._features(rows)
        classes = np.array([context.labels.index(target) for target in rows["target"].to_pylist()])
        order = np.arange(len(classes))
        if not self.faithful_order:
            order = shuffled(len(classes), context.experiment.regime.seed)
        fitted = dataclasses.replace(self, labels=context.labels, memory=features[order], memory_labels=classes[order])
        _ = fitted.reasoner
        return fitted

    @functools.cached_property
    def reasoner(self) -> Any:
        """The head with the labelled rows' keys and values, computed once."""
        from graft.models.heads.reasoner import reasoner

        assert self.memory is not None
        assert self.memory_labels is not None
        scaled = self._scaled(self.memory)
        return reasoner(self.head.network, scaled, self.memory_labels, len(self.labels), self.components)

    @functools.cached_property
    def _deviations(self) -> np.ndarray:
        assert self.memory is not None
        return deviations(self.memory)

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        return features / self._deviations if self.standardise else features

    def run(self, rows: pa.Table) -> pa.Table:
        """Log-probabilities of every label, and the most probable one."""
        features = self._features(rows)
        assert self.memory is not None
        if features.shape[1] != self.memory.shape[1]:
            raise DataError(
                f"{self.reads[0]}: vectors of {features.shape[1]} numbers; this run reads {self.memory.shape[1]}"
            )
        with self.head.lock:
            return answer_columns(self.reasoner.log_probabilities(self._scaled(features)), self.labels)

    def _features(self, rows: pa.Table) -> np.ndarray:
        features = matrix(rows[self.reads[0]])
        if not np.isfinite(features).all():
            bad = int(np.argmin(np.isfinite(features).all(axis=1)))
            who = rows["id"][bad].as_py() if "id" in rows.column_names else bad
            raise DataError(f"{self.reads[0]}: row {who} holds a number that is not finite; fill it in or leave it out")
        return features

    def describe(self) -> str:
        """Name the head."""
        return f"reason({self.head.source.source})"
