"""What a frozen model makes of a row after given demonstrations: asked while demonstrations are chosen or ordered.

    row, shown ─► judge ─► scores of the labels, or how probable the free-text target is

The demonstrations stand in the row itself and not in the node, so that runs with other examples, of another seed or
regime, find in the store what they have in common.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import pyarrow as pa

from graft.arrays import answer_columns
from graft.methods.answering import Answer
from graft.node import Context
from graft.tasks.templates import Template


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge(Answer):
    """Column `shown` (a list of examples with their targets) and a row, to what the model thinks of the answer."""

    storable = True
    shorten: ClassVar[str] = (
        "lower method.num_shots, shorten the texts (task.max_tokens) or instruction, or use selection: random with "
        "order: given"
    )

    @classmethod
    def of(cls, model: Any, inputs: tuple[str, ...], asked: Mapping[str, Any], context: Context) -> Self:
        """The node that asks as the answering node does.

        Args:
            model: the handle that answers.
            inputs: the task's input columns.
            asked: the other fields of its `Answer`.
            context: knows the labels.
        """
        return cls(model=model, inputs=inputs, **asked).among(context.labels)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """Free text is not one of a few answers: its target is asked about by name."""
        return (*self.inputs, "shown", "target") if self.generation else (*self.inputs, "shown")

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Of labels all, of free text the one that was asked about."""
        return ("target_log_probability",) if self.generation else ("scores",)

    def run(self, rows: pa.Table) -> pa.Table:
        """Log-probabilities, of labels among the labels alone."""
        if self.generation:
            sums, _ = self.target_log_probabilities(rows)
            return pa.table({"target_log_probability": pa.array(sums, pa.float64())})
        template = self._template()
        found = self._scores(template, self._prompts(template, rows), rows)
        return answer_columns(self._normalised(found), self.labels).select(["scores"])

    def _prompts(self, template: Template, rows: pa.Table) -> list[str]:
        return [
            self._prompt(template, self._cut(row), [self._cut(shot) for shot in row["shown"]])
            for row in rows.to_pylist()
        ]


def told(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an `Answer` that are plain values, but for its inputs: a node can hold them as one field."""
    return {name: value for name, value in answer.items() if name not in ("model", "inputs")}
