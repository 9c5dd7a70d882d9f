"""Embeddings of rows inside a prompt that shows labelled ones: what TART's protocols vanilla and loo read.

    text ─► embed behind the labelled rows ─► embedding

Bhatia et al. 2023 (TART, arXiv:2306.07536, section 4.2). `vanilla`: a labelled row is read in the one prompt of all,
behind those before it. `loo` (leave one out): each labelled row is read behind all the others, as an asked one is. The
mean is over the tokens of the row's own text, for labelled and asked rows alike; the authors' code averages over the
words around a labelled row's text too, which `faithful_span` repeats.
"""

import dataclasses
from typing import Any, Self

import numpy as np
import pyarrow as pa

from graft.arrays import vector_column
from graft.errors import ModelError
from graft.models.heads import shuffled
from graft.models.in_context import Block, InContext, as_block
from graft.node import Context, Node
from graft.spec import Task
from graft.tasks.dataset import Dataset
from graft.tasks.templates import Row, Template, template_for


@dataclasses.dataclass(frozen=True)
class EmbedInContext(Node):
    """Text columns to `embedding` (float32, one width); a labelled row is known by its id and what it says."""

    model: Any
    inputs: tuple[str, ...]
    kind: str
    template: str
    max_tokens: int | None
    leave_one_out: bool
    faithful_span: bool
    faithful_order: bool
    examples: tuple[dict[str, Any], ...] = ()
    """The labelled rows: id, input columns, target."""
    order: tuple[int, ...] = ()
    """In which the prompt shows them."""

    storable = True
    writes = ("embedding", "embedding_tokens_cut")

    @classmethod
    def of(
        cls,
        model: Any,
        task: Task,
        dataset: Dataset,
        leave_one_out: bool,
        faithful_span: bool = False,
        faithful_order: bool = False,
    ) -> Self:
        """The node for a task.

        Raises:
            ModelError: the inputs are no text, or the model is no causal one whose prompts may share beginnings.
        """
        if dataset.kind != "text":
            raise ModelError(f"method.protocol: labelled rows are shown as text, the task's inputs are {dataset.kind}")
        if model.kind != "causal":
            article = "an" if model.kind == "encoder" else "a"
            raise ModelError(
                f"method.protocol: {model.source.source} is {article} {model.kind} model; labelled rows are shown to a "
                "causal one; use protocol: stream"
            )
        return cls(
            model,
            dataset.inputs,
            dataset.kind,
            task.template,
            task.max_tokens,
            leave_one_out,
            faithful_span,
            faithful_order,
        )

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The row, and who it is."""
        return ("id", *self.inputs)

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Keep the labelled rows, shuffled: a regime begins with one row of each label."""
        kept = rows.select(["id", *self.inputs, "target"]).to_pylist()
        count = len(kept)
        order = range(count) if self.faithful_order else shuffled(count, context.experiment.regime.seed).tolist()
        return dataclasses.replace(self, examples=tuple(kept), order=tuple(order))

    def check(self, rows: pa.Table) -> None:
        """Every prompt fits the model's context.

        Raises:
            ModelError: one does not; names the largest number of labelled rows that does.
        """
        context = self.model.context_tokens
        if context is None:
            return
        template = self._template()
        reader = InContext(self.model, self._shown(template))
        own = max((len(block.ids) for block in self._blocks(template, rows)), default=0)
        if reader.prompt_tokens + own <= context:
            return
        # A smaller regime is the first rows of this one, whatever the order in which they are shown.
        shown = np.zeros(len(self.order), int)
        shown[list(self.order)] = [len(block.ids) for block in reader.shown]
        lengths = len(reader.lead) + own + np.cumsum(shown)
        raise ModelError(
            f"regime.examples: a prompt that shows {len(reader.shown)} labelled rows has "
            f"{reader.prompt_tokens + own} tokens, the context of {self.model.source.source} holds {context}; "
            f"{int((lengths <= context).sum())} fit; or set task.max_tokens, or protocol: stream"
        )

    def run(self, rows: pa.Table) -> pa.Table:
        """Embeddings [N, D]; labelled rows as their protocol says, others behind all labelled ones."""
        template = self._template()
        reader = InContext(self.model, self._shown(template))
        place = {self._who(self.examples[example]): at for at, example in enumerate(self.order)}
        known = [place.get(self._who(row)) for row in rows.to_pylist()]
        found = np.zeros((rows.num_rows, self.model.dimensions), np.float32)
        if any(at is not None for at in known):
            shown = reader.left_out(self.faithful_order) if self.leave_one_out else reader.beside()
            for row, at in enumerate(known):
                if at is not None:
                    found[row] = shown[at]
        others = [row for row, at in enumerate(known) if at is None]
        if others:
            found[others] = reader.asked(self._blocks(template, rows.take(others)))
        cut = np.zeros(rows.num_rows, np.int32)
        for name in self.inputs:
            cut += self.model.tokens_over(rows[name].to_pylist(), self.max_tokens)
        return pa.table({"embedding": vector_column(found), "embedding_tokens_cut": pa.array(cut)})

    def describe(self) -> str:
        """Name the model and the protocol."""
        return f"embed({self.model.source.source}, {'loo' if self.leave_one_out else 'vanilla'})"

    def _who(self, row: Row) -> tuple[Any, ...]:
        # An asked row may bear the id of a labelled one by chance.
        return tuple(row[name] for name in self.reads)

    def _shown(self, template: Template) -> list[Block]:
        return self._blocks(template, pa.Table.from_pylist([self.examples[at] for at in self.order]))

    def _blocks(self, template: Template, rows: pa.Table) -> list[Block]:
        rows = self.model.cut_columns(rows, self.inputs, self.max_tokens)
        return [self._block(template, row) for row in rows.to_pylist()]

    def _block(self, template: Template, row: Row) -> Block:
        """A row as a part of the prompt; without a target it ends where its text ends.

        What stands behind a text may share its last token, so an asked row too becomes tokens with it.
        """
        asked = template.query(row)
        begin, end = template.span(row)
        if "target" not in row:
            return as_block(self.model, asked, 0 if self.faithful_span else begin, end).cut()
        text = asked + template.candidate(row["target"]) + "\n\n"
        return as_block(self.model, text, *((0, len(asked)) if self.faithful_span else (begin, end)))

    def _template(self) -> Template:
        return template_for(self.template, self.inputs, self.kind, generation=False)
