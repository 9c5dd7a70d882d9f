"""Demonstrations that a model has found helpful, and rows like those that they have helped.

    examples ─► near ones of each ─► judge: log P(target | a near one, row) ─► the most helpful ones
                                                                                       │ teach
    embedding ─► query projection ─► inner product ◄─ demonstration projection ◄───────┘

Rubin et al. 2022 (EPR, arXiv:2112.08633, sections 3.1-3.3). For each example the base model scores others as its only
demonstration; the best of them teach two projections, one of what is asked and one of what is shown, whose inner
product ranks the examples of each row. Deviations from the paper:

- It fine-tunes two BERTs. Here both projections are linear maps of a frozen encoder's embedding and begin as the
  identity, so an untrained retriever is `selection: similar`.
- Its negatives are one of the worst candidates and whatever other rows of a batch hold. Here they are all other
  examples: with frozen embeddings that is one product of matrices, and a batch's loss does not depend on how the batch
  is divided among processes.
- A row learns from all its helpful demonstrations at each step; the paper draws one.
- Candidates are the nearest by BM25, as there; among examples that share no word the most similar embedding decides.
- Labels are scored among the labels alone, as they will be answered; free text by its whole log-probability.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from graft.arrays import matrix, score_matrix
from graft.errors import SpecError
from graft.execution import run_node
from graft.methods.bm25 import Bm25
from graft.methods.judging import Judge
from graft.methods.retrieving import RetrieveSimilar, read, unit
from graft.node import Context

if TYPE_CHECKING:
    from torch import Tensor, nn

HELPFUL = 5
"""Candidates that teach as helpful (the paper's k); at most half of them, so that there are worse ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrieveEpr(RetrieveSimilar):
    """The examples that the trained projections rank highest."""

    kind: str
    """Of the inputs: text or messages."""
    candidates: int
    """Examples that the base model scores for each example."""
    model: Any = None
    """Says what helped; not asked any more once that is learned."""
    asked: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How it is asked: fields of an `Answer`."""
    device: str = "auto"
    """Where the projections are trained, as `scaling.device`."""
    query: np.ndarray | None = None
    """[D, D] what training adds to the identity, for the row that is asked about."""
    demonstration: np.ndarray | None = None
    """[D, D] the same for an example."""

    selection = "epr"
    terms: ClassVar[tuple[float, ...]] = (1.0,)

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Score candidates and learn from them.

        Raises:
            SpecError: there are too few examples to tell helpful from unhelpful ones.
        """
        known = super().fit(rows, context)
        lessons = known._lessons(rows, context)
        # The learner knows no model: what it computes is no use of one.
        learner = dataclasses.replace(known, model=None, asked={}, device=context.experiment.scaling.device)
        found = context.train(learner, lessons)
        return dataclasses.replace(known, query=found["query"], demonstration=found["demonstration"])

    def _rankings(self, rows: pa.Table) -> Iterator[np.ndarray]:
        assert self.query is not None
        asked = unit(matrix(rows["embedding"]))
        return (np.argsort(-(self.projected @ (one + self.query @ one)), kind="stable") for one in asked)

    @functools.cached_property
    def projected(self) -> np.ndarray:
        """The examples' vectors [k, D] as demonstrations."""
        assert self.vectors is not None
        assert self.demonstration is not None
        return self.vectors + self.vectors @ self.demonstration.T

    def parameters_trained(self) -> int:
        """Numbers of both projections."""
        return sum(one.size for one in (self.query, self.demonstration) if one is not None)

    def _lessons(self, rows: pa.Table, context: Context) -> pa.Table:
        """Examples by place: each one's `own`, the `positives` that helped it and the `spared`, no negatives of it."""
        near = list(self._near(rows))
        values = iter(self._values(rows, near, context))
        lessons = []
        for own, places in enumerate(near):
            worth = np.array([next(values) for _ in places])
            ranked = [places[place] for place in np.argsort(-worth, kind="stable")]
            helpful = ranked[: min(HELPFUL, len(ranked) // 2)]
            same = [place for place, key in enumerate(self.keys) if key == self.keys[own]]
            if helpful:
                lessons.append({"own": own, "positives": helpful, "spared": [*same, *helpful]})
        if not lessons:
            raise SpecError(
                f"method.selection: epr got {rows.num_rows} examples; it needs at least 3 with different inputs: give "
                "more regime.examples, or use similar"
            )
        table = pa.Table.from_pylist(lessons)
        for name in ("id", "target"):
            table = table.append_column(name, rows[name].take(table["own"]))
        return table

    def _near(self, rows: pa.Table) -> Iterator[list[int]]:
        """For each example the places of its candidates; it is none of them, nor is one that says the same."""
        texts = read(rows, self.inputs, self.kind)
        index = Bm25(texts)
        for text, near, own in zip(texts, self._likeness(rows), self.keys, strict=True):
            # The last key is the first to sort by.
            yield self.others(np.lexsort((-near, -index.scores(text))), own, self.candidates)

    def _values(self, rows: pa.Table, near: list[list[int]], context: Context) -> np.ndarray:
        """How probable each example's target is after each of its candidates, one after the other."""
        judge = Judge.of(self.model, self.inputs, self.asked, context)
        examples = rows.select([*self.inputs, "target"])
        plain = examples.to_pylist()
        own = [place for place, places in enumerate(near) for _ in places]
        if not own:
            return np.zeros(0)
        shown = pa.array([[plain[place]] for places in near for place in places])
        pairs = examples.take(pa.array(own)).append_column("shown", shown)
        judged = run_node(judge, pairs, context.store, context.progress, context.pool)
        if judge.generation:
            return np.asarray(judged["target_log_probability"], np.float64)
        place = {label: column for column, label in enumerate(judge.labels)}
        targets = [place[target] for target in pairs["target"].to_pylist()]
        return score_matrix(judged["scores"], judge.labels)[np.arange(len(targets)), targets]

    def build(self) -> "nn.Module":
        """Both projections, as the identity."""
        from graft.methods.projections import Projections
        from graft.models.loading import resolve_device

        assert self.vectors is not None
        return Projections(self.vectors).to(resolve_device(self.device)).train()

    def encode(self, rows: pa.Table) -> pa.Table:
        """What `_lessons` gives; a row's length is the vectors that it names: itself and what helped it."""
        counts = [len(places) for places in rows["positives"].to_pylist()]
        return pa.table(
            {
                **{name: rows[name] for name in ("own", "positives", "spared")},
                "length": pa.array([1 + count for count in counts], pa.int32()),
                "targets": pa.array([[count] for count in counts], pa.list_(pa.int32())),
            }
        )

    def collate(self, encoded: pa.Table) -> dict[str, "Tensor"]:
        """Places of rows [B], of their helpful demonstrations [B, P], -1 where there are fewer, and a mask [B, N]."""
        import torch

        positives, spared = encoded["positives"].to_pylist(), encoded["spared"].to_pylist()
        most = max(map(len, positives))
        mask = torch.zeros(len(spared), len(self.ids), dtype=torch.bool)
        for row, places in zip(mask, spared, strict=True):
            row[places] = True
        return {
            "own_B": torch.tensor(encoded["own"].to_pylist()),
            "positives_BP": torch.tensor([places + [-1] * (most - len(places)) for places in positives]),
            "spared_BN": mask,
        }
