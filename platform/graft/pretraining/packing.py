"""Batches of text for a model from scratch: pieces of one long row of tokens, each a function of the batch's number.

Every epoch cuts the row into pieces at another place and takes them in another order; nothing is padded. A piece may
hold the end of one document and the beginning of the next, with the start token between them.
"""

import dataclasses
import functools

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from graft import hashing
from graft.errors import DataError
from graft.models.objective import NO_TARGET
from graft.pretraining.corpus import SPECIAL, Tokens
from graft.pretraining.language import table
from graft.seeds import generator


@dataclasses.dataclass(frozen=True)
class Stage:
    """Batches of one length of piece."""

    begins: int
    """The first batch."""
    length: int
    """Tokens of a piece."""


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The endless sequence of batches of a text.

    Args:
        tokens: the text.
        stages: lengths of pieces, in turn.
        tokens_per_batch: tokens of a batch; at least one piece is taken.
        seed: of cutting and order.
    """

    tokens: Tokens
    stages: tuple[Stage, ...]
    tokens_per_batch: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse a text that is shorter than a batch.

        Raises:
            DataError: it is.
        """
        longest = max(stage.length for stage in self.stages)
        if len(self.tokens) < max(self.tokens_per_batch, longest) + 1:
            raise DataError(
                f"the corpus has {len(self.tokens)} tokens, fewer than one batch of {self.tokens_per_batch} in pieces "
                f"of {longest}; lower training.tokens_per_batch and model.context, or give more text"
            )

    def batch(self, position: int) -> pa.Table:
        """The pieces of one batch: each token is to be predicted from those before it."""
        cut = self._cut(position)
        return table(cut[:, :-1], cut[:, 1:])

    def _cut(self, position: int) -> Tokens:
        """Pieces and the token after each, int32 [B, T + 1]."""
        number, stage = max((place, stage) for place, stage in enumerate(self.stages) if stage.begins <= position)
        rows = max(1, self.tokens_per_batch // stage.length)
        pieces = (len(self.tokens) - 1) // stage.length - 1  # one is left for cutting elsewhere
        pieces = max(pieces, rows)
        first = (position - stage.begins) * rows
        found = np.arange(first, first + rows)
        starts = [self._start(number, stage.length, pieces, int(at)) for at in found]
        return np.stack([self.tokens[start : start + stage.length + 1] for start in starts])

    def _start(self, number: int, length: int, pieces: int, at: int) -> int:
        """Where the piece begins that comes as the stage's `at`-th."""
        epoch, place = divmod(at, pieces)
        order, offset = _epoch(self.seed, number, epoch, pieces, len(self.tokens) - 1 - pieces * length)
        return int(order[place]) * length + offset

    def fingerprint(self) -> str:
        """Identity by content."""
        stages = [dataclasses.astuple(stage) for stage in self.stages]
        return hashing.digest(self.tokens, stages, self.tokens_per_batch, self.seed)


@functools.lru_cache(maxsize=8)
def _epoch(seed: int, stage: int, epoch: int, pieces: int, spare: int) -> tuple[NDArray[np.int64], int]:
    """The order of the pieces, and where the first one begins."""
    random = generator(seed, f"pieces-{stage}-{epoch}")
    return random.permutation(pieces), int(random.integers(spare + 1))


@dataclasses.dataclass(frozen=True)
class Gaps(Pieces):
    """The same pieces, to be filled where tokens are missing.

    Args:
        share: of the tokens, to be guessed.
        mask: the token that stands in their place.
        vocabulary: number of tokens.
    """

    share: float
    mask: int
    vocabulary: int

    def batch(self, position: int) -> pa.Table:
        """The pieces of one batch, some tokens masked, some replaced, some left (80, 10, 10 %), to be guessed."""
        whole = self._cut(position)[:, :-1]
        random = generator(self.seed, f"gaps-{position}")
        guessed = (random.random(whole.shape) < self.share) & (whole >= len(SPECIAL))
        guessed[:, 0] |= ~guessed.any(axis=1)  # a row without a target has no loss
        how = random.random(whole.shape)
        other = random.integers(len(SPECIAL), self.vocabulary, whole.shape).astype(np.int32)
        seen = np.where(guessed & (how < 0.8), np.int32(self.mask), np.where(guessed & (how < 0.9), other, whole))
        return table(seen, np.where(guessed, whole, np.int32(NO_TARGET)))

    def fingerprint(self) -> str:
        """Identity by content."""
        return hashing.digest(super().fingerprint(), self.share, self.mask, self.vocabulary)


def stages_of(blocks: tuple[tuple[int, float], ...], context: int, max_steps: int) -> tuple[Stage, ...]:
    """A recipe's `blocks` as stages: where each one's share of the steps begins."""
    begins, found = 0.0, []
    for length, share in blocks or ((context, 1.0),):
        found.append(Stage(round(begins * max_steps), length))
        begins += share
    return tuple(found)
