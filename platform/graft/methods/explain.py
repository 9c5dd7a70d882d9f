"""The node in which a frozen model writes down its reasoning: each rationale is written once.

    text ─► explain ─► rationale ("... The answer is ham.")

It depends on the model, the instruction, the exemplars and the row alone, so the column store holds it for every
epoch, seed, student and ablation: `Explain.of` makes the node for all of them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from graft.errors import DataError, ModelError
from graft.methods.answering import Answer, Row
from graft.tasks.templates import Template, render

REASON = "Explain step by step what the answer is, and why."
"""The default instruction."""
POOL_ROWS = 300
"""Writing is slow: above so many rows the processes of a pool are worth their start."""
REMOTE_CHUNK_ROWS = 8
"""Of rows that somebody else's server answers, few may be lost."""
DONOR = "donor/"
"""Before the names of the columns that hold another row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain(Answer):
    """A rationale for each row, greedy, blind to its target."""

    role: str = "teacher"
    """Of the model; what a teacher writes is counted."""
    exemplars: tuple[dict[str, Any], ...] = ()
    """Rows with `target` and `rationale`, shown before the question."""
    per_group: bool = False
    """Show a row the exemplars of its own group alone."""
    limit: ClassVar[str] = "method.max_rationale_tokens"
    """What the user calls `max_new_tokens` here."""
    donated: bool = False
    """Explain in each row's place another one, which stands in columns of its own: a control."""

    # What a server says may change, but a rationale is asked for once and is data from then on.
    storable = True
    pool_rows = POOL_ROWS

    @classmethod
    def of(cls, asked: Mapping[str, Any], instruction: str, **settings: Any) -> Self:
        """The node that explains what an `Answer` is asked; how that answers is nothing to it.

        Args:
            asked: fields of an `Answer`, among them the model that explains.
            instruction: what the model is told; empty for nothing.
            settings: the fields that are this node's own, and `max_new_tokens`.
        """
        shared = {name: asked[name] for name in ("model", "inputs", "kind", "template", "max_tokens")}
        return cls(**shared, instruction=instruction or None, length_normalize=False, generation=True, **settings)

    @property
    def chunk_rows(self) -> int:  # type: ignore[override]
        """Rows between two writes to the store."""
        return REMOTE_CHUNK_ROWS if self.model.remote else Answer.chunk_rows

    @property
    def tally(self) -> str:  # type: ignore[override]
        """What its rows are counted as."""
        return "teacher" if self.role == "teacher" else ""

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The row's input, and its group where that has its own exemplars; or its donor's."""
        return tuple(f"{DONOR}{name}" for name in self._told) if self.donated else self._told

    @property
    def _told(self) -> tuple[str, ...]:
        """What a row says of itself."""
        return (*self.inputs, "group") if self.per_group else self.inputs

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The text, whether the limit left it whole, and how much of the input it has not seen."""
        return ("rationale", "rationale_whole", "rationale_tokens_cut")

    def given(self, rows: pa.Table) -> pa.Table:
        """The row that is explained, by its own names: a donor is explained as it is in its own place."""
        return rows.select(self.reads).rename_columns(self._told)

    def fingerprint(self) -> str:
        """Identity by content: neither what the model is called nor where a row comes from changes what is written."""
        return Answer.fingerprint(dataclasses.replace(self, role="teacher", donated=False))

    def run(self, rows: pa.Table) -> pa.Table:
        """Texts, up to a blank line where the model is no chat."""
        prompts = self._prompts(self._template(), rows)
        written = self.model.write(prompts, self.max_new_tokens, self.ends)
        columns = {
            "rationale": pa.array([one.text.strip() for one in written], pa.string()),
            "rationale_whole": pa.array([one.whole for one in written]),
            "rationale_tokens_cut": pa.array(self._tokens_cut(rows)),
        }
        return pa.table(columns)

    def check(self, rows: pa.Table) -> None:
        """Every prompt with its rationale fits the model's context.

        Raises:
            ModelError: one does not; names it, and what would fit.
        """
        template = self._template()
        excess = self._excess(template, self._prompts(template, rows))
        if (excess <= 0).all():
            return
        row = rows.slice(int(np.argmax(excess)), 1).to_pylist()[0]
        shown = len(self._shown(row))
        raise ModelError(
            f"the prompt of models.{self.role} for {template.input(row)[:60]!r}... with {shown} exemplars and "
            f"{self.max_new_tokens} tokens to write is {excess.max()} tokens too long; the context of "
            f"{self.model.source.source} holds {self.model.context_tokens}; {self._cure(template, rows, shown)}"
        )

    def _cure(self, template: Template, rows: pa.Table, shown: int) -> str:
        """With how many exemplars everything fits, or how long a text may be."""
        for count in range(shown - 1, 0, -1):
            fewer = dataclasses.replace(self, exemplars=self._first(count))
            if (fewer._excess(template, fewer._prompts(template, rows)) <= 0).all():
                return f"with {count} exemplars it fits"
        bare = dataclasses.replace(self, exemplars=(), per_group=False)
        excess = bare._excess(template, bare._prompts(template, rows))
        if (excess <= 0).all():
            return "without exemplars it fits"
        # Each input column is cut by itself: what the longest may have depends on what the others say.
        lengths = np.array([self.model.count_tokens(rows[name].to_pylist()) for name in self._cuttable()])
        longest = int((lengths.max(axis=0) - excess).min()) if lengths.size else 0
        if longest < 1:
            return f"even without any text: lower {self.limit} or shorten the reasoning_instruction"
        return f"without any, the longest text that fits has {longest} tokens: set task.max_tokens to that or less"

    def _first(self, count: int) -> tuple[dict[str, Any], ...]:
        """The first exemplars (of each group)."""
        if not self.per_group:
            return self.exemplars[:count]
        groups = dict.fromkeys(one["group"] for one in self.exemplars)
        return tuple(one for group in groups for one in [o for o in self.exemplars if o["group"] == group][:count])

    def _prompts(self, template: Template, rows: pa.Table) -> list[str]:
        return [
            render(template, self._cut(row), self._shown(row), self.instruction, self.model.chat, reasons=True)
            for row in rows.to_pylist()
        ]

    def _shown(self, row: Row) -> list[Row]:
        """The exemplars of a row's prompt."""
        found = [one for one in self.exemplars if not self.per_group or one["group"] == row["group"]]
        if self.per_group and not found:
            known = sorted({one["group"] for one in self.exemplars})
            raise DataError(f"group {row['group']!r} has no exemplars; there are some for {', '.join(known)}")
        return [self._cut(one) for one in found]

    def _excess(self, template: object, prompts: Sequence[str]) -> np.ndarray:
        """Tokens by which each prompt with its rationale is too long."""
        return np.asarray(self.model.excess(prompts, max_new_tokens=self.max_new_tokens))

    @property
    def ends(self) -> tuple[str, ...]:
        """A blank line, where the model is no chat."""
        return () if self._chats else ("\n\n",)
