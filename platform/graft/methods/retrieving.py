"""The node that chooses what a prompt shows: ids of labelled examples for each row.

    text, (embedding) ─► retrieve ─► demonstrations

`random` demonstrations are one draw for all rows, so that their part of the prompt is computed once. `similar` ones
are nearest by the cosine of embeddings, `bm25` ones by the words they share; the nearest stand last, next to the
question. `order: similar` sorts what was chosen in whatever way by that cosine, again the nearest last. Demonstrations
that a model chooses or orders: `graft.methods.epr` and `graft.methods.ordering`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from graft.arrays import matrix
from graft.errors import SpecError
from graft.hashing import row_keys
from graft.methods.bm25 import Bm25
from graft.node import Context, Node
from graft.seeds import generator
from graft.tasks.templates import template_for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieve(Node):
    """Ids of the examples that a row's prompt shows, in prompt order; never one with the row's own input.

    All rows are shown the same draw, unless a subclass ranks the examples for each row.
    """

    inputs: tuple[str, ...]
    num_shots: int
    order: str = "given"
    ids: tuple[str, ...] = ()
    """Ids of all examples; for random ones in the order of the draw."""
    keys: tuple[str, ...] = ()
    """What each example says, as a digest of its input."""
    vectors: np.ndarray | None = None
    """[k, D] unit vectors of the examples, where embeddings are read."""

    writes = ("demonstrations",)
    selection: ClassVar[str] = "random"
    ranks: ClassVar[bool] = False
    """Whether the examples are ranked for each row; the best then stands last."""
    embeds: ClassVar[bool] = False
    """Whether the ranking reads embeddings."""

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The row's input, and its embedding where similarity is asked for."""
        return (*self.inputs, "embedding") if self.embeds or self.order == "similar" else self.inputs

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Keep the examples' ids and vectors; random ones in the order of their draw.

        Raises:
            SpecError: there are fewer examples than a prompt shall show.
        """
        count = rows.num_rows
        if self.num_shots > count:
            raise SpecError(f"method.num_shots: got {self.num_shots}; give at most regime.examples, which is {count}")
        if not self.ranks:
            rows = rows.take(pa.array(generator(context.experiment.regime.seed, "demonstrations").permutation(count)))
        vectors = unit(matrix(rows["embedding"])) if "embedding" in self.reads else None
        return dataclasses.replace(
            self, ids=tuple(rows["id"].to_pylist()), keys=tuple(self._keys(rows)), vectors=vectors
        )

    def run(self, rows: pa.Table) -> pa.Table:
        """One list of ids per row."""
        own = self._keys(rows)
        chosen = [
            self.others(ranking, key, self.num_shots) for ranking, key in zip(self._rankings(rows), own, strict=True)
        ]
        if self.order == "similar":
            likeness = self._likeness(rows)
            chosen = [sorted(places, key=near.__getitem__) for places, near in zip(chosen, likeness, strict=True)]
        elif self.ranks:
            chosen = [places[::-1] for places in chosen]
        shown = [[self.ids[place] for place in places] for places in chosen]
        return pa.table({"demonstrations": pa.array(shown, pa.list_(pa.string()))})

    def describe(self) -> str:
        """Say how many, and how they are chosen and ordered."""
        order = "" if self.order == "given" else f", order {self.order}"
        return f"retrieve({self.num_shots} {self.selection}{order})"

    def __getstate__(self) -> dict[str, Any]:
        """Without what is computed from the fields, which is made again where it is needed."""
        return self._fields()

    def others(self, ranking: Iterable[int], own: str, count: int) -> list[int]:
        """The first places of a ranking whose examples say something else than a row does."""
        return list(itertools.islice((int(place) for place in ranking if self.keys[place] != own), count))

    def _keys(self, rows: pa.Table) -> list[str]:
        return [key.hex() for key in row_keys(rows.select(self.inputs))]

    def _rankings(self, rows: pa.Table) -> Iterator[Iterable[int]]:
        """For each row the places of all examples, best first."""
        return itertools.repeat(range(len(self.ids)), rows.num_rows)

    def _likeness(self, rows: pa.Table) -> Iterator[np.ndarray]:
        """For each row the cosine between its embedding and each example's [k]."""
        vectors = self.vectors
        assert vectors is not None
        # One row at a time: neither the batch around it nor ten thousand rows by as many examples matter.
        return (vectors @ one for one in unit(matrix(rows["embedding"])))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrieveSimilar(Retrieve):
    """The nearest examples by the cosine of embeddings."""

    selection = "similar"
    ranks = True
    embeds = True

    def _rankings(self, rows: pa.Table) -> Iterator[Iterable[int]]:
        return (np.argsort(-near, kind="stable") for near in self._likeness(rows))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrieveBm25(Retrieve):
    """The examples whose words answer best to a row's; among equals those that the regime drew first."""

    kind: str
    """Of the inputs: text or messages."""
    texts: tuple[str, ...] = ()
    """What the examples say, in the order of `ids`."""

    selection = "bm25"
    ranks = True

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Keep the examples' texts."""
        return dataclasses.replace(super().fit(rows, context), texts=tuple(read(rows, self.inputs, self.kind)))

    @functools.cached_property
    def index(self) -> Bm25:
        """The examples' words, counted once."""
        return Bm25(self.texts)

    def _rankings(self, rows: pa.Table) -> Iterator[Iterable[int]]:
        texts = read(rows, self.inputs, self.kind)
        return (np.argsort(-self.index.scores(text), kind="stable") for text in texts)


def read(rows: pa.Table, inputs: tuple[str, ...], kind: str) -> list[str]:
    """What each row says, as an encoder would read it."""
    template = template_for("default", inputs, kind, generation=False)
    return [template.input(row) for row in rows.select(inputs).to_pylist()]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, D] of length one; those of length zero stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
