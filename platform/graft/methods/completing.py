"""The node that answers after demonstrations.

    row, demonstrations ─► complete ─► prediction, scores

`calibrate` divides by the scores of content-free inputs (Zhao et al. 2021, arXiv:2102.09690, section 4: "N/A", "[MASK]"
and the empty text, diagonal W, b = 0).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa

from graft.errors import ModelError
from graft.methods.answering import Answer, Row
from graft.node import Context
from graft.tasks.templates import Template

CONTENT_FREE = ("N/A", "[MASK]", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Complete(Answer):
    """The answer of a frozen language model to a prompt of demonstrations and the row."""

    num_shots: int
    similar: bool
    calibrate: bool
    examples: tuple[dict[str, Any], ...] = ()
    """The regime's examples: id, input columns, target; none for zero shots, so that all regimes share the answers."""

    @property
    def storable(self) -> bool:  # type: ignore[override]
        """What a server says may change behind the same address; weights in this process do not."""
        return not self.model.remote

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The row and the ids of its demonstrations."""
        return (*self.inputs, "demonstrations")

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Keep the examples that prompts may show."""
        kept = rows.select(["id", *self.inputs, "target"]).to_pylist() if self.num_shots else []
        return dataclasses.replace(self.among(context.labels), examples=tuple(kept))

    def check(self, rows: pa.Table) -> None:
        """Every prompt with its answer fits the model's context.

        Raises:
            ModelError: one does not; names the largest number of demonstrations with which it would.
        """
        template = self._template()
        excess = self._excess(template, self._prompts(template, rows))
        if (excess <= 0).all():
            return
        shown = self._shown(rows)
        longest = int(np.argmax(excess))
        fits = self._most_that_fit(template, [self._cut(row) for row in rows.to_pylist()], shown)
        cure = self.shorten if fits is None else f"method.num_shots={fits} fits"
        raise ModelError(
            f"method.num_shots: a prompt with {len(shown[longest])} demonstrations and its answer is {excess[longest]} "
            f"tokens too long; the context of {self.model.source.source} holds {self.model.context_tokens}; {cure}"
        )

    def _shown(self, rows: pa.Table) -> list[list[Row]]:
        """What each row's prompt demonstrates."""
        examples = {example["id"]: self._cut(example) for example in self.examples}
        return [[examples[one] for one in ids if one in examples] for ids in rows["demonstrations"].to_pylist()]

    def _prompts(self, template: Template, rows: pa.Table) -> list[str]:
        asked, shown = rows.to_pylist(), self._shown(rows)
        return [self._prompt(template, self._cut(row), demos) for row, demos in zip(asked, shown, strict=True)]

    def _scores(self, template: Template, prompts: Sequence[str], rows: pa.Table) -> np.ndarray:
        """Log-probabilities [N, C] of the labels' words, or what they are above those of content-free inputs."""
        scores = super()._scores(template, prompts, rows)
        return scores - self._content_free(template, self._shown(rows)) if self.calibrate else scores

    def _content_free(self, template: Template, shown: Sequence[Sequence[Row]]) -> np.ndarray:
        """Log of the labels' mean probability [N, C] for inputs without content, after the same demonstrations."""
        distinct = {tuple(demo["id"] for demo in demos): demos for demos in shown}
        bias = {}
        for ids, demos in distinct.items():
            empty = [dict.fromkeys(self.inputs, self._plain_input(text)) for text in CONTENT_FREE]
            prompts = [self._prompt(template, row, demos) for row in empty]
            scores = self.model.score(prompts, self._candidates(template), normalize=self.length_normalize)
            bias[ids] = np.log(np.exp(self._normalised(scores)).mean(axis=0))
        return np.stack([bias[tuple(demo["id"] for demo in demos)] for demos in shown])

    def _plain_input(self, text: str) -> Any:
        return [{"role": "user", "content": text}] if self.kind == "messages" else text

    def _most_that_fit(self, template: Template, asked: list[Row], shown: list[list[Row]]) -> int | None:
        """The largest number of demonstrations with which every prompt fits; None where not even none does."""

        def fit(shots: int) -> bool:
            # The nearest stand last, next to the question; of one draw the first are kept.
            kept = [demos[len(demos) - shots :] if self.similar else demos[:shots] for demos in shown]
            prompts = [self._prompt(template, row, demos) for row, demos in zip(asked, kept, strict=True)]
            return bool((self._excess(template, prompts) <= 0).all())

        low, high = -1, max(len(demos) for demos in shown)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fit(middle) else (low, middle)
        return None if low < 0 else low
