"""Distilling step by step: a small model learns the answers, and beside them why.

    text ─┬─► "predict" prompt ─► label        loss = label loss + α · rationale loss
          └─► "explain" prompt ─► rationale    (the second in training only)

Hsieh et al. 2023 (arXiv:2305.02301), section 3.2, equation 4. A rationale is a target here and costs nothing when the
model answers. It comes from the task's own column (`task.rationale`), else from `models.teacher`, who writes each one
once for all runs (an endpoint too: what it has said is data from then on). Deviation: both losses are means over their
own target tokens in the global batch; the authors' code mixes means over each micro-batch.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

import pyarrow as pa
from pydantic import Field

from graft.errors import SpecError
from graft.execution import run_node
from graft.graph import Graph
from graft.methods.answering import asking
from graft.methods.explain import REASON, Explain
from graft.methods.learning import Pair
from graft.methods.tuning import AnyAdapter, Tuned, Tuning, mapping_of
from graft.node import Context
from graft.spec import Task

if TYPE_CHECKING:
    from graft.tasks.dataset import Dataset

PREFIXES = ("predict", "explain")
"""First lines of the two prompts, as in the authors' code."""


class Distill(Tuning):
    """A language model tuned on labels and rationales."""

    name: Literal["distill"] = "distill"
    alpha: float = Field(1.0, gt=0)
    """Weight of the rationale loss; the label loss has weight 1."""
    adapter: AnyAdapter = "full"
    """What is trained: full, PEFT's fields with `peft_type`, or `kind` and `bottleneck`."""
    reasoning_instruction: str = Field(REASON, max_length=2000)
    """What the teacher is told, where it writes the rationales."""
    max_rationale_tokens: int = Field(128, ge=1)
    """Length limit of a rationale that the teacher writes."""

    def optional_roles(self, task: Task) -> tuple[str, ...]:
        """The teacher, where the rows bring no rationales."""
        return () if getattr(task, "rationale", None) else ("teacher",)

    def trained(self) -> dict[str, Any]:
        """The adapter."""
        return mapping_of(self.adapter)

    def graph(self, task: Task, dataset: "Dataset", models: Mapping[str, Any]) -> Graph:
        """One node.

        Raises:
            SpecError: nothing gives rationales.
        """
        # What the rows bring is what is learned: nobody is asked.
        given = "rationale" in dataset.train.column_names
        teacher = None if given else models.get("teacher")
        if not given and teacher is None:
            raise SpecError(
                "method distill learns rationales: name the column that holds them (task.rationale), or models.teacher "
                "to write them"
            )
        if teacher is not None:
            asking(self.name, "teacher", teacher, task, dataset, scores=False)
        node = Distilled(
            **self.fields(task, dataset, models),
            teacher=teacher,
            alpha=self.alpha,
            reasoning_instruction=self.reasoning_instruction,
            max_rationale_tokens=self.max_rationale_tokens,
        )
        return Graph([node], dataset.inputs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distilled(Tuned):
    """The answer of a language model that was tuned on labels and rationales."""

    teacher: Any = None
    alpha: float
    reasoning_instruction: str
    max_rationale_tokens: int
    exemplars: tuple[dict[str, Any], ...] = ()
    """Rows with rationales in the teacher's prompt."""
    per_group: bool = False

    @property
    def terms(self) -> tuple[float, ...]:
        """Weights of the label loss and of the rationale loss."""
        return (1.0, self.alpha)

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Train on targets and rationales; the fitted node needs no teacher."""
        for node in self.asks():
            rows = run_node(node, rows, context.store, context.progress, context.pool)
        return dataclasses.replace(self.learned(rows, context), teacher=None, exemplars=())

    def asks(self) -> tuple[Explain, ...]:
        """The teacher, unless the rows bring rationales or it is fitted."""
        if self.teacher is None:
            return ()
        explain = Explain.of(
            {**vars(self), "model": self.teacher},
            self.reasoning_instruction,
            max_new_tokens=self.max_rationale_tokens,
            exemplars=self.exemplars,
            per_group=self.per_group,
        )
        return (explain,)

    def _said_first(self) -> str:
        """The instruction of the prompt that asks for the answer."""
        return "\n".join(filter(None, (PREFIXES[0], self.instruction)))

    def _sequences(self, rows: pa.Table) -> list[list[Pair]]:
        """Both prompts with their targets; a row without a rationale teaches its label alone."""
        answers = super()._sequences(rows)
        template, chat = self._template(), self.model.chat
        why = "\n".join(filter(None, (PREFIXES[1], self.instruction)))
        prompts = [self._prompt(template, self._cut(row), instruction=why) for row in rows.to_pylist()]
        given = [text.strip() if text else "" for text in rows["rationale"].to_pylist()]
        # Something must be said for the prompt to become tokens; it is taken away again.
        targets = [template.candidate(text or "-", chat=chat is not None) for text in given]
        reasons = self.pairs(prompts, targets, ends=True)
        return [
            [*answer, (prompt, reason if text else [])]
            for answer, (prompt, reason), text in zip(answers, reasons, given, strict=True)
        ]
