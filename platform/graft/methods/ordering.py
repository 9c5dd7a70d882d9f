"""Demonstrations in the order that leaves the model least sure beforehand what every answer will be.

    permutations ─► imagine: each writes an input ─► judge: labels of all of these after each permutation
                                                                     │
    the permutation of highest entropy ◄─────────────────────────────┘

Lu et al. 2022 (arXiv:2104.08786, sections 3.1-3.3). Badly ordered demonstrations make a model give one label whatever
is asked (found by `global_entropy`, the entropy of the predicted labels' distribution), or be overly sure of each
(`local_entropy`, the mean entropy of the labels' probabilities). Both are measured on inputs that the model writes
itself after the demonstrations: no test row is read, and no target but those of the demonstrations. Deviations:

- The paper samples at temperature 2. Here each of the permutations writes one input, greedily: the texts differ
  because the demonstrations before them stand in another order.
- It averages over the four best permutations; here the best one stays, among equals the one that comes first. The
  first of all is the order of the draw.
- Inputs are written in plain text, even by a model with a chat template: it is not the user's turn that it has learned.
"""

import dataclasses
import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa

from graft.arrays import score_matrix
from graft.execution import run_node
from graft.methods.answering import Row
from graft.methods.judging import Judge
from graft.methods.retrieving import Retrieve
from graft.node import Context
from graft.seeds import generator
from graft.tasks.templates import Template, render_next

log = logging.getLogger(__name__)

MOST_PERMUTATIONS = 24
"""Of four demonstrations these are all."""
MOST_TOKENS = 128
"""Length limit of an input that the model writes; it is at most as long as the longest demonstration's."""
DIGITS = 6
"""Entropies that differ by less are equal: the batch around a prompt changes its last bits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrieveOrdered(Retrieve):
    """One draw for all rows, in the order of highest entropy."""

    model: Any
    asked: dict[str, Any]
    """How the model is asked: fields of an `Answer`."""

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Draw, and put what is drawn in order."""
        drawn = super().fit(rows, context)
        position = {one: place for place, one in enumerate(rows["id"].to_pylist())}
        first = [position[one] for one in drawn.ids[: self.num_shots]]
        shown = rows.select([*self.inputs, "target"]).take(pa.array(first)).to_pylist()
        best = self._best(shown, context)
        return dataclasses.replace(
            drawn,
            ids=(*(drawn.ids[place] for place in best), *drawn.ids[self.num_shots :]),
            keys=(*(drawn.keys[place] for place in best), *drawn.keys[self.num_shots :]),
        )

    def _best(self, shown: Sequence[Row], context: Context) -> tuple[int, ...]:
        """The permutation of the demonstrations that is kept."""
        tried = permutations(len(shown), context.experiment.regime.seed)
        prompts = [[shown[place] for place in order] for order in tried]
        asked = self._imagined(prompts, context) if len(tried) > 1 else []
        if not asked:
            return tried[0]
        judge = Judge.of(self.model, self.inputs, self.asked, context)
        pairs = pa.Table.from_pylist([{**row, "shown": prompt} for prompt in prompts for row in asked])
        judged = run_node(judge, pairs, context.store, context.progress, context.pool)
        scores = score_matrix(judged["scores"], judge.labels).reshape(len(tried), len(asked), -1)
        return tried[int(np.argmax(entropies(self.order, scores).round(DIGITS)))]

    def _imagined(self, prompts: Sequence[Sequence[Row]], context: Context) -> list[Row]:
        """Inputs that the model writes, one after each sequence of demonstrations; empty ones are left out."""
        judge = Imagine.of(self.model, self.inputs, self.asked, context)
        limit = judge.longest(prompts[0])
        imagine = dataclasses.replace(judge, max_new_tokens=limit)
        rows = pa.table({"shown": pa.array(prompts)})
        written = run_node(imagine, rows, context.store, context.progress, context.pool)["written"].to_pylist()
        found = [imagine.row(text) for text in written if text.strip()]
        if not found:
            log.warning("method.order: the model writes no input after the demonstrations; they stay as drawn")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imagine(Judge):
    """Column `shown` (a list of examples with their targets) to another input, as the model would write it."""

    reads = ("shown",)
    writes = ("written",)

    def run(self, rows: pa.Table) -> pa.Table:
        """Greedy text up to where the input ends."""
        template = self._template()
        stop = tuple({text for text in (template.closing, "\n\n") if text.strip(" ")})
        return pa.table({"written": pa.array(self._written(template, rows, stop), pa.string())})

    def row(self, written: str) -> Row:
        """What was written, as a task's row."""
        found = self._template().read(written)
        if self.kind != "messages":
            return dict(found)
        texts = {name: text.removeprefix("user:").strip() for name, text in found.items()}
        return {name: [{"role": "user", "content": text}] for name, text in texts.items()}

    def longest(self, shown: Sequence[Row]) -> int:
        """Tokens of the longest of these inputs."""
        template = self._template()
        return min(MOST_TOKENS, int(self.model.count_tokens([template.input(self._cut(shot)) for shot in shown]).max()))

    def _written(self, template: Template, rows: pa.Table, stop: tuple[str, ...]) -> list[str]:
        texts: list[str] = self.model.generate(self._prompts(template, rows), self.max_new_tokens, stop=stop)
        return texts

    def _prompts(self, template: Template, rows: pa.Table) -> list[str]:
        return [
            render_next(template, [self._cut(shot) for shot in shown], self.instruction)
            for shown in rows["shown"].to_pylist()
        ]

    def _excess(self, template: Template, prompts: Sequence[str]) -> np.ndarray:
        """Tokens by which each prompt with what is written after it is too long."""
        return np.asarray(self.model.excess(prompts, max_new_tokens=self.max_new_tokens))


def permutations(count: int, seed: int) -> list[tuple[int, ...]]:
    """All orders of so many things, or the given one and others drawn by the seed, all different."""
    given = tuple(range(count))
    if math.factorial(count) <= MOST_PERMUTATIONS:
        return list(itertools.permutations(given))
    found, random = {given: None}, generator(seed, "permutations")
    while len(found) < MOST_PERMUTATIONS:
        found[tuple(random.permutation(count).tolist())] = None
    return list(found)


def entropies(which: str, scores: np.ndarray) -> np.ndarray:
    """How undecided the model is after each permutation, in nats [M].

    Args:
        which: global_entropy of the labels predicted, local_entropy of each row's probabilities, on average.
        scores: log-probabilities [M, N, C] of the labels of N rows after M permutations.
    """
    if which == "local_entropy":
        return np.asarray(_entropy(np.exp(scores)).mean(axis=1))
    predicted = scores.argmax(axis=2)
    shares = (predicted[:, :, None] == np.arange(scores.shape[2])).mean(axis=1)
    return _entropy(shares)


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """Of the last axis, in nats."""
    logs = np.log(np.where(probabilities > 0, probabilities, 1.0))
    return np.asarray(-(probabilities * logs).sum(axis=-1))
