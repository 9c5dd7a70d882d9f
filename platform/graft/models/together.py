"""Batches that are written from their first token to their last, by transformers' own `generate`.

For models whose rows cannot join a batch that has begun: encoder-decoders, soft prompts, composed models, those with
states of their own or without a cache, and those that must not be padded.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from graft.models import drawing
from graft.models.asked import Asked, Emit, More
from graft.models.growing import Growing
from graft.models.writing import end_tokens, write

if TYPE_CHECKING:
    from graft.models.language import CausalModel
    from graft.models.local import LocalModel


class Together:
    """Writes with any model whose weights are in this process.

    Args:
        model: causal or encoder-decoder.
        max_sequences: rows of a batch.
    """

    def __init__(self, model: "LocalModel", max_sequences: int) -> None:
        self.model, self.max_sequences = model, max_sequences

    def write(self, first: Sequence[Asked], more: More, emit: Emit) -> None:
        """As `Writer.write`; the model is free for others between two batches."""
        waiting = list(first)
        while True:
            if len(waiting) < self.max_sequences:
                waiting += more(self.max_sequences - len(waiting))
            now, waiting = waiting[: self.max_sequences], waiting[self.max_sequences :]
            if not now:
                return
            with self.model.lock, torch.inference_mode():
                self._write([one for one in now if not one.gone], emit)

    def _write(self, several: Sequence[Asked], emit: Emit) -> None:
        causal, ends = self.model.kind == "causal", end_tokens(self.model)
        prompts = [one.ids or self.model.rows_to_write([one.prompt], one.max_new_tokens)[0] for one in several]
        texts = [
            Growing(asked, ids, ids if causal else [], self.model.spelling, ends)
            for asked, ids in zip(several, prompts, strict=True)
        ]
        for members in self._fitting(texts) if causal else [texts]:
            rows = [prompts[texts.index(one)] for one in members]
            most = max((one.asked.max_new_tokens for one in members), default=0)
            write(
                self.model, rows, most, (), None,
                functools.partial(self._beside, members), functools.partial(self._heard_by, emit, members),
            )  # fmt: skip

    def _beside(self, members: list[Growing], batch: Sequence[int]) -> dict[str, Any]:
        if self.model.kind != "causal":
            return {}
        return cast("CausalModel", self.model).beside([members[row].asked.prompt for row in batch])

    def _heard_by(self, emit: Emit, members: list[Growing], batch: Sequence[int]) -> "Hearing":
        return Hearing([members[row] for row in batch], emit)

    def _fitting(self, texts: list[Growing]) -> list[list[Growing]]:
        """Texts that may go on as long as the longest of those beside them: rows that are over are computed too."""
        found: list[list[Growing]] = []
        limit = self.model.context_tokens
        for one in sorted(texts, key=lambda one: one.asked.max_new_tokens):
            prompt = max([one.prompt_tokens, *(other.prompt_tokens for other in found[-1])]) if found else 0
            if found and (limit is None or prompt + one.asked.max_new_tokens <= limit):
                found[-1].append(one)
            else:
                found.append([one])
        return found


class Hearing:
    """Chooses and tells the tokens of a batch while `generate` writes it."""

    def __init__(self, texts: list[Growing], emit: Emit) -> None:
        self.texts, self.emit = texts, emit
        self._logits_BV: Tensor | None = None

    @property
    def tokens(self) -> list[int]:
        """That each row wrote."""
        return [text.tokens for text in self.texts]

    def scores(self, _ids_BT: Tensor, logits_BV: Tensor, /) -> Tensor:
        """Scores [B, V], the highest of which is each row's next token."""
        self._logits_BV = logits_BV
        return drawing.scores(logits_BV, self.texts)

    def ended(self, ids_BT: Tensor, _scores: Any, /, **_options: Any) -> Tensor:
        """Tell what the newest tokens say; True [B] where a row is over."""
        assert self._logits_BV is not None
        tokens = ids_BT[:, -1].tolist()
        worths = drawing.worths(self._logits_BV, tokens, self.texts)
        for text, token, worth in zip(self.texts, tokens, worths, strict=True):
            piece = None if text.over else text.add(token, worth)
            if piece is not None:
                self.emit(text.asked, piece)
        return torch.tensor([text.over for text in self.texts], device=ids_BT.device)
