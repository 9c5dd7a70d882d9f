"""Instruction tuning: the task is learned among others, each asked in several ways.

    examples of the task ─┐
    rows of other tasks ──┴─► templates, balanced ─► tuned ─► prediction, scores

Wei et al. 2022 (FLAN, arXiv:2109.01652, section 2): several templates per task, examples-proportional mixing with a
limit. Raffel et al. 2020 (T5, arXiv:1910.10683, section 3.5.2): equal and temperature-scaled mixing. Here the task's
own examples are always learned as they are, once per epoch, and the other tasks are balanced against them.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from graft.errors import DataError, SpecError
from graft.graph import Graph
from graft.hashing import row_keys
from graft.methods.learning import Pair
from graft.methods.tuning import AnyAdapter, Tuned, Tuning, mapping_of
from graft.node import Context
from graft.sections import Section
from graft.seeds import generator
from graft.spec import AnyTask, Task, section_class
from graft.tasks.templates import Template, render, template_for

if TYPE_CHECKING:
    from graft.tasks.dataset import Dataset

PLACES = ("path", "train", "test")
"""Fields that say where a task's rows lie: no part of what a node is."""


class Member(Section):
    """Another task of the mixture; its training rows are learned, its test rows are not."""

    task: AnyTask
    """Where its rows come from, and how they are asked."""
    templates: tuple[str, ...] = ()
    """More ways to ask, as `task.template`; each row takes one of all by `regime.seed`."""
    instruction: str | None = Field(None, max_length=2000)
    """Text before its prompts; null for none."""
    weight: float = Field(1.0, gt=0)
    """How many rows it has in the mixture, relative to what `balancing` gives."""


class Instruct(Tuning):
    """A language model tuned on a mixture of instructed tasks."""

    name: Literal["instruct"] = "instruct"
    adapter: AnyAdapter = "full"
    """What is trained: full, PEFT's fields with `peft_type`, or `kind` and `bottleneck`."""
    mixture: tuple[Member, ...] = ()
    """The other tasks."""
    balancing: Literal["proportional", "equal", "temperature"] = "proportional"
    """Rows of another task per epoch: as many as it has, as many as the task itself has, or the geometric mean of both
    (temperature 2)."""
    limit: int = Field(3000, ge=1)
    """A larger task counts as one of so many rows."""

    def places(self) -> dict[str, Any]:
        """The rows of the other tasks are in the node's fingerprint."""
        return {"mixture": {"__all__": {"task": set(PLACES)}}}

    def files(self) -> tuple[str, ...]:
        """The rows of the other tasks."""
        places = (getattr(member.task, place, None) for member in self.mixture for place in PLACES)
        return tuple(place for place in places if place is not None)

    def trained(self) -> dict[str, Any]:
        """The adapter."""
        return mapping_of(self.adapter)

    def graph(self, task: Task, dataset: "Dataset", models: Mapping[str, Any]) -> Graph:
        """One node.

        Raises:
            DataError: another task's training rows hold test rows of this one.
            SpecError: a task of the mixture is no text.
        """
        mixture = enumerate(self.mixture)
        found = tuple(described(f"method.mixture.{place}", member, dataset) for place, member in mixture)
        fields = self.fields(task, dataset, models)
        node = Instructed(**fields, mixture=found, balancing=self.balancing, limit=self.limit)
        return Graph([node], dataset.inputs)


def described(where: str, member: Member, dataset: "Dataset | None" = None) -> dict[str, Any]:
    """A member as plain values, with the digest of its rows.

    Args:
        where: it stands in the spec.
        member: another task.
        dataset: the task itself, none of whose rows it may bring; None where there is none.

    Raises:
        DataError: it brings rows of the task itself.
        SpecError: it is no text, or a template does not suit its rows.
    """
    other = member.task.read()
    if other.kind not in ("text", "messages"):
        raise SpecError(f"{where}.task: its inputs are {other.kind}; a language model reads text")
    if other.kind == "messages" and member.task.max_tokens is not None:
        raise SpecError(f"{where}.task.max_tokens: text columns are cut, not conversations; leave it null")
    if dataset is not None:
        _refuse_rows_of(dataset, other, where)
    for template in (member.task.template, *member.templates):
        template_for(template, other.inputs, other.kind, other.labels is None)
    return {**member.model_dump(mode="json"), "rows": other.fingerprint}


def _refuse_rows_of(dataset: "Dataset", other: "Dataset", where: str) -> None:
    for rows, what in ((dataset.test, "test rows"), (dataset.train, "rows")):
        own = set(_contents(rows, dataset.inputs))
        if shared := sum(key in own for key in _contents(other.train, other.inputs)):
            raise DataError(
                f"{where}.task: {shared} of its rows are {what} of the task itself, which only regime.examples may "
                "give; leave them out"
            )


def _contents(rows: pa.Table, inputs: tuple[str, ...]) -> list[bytes]:
    """What each row says, whatever its columns are called."""
    return row_keys(rows.select(inputs).rename_columns([str(place) for place in range(len(inputs))]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instructed(Tuned):
    """The answer of a language model that was tuned on a mixture."""

    mixture: tuple[dict[str, Any], ...] = ()
    balancing: str = "proportional"
    limit: int = 3000

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Train on the rows' targets and on the other tasks'; the fitted node remembers no other task."""
        seed = context.experiment.regime.seed
        more = [self.member(place, rows.num_rows, seed) for place in range(len(self.mixture))]
        fitted = self.learned(rows, context, pa.concat_tables(more) if more else None)
        return dataclasses.replace(fitted, mixture=())

    def member(self, place: int, own: int, seed: int) -> pa.Table:
        """The encoded rows of another task, as many as the balance gives it beside the `own` ones."""
        member = self.mixture[place]
        data = section_class("task", member["task"]["name"]).model_validate(member["task"]).read()
        random = generator(seed, f"mixture-{place}-{member['rows']}")
        count = max(1, round(member["weight"] * self._rows(data.train.num_rows, own)))
        # Whole rounds through its rows, then a part of one.
        order = np.concatenate(
            [random.permutation(data.train.num_rows) for _ in range(-(-count // data.train.num_rows))]
        )
        taken = data.train.take(pa.array(order[:count]))
        rows = self.model.cut_columns(taken, data.inputs, member["task"]["max_tokens"])
        names = (member["task"]["template"], *member["templates"])
        templates = [template_for(name, data.inputs, data.kind, data.labels is None) for name in names]
        asked = [templates[choice] for choice in random.integers(len(templates), size=count)]
        return self.encoded([[pair] for pair in self._member_pairs(member, rows, asked, data.labels is None)])

    def _member_pairs(
        self, member: Mapping[str, Any], rows: pa.Table, asked: list[Template], generation: bool
    ) -> list[Pair]:
        chat = self.model.chat
        values = rows.to_pylist()
        prompts = [
            render(template, row, (), member["instruction"], chat) for template, row in zip(asked, values, strict=True)
        ]
        targets = [
            template.candidate(row["target"], chat=chat is not None)
            for template, row in zip(asked, values, strict=True)
        ]
        return self.pairs(prompts, targets, ends=generation)

    def _rows(self, other: int, own: int) -> float:
        """Rows of another task per epoch, of `other` that it has and `own` of the task itself."""
        other = min(other, self.limit)
        return {"proportional": other, "equal": own, "temperature": (other * own) ** 0.5}[self.balancing]

    def _settings(self) -> dict[str, Any]:
        """Without the places of the rows, whose contents are among the settings."""
        settings = super()._settings()
        settings["mixture"] = [
            {**member, "task": {key: value for key, value in member["task"].items() if key not in PLACES}}
            for member in self.mixture
        ]
        return settings
