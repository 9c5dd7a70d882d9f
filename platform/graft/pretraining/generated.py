"""Rows that are made up instead of read: a seeded little world, its words, and what is said of it.

    world ─► vocabulary, one token per word
         └─► rows by (seed, batch): prompt ─► answer, never one of those that are held out

Words stand between spaces. The loss is on the answer and its end token.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from graft import hashing
from graft.errors import DataError
from graft.models.objective import labels_of
from graft.pretraining.corpus import END, PAD, SPECIAL, START, finished
from graft.pretraining.language import table
from graft.seeds import generator
from graft.tasks.worlds import Random, Row

MOST_TRIES = 10_000
"""Draws in a row that may all be held-out rows."""
MOST_VAIN = 1000
"""Rows in a row that were all found before: then there are hardly more."""


class Generator(Protocol):
    """A little world."""

    @property
    def words(self) -> tuple[str, ...]:
        """Every word that its rows use."""
        ...

    def draw(self, part: str, random: Random) -> Row:
        """A row of one kind."""
        ...

    def is_held_out(self, row: Row) -> bool:
        """Whether it is never learned."""
        ...

    def fingerprint(self) -> str:
        """Identity by content."""
        ...


def word_tokenizer(words: Sequence[str], context: int) -> Any:
    """A transformers tokenizer with one token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = [*SPECIAL, *dict.fromkeys(words)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    return finished(tokenizer, context)


@dataclasses.dataclass(frozen=True)
class GeneratedRows:
    """The endless sequence of batches of a world.

    Args:
        world: what is drawn from.
        parts: share of each kind of row.
        vocabulary: number of each word.
        context: longest row, in tokens.
        tokens_per_batch: tokens of a batch, as far as rows fill it.
        seed: of the rows.
    """

    world: Generator
    parts: Mapping[str, float]
    vocabulary: Mapping[str, int]
    context: int
    tokens_per_batch: int
    seed: int

    def batch(self, position: int) -> pa.Table:
        """As many rows as fill the batch, longest first."""
        random = generator(self.seed, f"rows-{position}")
        found: list[Row] = []
        widest = 0
        while True:
            row = self.row(random)
            ids, _ = self.tokens(row)
            widest = max(widest, len(ids))
            if found and widest * (len(found) + 1) > self.tokens_per_batch:
                return self.table(found)
            found.append(row)

    def row(self, random: Random, held_out: bool = False) -> Row:
        """A row that is learned, or one that is held out.

        Raises:
            DataError: there is none such.
        """
        kinds = sorted(self.parts)  # a recipe's order of them is no part of what it is
        shares = np.array([self.parts[kind] for kind in kinds])
        for _ in range(MOST_TRIES):
            row = self.world.draw(kinds[random.choice(len(kinds), p=shares / shares.sum())], random)
            if self.world.is_held_out(row) == held_out:
                return row
        what = "is held out" if held_out else "may be learned: all are held out"
        raise DataError(f"data: none of {MOST_TRIES} rows drawn in a row {what}; make the world larger")

    def held_out(self, count: int) -> list[Row]:
        """Different rows that are never learned; fewer where there are not so many, none where all are learned."""
        random = generator(self.seed, "held-out")
        found: dict[Row, None] = {}
        vain = 0
        with contextlib.suppress(DataError):
            while len(found) < count and vain < MOST_VAIN:
                row = self.row(random, held_out=True)
                vain = vain + 1 if row in found else 0
                found[row] = None
        return list(found)

    def tokens(self, row: Row) -> tuple[list[int], list[int]]:
        """Tokens of prompt and answer, from start to end token.

        Raises:
            DataError: they do not fit the context.
        """
        number = self.vocabulary
        prompt = [number[START], *(number[word] for word in row.prompt.split())]
        answer = [*(number[word] for word in row.answer.split()), number[END]]
        if len(prompt) + len(answer) > self.context:
            raise DataError(
                f"data: a row has {len(prompt) + len(answer)} tokens, model.context is {self.context}; make it longer"
            )
        return [*prompt, *answer[:-1]], labels_of(len(prompt), answer)

    def table(self, rows: Sequence[Row]) -> pa.Table:
        """Rows as `Trains.encode` gives them, longest first."""
        pairs = sorted((self.tokens(row) for row in rows), key=lambda pair: -len(pair[0]))
        return table([ids for ids, _ in pairs], [labels for _, labels in pairs])

    def fingerprint(self) -> str:
        """Identity by content."""
        settings = (dict(self.parts), self.context, self.tokens_per_batch, self.seed)
        return hashing.digest(self.world.fingerprint(), *settings)
