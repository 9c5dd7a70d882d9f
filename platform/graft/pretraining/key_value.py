"""Sums whose operands are names: one model knows the names' values, another one how to add.

Bansal et al. 2024 (CALM, arXiv:2401.02412, section 4.1). Each part of it is a kind of row:

    pairs       bako =                 7
    substitute  bako + lemi - bako ->  7 + 3 - 7
    numbers     7 + 3 - 7 =            3
    solve       bako + lemi - bako =   3
"""

import dataclasses
import functools
from typing import Self

import numpy as np

from graft import hashing
from graft.pretraining.generated import Random, Row, names, one_in
from graft.pretraining.recipe import KeyValue
from graft.seeds import generator

HELD_OUT = 0.1
"""Share of the expressions that are never learned."""


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
    def of(cls, data: KeyValue) -> Self:
        """What a recipe says."""
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
        among = self._held_in if part == "solve" and random.random() < 1 - HELD_OUT else self.keys
        chosen = [self.names[at] for at in random.integers(among, size=self.operands)]
        signs = [1, *random.choice([1, -1], self.operands - 1)]
        values = [self.value_of[name] for name in chosen]
        total = str(sum(sign * value for sign, value in zip(signs, values, strict=True)))
        named, numbered = _expression(chosen, signs), _expression(list(map(str, values)), signs)
        if part == "substitute":
            return Row(part, f"{named} ->", numbered)
        return Row(part, f"{numbered} =", total) if part == "numbers" else Row(part, f"{named} =", total)

    def is_held_out(self, row: Row) -> bool:
        """A tenth of the expressions; of `solve` those with a name that is not held in. Pairs are all learned."""
        if row.part == "pairs":
            return False
        if row.part == "solve" and self.held_in < 1:
            return not self.held_in_names.issuperset(row.prompt.split()[:-1:2])
        return one_in(HELD_OUT, self.seed, row.prompt)

    def fingerprint(self) -> str:
        """Identity by content."""
        return hashing.digest("key-value", *dataclasses.astuple(self), HELD_OUT)


def _expression(operands: list[str], signs: list[int]) -> str:
    words = [operands[0]]
    for operand, sign in zip(operands[1:], signs[1:], strict=True):
        words += ["+" if sign > 0 else "-", operand]
    return " ".join(words)
