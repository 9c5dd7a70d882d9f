"""The node that most methods begin with: a frozen model reads a row and writes one vector.

    text ─► embed ─► embedding

Its output depends on the model, the template and the row alone, so the column store shares it between methods,
regimes, seeds and trials.
"""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from graft.arrays import vector_column
from graft.errors import ModelError
from graft.node import Node
from graft.spec import Task
from graft.tasks.dataset import Dataset
from graft.tasks.templates import Template, template_for


@dataclasses.dataclass(frozen=True)
class Embed(Node):
    """Texts, images or sounds to `embedding` (float32, one width) and `embedding_tokens_cut`."""

    model: Any
    reads: tuple[str, ...]
    kind: str
    max_tokens: int | None = None

    storable = True
    writes = ("embedding", "embedding_tokens_cut")

    @classmethod
    def of(cls, model: Any, task: Task, dataset: Dataset) -> "Embed":
        """The node for a task's input columns.

        Raises:
            ModelError: the model reads other inputs than the task has.
        """
        if dataset.kind not in model.reads:
            cures = {"image": "features:pixels or an image model", "audio": "features:log-mel or a model of speech"}
            raise ModelError(
                f"models.encoder: {model.source.source} reads {' and '.join(model.reads)}, the task's inputs are "
                f"{dataset.kind}; use {cures.get(dataset.kind, 'a model of text')}"
            )
        return cls(model=model, reads=dataset.inputs, kind=dataset.kind, max_tokens=task.max_tokens)

    def check(self, rows: pa.Table) -> None:
        """Every text fits the model's context, or may be cut.

        Raises:
            ModelError: one does not.
        """
        if self.max_tokens is not None or self.kind not in ("text", "messages"):
            return
        template = self._template()
        excess = self.model.excess([template.input(row) for row in rows.to_pylist()])
        if (excess > 0).any():
            limit = self.model.context_tokens
            raise ModelError(
                f"task.max_tokens: {(excess > 0).sum()} of {len(excess)} texts are longer than the {limit} tokens that "
                f"{self.model.source.source} reads, the longest by {excess.max()}; set it to {limit}, and longer texts "
                "are cut and counted"
            )

    def run(self, rows: pa.Table) -> pa.Table:
        """Embeddings [N, D] of the rows' texts; the batch around a row changes rounding only."""
        if self.kind not in ("text", "messages"):
            vectors = self.model.embed(rows[self.reads[0]].to_pylist())
            nothing = pa.array(np.zeros(rows.num_rows, np.int32))
            return pa.table({"embedding": vector_column(vectors), "embedding_tokens_cut": nothing})
        template = self._template()
        texts = [template.input(row) for row in rows.to_pylist()]
        vectors = self.model.embed(texts, max_tokens=self.max_tokens)
        cut = self.model.tokens_over(texts, self.max_tokens)
        return pa.table({"embedding": vector_column(vectors), "embedding_tokens_cut": pa.array(cut, pa.int32())})

    def describe(self) -> str:
        """Name the model."""
        return f"embed({self.model.source.source})"

    def _template(self) -> Template:
        return template_for("default", self.reads, self.kind, generation=False)
