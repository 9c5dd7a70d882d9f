"""FIAT: a large frozen model explains, a small tuned one answers.

    text ─► explain (teacher, frozen) ─► rationale ─┐
        └───────────────────────────────────────────┴─► answer (student, tuned) ─► prediction, scores

Wang, Wieting and Clark 2023 (arXiv:2309.04663), algorithms 1 and 2. The teacher's text is input, and the loss is on the
answer's tokens alone; it is needed for test rows too. The prompts, LoRA's rank and the training are not given in the
paper: ours are in the spec. `rationale` also names what the paper leaves out: controls (`answer_only`, `shuffled`,
`oracle`, `corrupted`), the student's own reasons (`self`), and rationales as targets (`distilled`: Hsieh et al. 2023,
arXiv:2305.02301).
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from graft.errors import SpecError
from graft.graph import Graph
from graft.hashing import digest, row_keys
from graft.methods import exemplars as drawn
from graft.methods.answering import Row, asking
from graft.methods.distill import Distilled
from graft.methods.explain import DONOR, REASON, Explain
from graft.methods.tuning import AnyAdapter, Tuned, Tuning, mapping_of
from graft.node import Node
from graft.spec import Task
from graft.tasks.templates import Template, answer_in, render

if TYPE_CHECKING:
    from torch import nn

    from graft.tasks.dataset import Dataset

Rationale = Literal["teacher", "none", "answer_only", "shuffled", "oracle", "self", "corrupted", "distilled"]

TUNE = "Read the input and what is given with it, then answer."
"""The default tuning instruction: the same with a rationale and without."""
READ = "rationale_read"
"""Column of what a student has read in the rationale's place: null where it read none."""
DONORS = 64
"""Rows whose rationales `shuffled` passes round."""


class Fiat(Tuning):
    """A frozen teacher's rationale, and a tuned student that reads it."""

    role: ClassVar[str] = "student"

    name: Literal["fiat"] = "fiat"
    rationale: Rationale = "teacher"
    """What the student reads beside the input: teacher, the teacher's rationale; none; answer_only, the answer which
    that ends with; shuffled, another row's; oracle, the task's own (task.rationale); self, the untuned student's own;
    corrupted, the teacher's with other words in it. distilled: nothing, it learns to write the teacher's beside."""
    corruption_rate: float = Field(0.5, ge=0, le=1)
    """Share of a rationale's words that `corrupted` replaces."""
    instruction: bool | str = Field(True)  # type: ignore[assignment]
    """What the student is told: true, a default text; false, nothing; or a text."""
    reasoning_instruction: str = Field(REASON, max_length=2000)
    """What the teacher is told."""
    exemplars: int | str = 4
    """Rows with rationales in the teacher's prompt: how many, drawn from a pool outside all regimes and the test set,
    or a file of them with the task's columns."""
    exemplars_per_group: bool = False
    """Show each row exemplars of its own group (task.group) alone; so many of each are drawn."""
    exemplar_seed: int = Field(0, ge=0, lt=2**31)
    """Draws the exemplars, and what the controls put in a rationale's place."""
    max_rationale_tokens: int = Field(128, ge=1)
    """Length limit of a rationale, in tokens; what it cuts is counted."""
    adapter: AnyAdapter = Field(default_factory=lambda: {"peft_type": "LORA", "r": 8, "lora_alpha": 16})
    """What of the student is trained: PEFT's fields with `peft_type`, `kind` and `bottleneck`, or full."""

    @field_validator("exemplars")
    @classmethod
    def _some_or_a_file(cls, value: int | str) -> int | str:
        if isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise ValueError(f"got {value!r}; give how many (0 for none), or a file")
        return value

    @model_validator(mode="after")
    def _groups_show_something(self) -> Self:
        if self.exemplars_per_group and self.exemplars == 0:
            raise ValueError("exemplars_per_group shows each row exemplars of its group: give exemplars above 0")
        return self

    @field_validator("instruction")
    @classmethod
    def _a_short_text(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and not 1 <= len(value) <= 2000:
            raise ValueError("give true, false, or a text of 1 to 2000 characters")
        return value

    def roles(self, task: Task) -> tuple[str, ...]:
        """The student, and the teacher where it is asked."""
        asked = self.rationale in ("teacher", "answer_only", "shuffled", "corrupted", "distilled")
        return ("teacher", "student") if asked else ("student",)

    def places(self) -> dict[str, Any]:
        """A file of exemplars: their contents are in the node that shows them."""
        return {"exemplars": True} if isinstance(self.exemplars, str) else {}

    def files(self) -> tuple[str, ...]:
        """A file of exemplars, where they are shown."""
        shown = isinstance(self.exemplars, str) and self.rationale not in ("none", "oracle")
        return (str(self.exemplars),) if shown else ()

    def trained(self) -> dict[str, Any]:
        """The adapter."""
        return mapping_of(self.adapter)

    def graph(self, task: Task, dataset: "Dataset", models: Mapping[str, Any]) -> Graph:
        """Explain and answer.

        Raises:
            SpecError: the inputs are not text, or the exemplars cannot be had.
            DataError: an exemplar has no rationale, or is a row of the task; or no row can stand in for another.
            ModelError: a model cannot do what is asked of it.
        """
        fields = self.fields(task, dataset, models)
        fields["instruction"] = TUNE if self.instruction is True else self.instruction or None
        nodes, inputs = self._before(task, dataset, models)
        if self.rationale == "distilled":
            shown = self._exemplars(task, dataset)
            reasoning = {name: getattr(self, name) for name in ("reasoning_instruction", "max_rationale_tokens")}
            student: Tuned = Distilled(
                **fields,
                **reasoning,
                teacher=models["teacher"],
                alpha=1.0,
                exemplars=shown,
                per_group=self.exemplars_per_group,
            )
        else:
            student = Student(**fields, **self._reading(nodes))
        return Graph([*nodes, student], inputs)

    def _before(self, task: Task, dataset: "Dataset", models: Mapping[str, Any]) -> tuple[list[Node], tuple[str, ...]]:
        """The nodes that give the rationale, and what a row must bring."""
        if self.rationale in ("none", "distilled"):
            return [], dataset.inputs
        if self.rationale == "oracle":
            if "rationale" not in dataset.test.column_names:
                raise SpecError("method.rationale: oracle shows the task's own; name their column: task.rationale")
            return [], (*dataset.inputs, "rationale")
        role = "student" if self.rationale == "self" else "teacher"
        explain = Explain.of(
            asking(self.name, role, models[role], task, dataset, scores=False),
            self.reasoning_instruction,
            role=role,
            max_new_tokens=self.max_rationale_tokens,
            exemplars=self._exemplars(task, dataset),
            per_group=self.exemplars_per_group,
        )
        inputs = (*dataset.inputs, "group") if self.exemplars_per_group else dataset.inputs
        if self.rationale != "shuffled":
            return [explain], inputs
        others = drawn.donors(self.exemplar_seed, DONORS, dataset)
        return [Donate(dataset.inputs, others), dataclasses.replace(explain, donated=True)], inputs

    def _exemplars(self, task: Task, dataset: "Dataset") -> drawn.Exemplars:
        return drawn.exemplars(self.exemplars, self.exemplars_per_group, self.exemplar_seed, task, dataset)

    def _reading(self, nodes: list[Node]) -> dict[str, Any]:
        """How the student reads a rationale."""
        if self.rationale == "none":
            return {"shows": ""}
        if self.rationale != "corrupted":
            return {"shows": "answer" if self.rationale == "answer_only" else "rationale"}
        (explain,) = nodes
        assert isinstance(explain, Explain)
        words = sorted({word for one in explain.exemplars for word in one["rationale"].split()})
        noise = {"corruption_rate": self.corruption_rate, "corruption_seed": self.exemplar_seed}
        return {"shows": "corrupted", "words": tuple(words), **noise}


@dataclasses.dataclass(frozen=True)
class Donate(Node):
    """Another row in each row's place: never one that says the same."""

    inputs: tuple[str, ...]
    donors: tuple[dict[str, Any], ...]

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The other row."""
        return tuple(f"{DONOR}{name}" for name in self.donors[0])

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The row's input, which decides."""
        return self.inputs

    def run(self, rows: pa.Table) -> pa.Table:
        """What the other rows say."""
        donors = pa.Table.from_pylist(self.donors)
        known = row_keys(donors.select(self.inputs))
        found = []
        for key in row_keys(rows.select(self.inputs)):
            others = [place for place, other in enumerate(known) if other != key]
            found.append(others[int.from_bytes(key[:8], "little") % len(others)])
        return donors.take(pa.array(found)).rename_columns(self.writes)

    def describe(self) -> str:
        """Say that it is a control."""
        return f"donate(one of {len(self.donors)} other rows)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student(Tuned):
    """The answer of a tuned model that reads a rationale."""

    shorten: ClassVar[str] = "lower method.max_rationale_tokens, " + Tuned.shorten
    shows: Literal["", "rationale", "answer", "corrupted"]
    """What of the rationale stands in its prompt; nothing."""
    words: tuple[str, ...] = ()
    """What corrupted words are replaced by."""
    corruption_rate: float = 0.0
    corruption_seed: int = 0

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The row's input and its rationale."""
        return (*self.inputs, "rationale") if self.shows else self.inputs

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The answer, and what was read in the rationale's place."""
        return (*super().writes, READ) if self.shows else super().writes

    def run(self, rows: pa.Table) -> pa.Table:
        """The answer, and what was read in the rationale's place."""
        answers = super().run(rows)
        if not self.shows:
            return answers
        return answers.append_column(READ, pa.array([self._shown(row) for row in rows.to_pylist()], pa.string()))

    def _prompts(self, template: Template, rows: pa.Table) -> list[str]:
        return [
            render(template, self._cut(row), (), self.instruction, self.model.chat, rationale=self._shown(row))
            for row in rows.to_pylist()
        ]

    def _shown(self, row: Row) -> str | None:
        """The rationale as the student reads it; nothing where the teacher gave none."""
        if not self.shows or not row["rationale"]:
            return None
        if self.shows == "answer":
            return answer_in(row["rationale"])
        return self._corrupted(row["rationale"]) if self.shows == "corrupted" else str(row["rationale"])

    def _corrupted(self, text: str) -> str:
        """Some words replaced by others; which, follows from the text and the seed."""
        random = np.random.default_rng(int(digest(self.corruption_seed, text)[:15], 16))
        words = self.words or tuple(sorted(set(text.split())))

        def other(found: re.Match[str]) -> str:
            return words[random.integers(len(words))] if random.random() < self.corruption_rate else found[0]

        return re.sub(r"\S+", other, text)

    def _open(self) -> "nn.Module":
        """The student with its adapter merged in, where that can be done: it answers as fast as before."""
        from graft.methods import adapting

        if not self.weights or not adapting.merges(self.adapter, self.model):
            return super()._open()
        return adapting.merged(self.model, self.adapter, self.seed, self.weights)
