"""Sums whose operands are names: one model knows the names' values, another one how to add.

Bansal et al. 2024 (CALM, arXiv:2401.02412, section 4.1). Each part of it is a kind of row:

    pairs       bako =                 7
    values      bako                   7             said right at the name
    substitute  bako + lemi - bako ->  7 + 3 - 7
    numbers     7 + 3 - 7 =            3
    solve       bako + lemi - bako =   3

The task learns sums of a share of the names (and of numbers), and asks for sums of the others.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from graft import hashing
from graft.errors import DataError
from graft.seeds import generator
from graft.spec import Task
from graft.tasks.dataset import Dataset
from graft.tasks.parsers import check_targets
from graft.tasks.worlds import Random, Row, names, one_in

Part = Literal["substitute", "numbers", "solve"]
Share = Annotated[float, Field(gt=0)]
"""Of rows, beside the other shares."""

HELD_OUT = 0.1
"""Share of the expressions that are never learned."""
MOST_TRIES = 100
"""Draws in a row that give nothing new."""

ASKED = {"substitute": "substitute", "numbers": "numbers", "solve": "solve", "solve-held-in": "solve"}
"""Groups of test rows: sums of names that were never learned about, and of those that were."""


@dataclasses.dataclass(frozen=True)
class KeyValueWorld:
    """Names with values.

    Args:
        keys: number of names.
        values: number of values, from 0.
        operands: in an expression.
        held_in: share of the names that rows of `solve` are about.
        seed: of all that.
    """

    keys: int
    values: int
    operands: int
    held_in: float
    seed: int

    @classmethod
    def of(cls, data: Any) -> Self:
        """What a recipe or a task says."""
        return cls(data.keys, data.values, data.operands, data.held_in, data.world)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """All names; the first ones are held in."""
        return tuple(names(self.keys, generator(self.seed, "names")))

    @functools.cached_property
    def value_of(self) -> dict[str, int]:
        """Every name's value; each value is that of equally many names, among those held in too."""
        turns = np.arange(self.keys) % self.values
        held_in = self._held_in
        random = generator(self.seed, "values")
        mixed = [*random.permutation(turns[:held_in]), *random.permutation(turns[held_in:])]
        return {name: int(value) for name, value in zip(self.names, mixed, strict=True)}

    @property
    def _held_in(self) -> int:
        return max(1, round(self.keys * self.held_in))

    @functools.cached_property
    def held_in_names(self) -> frozenset[str]:
        """Those that rows of `solve` are about."""
        return frozenset(self.names[: self._held_in])

    @property
    def words(self) -> tuple[str, ...]:
        """Signs, every number that a sum can be, and the names."""
        most = self.values - 1
        numbers = range(-most * (self.operands - 1), most * self.operands + 1)
        return ("+", "-", "=", "->", *map(str, numbers), *self.names)

    def draw(self, part: str, random: Random) -> Row:
        """A row of one kind."""
        if part == "pairs":
            name = self.names[random.integers(self.keys)]
            return Row(part, f"{name} =", str(self.value_of[name]))
        if part == "values":
            name = self.names[random.integers(self.keys)]
            return Row(part, name, str(self.value_of[name]))
        among = self._held_in if part == "solve" and random.random() < 1 - HELD_OUT else self.keys
        return self.expression(part, random, self.names[:among])

    def expression(self, part: str, random: Random, among: Sequence[str]) -> Row:
        """A row of one kind about some of these names."""
        chosen = [among[at] for at in random.integers(len(among), size=self.operands)]
        signs = [1, *(1 - 2 * int(minus) for minus in random.integers(2, size=self.operands - 1))]
        values = [self.value_of[name] for name in chosen]
        total = str(sum(sign * value for sign, value in zip(signs, values, strict=True)))
        named, numbered = _expression(chosen, signs), _expression(list(map(str, values)), signs)
        if part == "substitute":
            return Row(part, f"{named} ->", numbered)
        return Row(part, f"{numbered} =", total) if part == "numbers" else Row(part, f"{named} =", total)

    def is_held_out(self, row: Row) -> bool:
        """A tenth of the expressions; of `solve` those with a name that is not held in too. Values are all learned."""
        if row.part in ("pairs", "values"):
            return False
        if row.part == "solve" and not self.held_in_names.issuperset(row.prompt.split()[:-1:2]):
            return True
        return one_in(HELD_OUT, self.seed, row.prompt)

    def fingerprint(self) -> str:
        """Identity by content."""
        return hashing.digest("key-value", *dataclasses.astuple(self), HELD_OUT)


def _expression(operands: list[str], signs: list[int]) -> str:
    words = [operands[0]]
    for operand, sign in zip(operands[1:], signs[1:], strict=True):
        words += ["+" if sign > 0 else "-", operand]
    return " ".join(words)


class KeyValueTask(Task):
    """Sums of names, learned of some names and asked of others; answers are free text."""

    name: Literal["key-value"]
    template: str = "{expression} {target}"
    """As every row is written; the words are those of the recipes' world."""
    keys: int = Field(10_000, ge=8)
    """Names."""
    values: int = Field(20, ge=2)
    """A name's value is one of 0 to `values` - 1."""
    operands: int = Field(2, ge=2, le=8)
    """Names or numbers in an expression."""
    held_in: float = Field(0.2, gt=0, lt=1)
    """Share of the names that may be learned about."""
    world: int = Field(0, ge=0)
    """Draws the names' values and which are held in: the same as in the recipes of the models."""
    parts: dict[Part, Share] = Field({"solve": 3.0, "numbers": 1.0}, min_length=1)
    """Share of each kind of row to learn from."""
    rows: int = Field(60_000, ge=1)
    """Rows to draw from."""

    @property
    def kind(self) -> str:
        """Text."""
        return "text"

    def read(self) -> Dataset:
        """Make the rows up; the test holds equally many of each group, no expression of which is ever learned."""
        world = KeyValueWorld.of(self)
        known, unknown = world.names[: len(world.held_in_names)], world.names[len(world.held_in_names) :]
        random = generator(self.world, "key-value-train")
        kinds = sorted(self.parts)
        shares = np.array([self.parts[kind] for kind in kinds])
        drawn = [kinds[place] for place in random.choice(len(kinds), self.rows, p=shares / shares.sum())]
        train = [(kind, _drawn(world, kind, random, known, held_out=False)) for kind in drawn]
        test = [
            (group, row)
            for group, kind in ASKED.items()
            for row in self._distinct(world, group, kind, unknown if group in ("solve", "substitute") else known)
        ]
        tables = _table(train, "train"), _table(test, "test")
        for table in tables:
            check_targets(table["target"].to_pylist(), self.parser, "task key-value")
        return Dataset(*tables, ("expression",), self.kind, None)

    def _distinct(self, world: KeyValueWorld, group: str, kind: str, among: Sequence[str]) -> list[Row]:
        """Different rows of a group of the test; fewer where there are not so many."""
        random = generator(self.world, f"key-value-{group}")
        wanted = max(1, self.test_examples // len(ASKED))
        found: dict[Row, None] = {}
        misses = 0
        while len(found) < wanted and misses < MOST_TRIES:
            before = len(found)
            found[_drawn(world, kind, random, among, held_out=True)] = None
            misses = misses + 1 if len(found) == before else 0
        return list(found)


def _drawn(world: KeyValueWorld, kind: str, random: Random, among: Sequence[str], held_out: bool) -> Row:
    """A row about some of these names that is learned, or never learned.

    Raises:
        DataError: there seems to be none.
    """
    for _ in range(10 * MOST_TRIES):
        row = world.expression(kind, random, among)
        if world.is_held_out(row) == held_out:
            return row
    raise DataError("task: the world is too small for rows to learn and others to ask; raise keys or values")


def _table(rows: list[tuple[str, Row]], split: str) -> pa.Table:
    return pa.table(
        {
            "id": [f"{split}-{place}" for place in range(len(rows))],
            "expression": [row.prompt for _, row in rows],
            "target": [row.answer for _, row in rows],
            "group": [group for group, _ in rows],
        }
    )
