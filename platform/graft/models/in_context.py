"""States of a text inside a prompt that shows others: what comes before is computed once.

    block_1 block_2 ... block_k  ─► keys and values, kept ─┬─► what is asked behind all of them, many at once
                                                           └─► each block behind all the others (leave one out)

A block is a row with its label, a blank line at its end; it becomes tokens by itself, so that a prompt of several is
their tokens in a row. Of each block the states of its own text's tokens are averaged.

Shapes: T tokens, D width; Q rows asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graft.errors import ModelError
from graft.models import prefixes
from graft.models.language import CausalModel

PACKED_TOKENS = 1024
"""Of what is asked at once: each attends to all that is packed with it, masked."""


@dataclass(frozen=True)
class Block:
    """A part of a prompt."""

    ids: list[int]
    begin: int
    """First token whose state counts."""
    end: int
    """The token after the last one that counts."""

    def cut(self) -> "Block":
        """Without what follows the tokens that count: they have not read it."""
        return Block(self.ids[: self.end], self.begin, self.end)


class InContext:
    """A causal model that reads blocks behind others.

    Args:
        model: its handle.
        shown: the blocks of the prompt, in order.
        share: compute what prompts have in common once; False computes every prompt whole, to compare with.
    """

    def __init__(self, model: CausalModel, shown: Sequence[Block], share: bool = True) -> None:
        self.model, self.shown = model, list(shown)
        # No block is computed before the first one's output: nothing fills a cache, which would know no position then.
        self.share = share and model.shares_prefixes and model.source.layer != 0
        self.lead = model.never_empty([]) if not model.lead else list(model.lead)

    @property
    def prompt_tokens(self) -> int:
        """Of all blocks together."""
        return len(self.lead) + sum(len(block.ids) for block in self.shown)

    def beside(self) -> NDArray[np.float32]:
        """Each shown block in the one prompt of all, [k, D]: it sees those before it."""
        with self.model.lock, torch.inference_mode():
            states = self._read([*self.lead, *_joined(self.shown)], None)
            starts = np.cumsum([len(self.lead), *(len(block.ids) for block in self.shown)])
            return np.stack([_mean(states[start:], block) for start, block in zip(starts, self.shown, strict=False)])

    def left_out(self, exact: bool) -> NDArray[np.float32]:
        """Each shown block behind all the others, [k, D].

        Args:
            exact: the others stand in their order, which costs k^2 / 2 blocks; False divides and conquers, where each
                block sees another order of the others, for k log2(k) blocks.
        """
        count = len(self.shown)
        found = np.zeros((count, self.model.dimensions), np.float32)
        with self.model.lock, torch.inference_mode():
            if not self.share:
                for place in range(count):
                    found[place] = self._whole([*self.shown[:place], *self.shown[place + 1 :]], self.shown[place])
            elif exact:
                self._in_order(found)
            else:
                cache = self._empty()
                self._read(self.lead, cache)
                self._divided(range(count), cache, found)
        return found

    def asked(self, rows: Sequence[Block]) -> NDArray[np.float32]:
        """Other blocks, each behind all that are shown, [Q, D]."""
        with self.model.lock, torch.inference_mode():
            if not self.share:
                return np.stack([self._whole(self.shown, row) for row in rows])
            cache = self._shown_cache()
            cut = [row.cut() for row in rows]
            if not self.model.packs_prompts:
                return np.stack([_mean(self._read(row.ids, prefixes.copied(cache)), row) for row in cut])
            found = np.zeros((len(rows), self.model.dimensions), np.float32)
            for some in _packs([len(row.ids) for row in cut]):
                found[some] = self._packed([cut[at] for at in some], cache)
            return found

    def _shown_cache(self) -> Any:
        """Keys and values of all that is shown; kept with the model, for who asks again."""
        tokens = [*self.lead, *_joined(self.shown)]
        cache, known = self.model.read_prefixes.nearest(tokens)
        cache = self._empty() if cache is None else cache
        if known < len(tokens):
            self._read(tokens[known:], cache)
            self.model.read_prefixes.keep(tokens, cache)
        return cache

    def _in_order(self, found: NDArray[np.float32]) -> None:
        """From the last block to the first, behind ever fewer of the blocks before it."""
        cache = self._empty()
        self._read([*self.lead, *_joined(self.shown)], cache)
        for place in reversed(range(len(self.shown))):
            before = len(self.lead) + sum(len(block.ids) for block in self.shown[:place])
            cache = prefixes.cropped(cache, before)
            own = self.shown[place].cut()
            after = _joined(self.shown[place + 1 :])
            states = self._read([*after, *own.ids], prefixes.copied(cache))
            found[place] = _mean(states[len(after) :], own)

    def _divided(self, places: Sequence[int], cache: Any, found: NDArray[np.float32]) -> None:
        """Each of these blocks, behind what the cache holds and the other ones of these."""
        if len(places) == 1:
            own = self.shown[places[0]].cut()
            found[places[0]] = _mean(self._read(own.ids, prefixes.copied(cache)), own)
            return
        halves = places[: len(places) // 2], places[len(places) // 2 :]
        for some, others in (halves, halves[::-1]):
            grown = prefixes.copied(cache)
            self._read(_joined([self.shown[place] for place in others]), grown)
            self._divided(some, grown, found)

    def _whole(self, before: Sequence[Block], own: Block) -> NDArray[np.float32]:
        """One prompt, computed from its beginning."""
        own = own.cut()
        given = [*self.lead, *_joined(before)]
        return _mean(self._read([*given, *own.ids], None)[len(given) :], own)

    def _read(self, ids: Sequence[int], cache: Any) -> Tensor:
        """States [T, D] of tokens behind what the cache holds; it holds them too afterwards."""
        known = 0 if cache is None else cache.get_seq_length()
        if not ids:
            return torch.zeros(0, self.model.dimensions)
        tokens = torch.tensor([list(ids)], device=self.model.network.device)
        positions = torch.arange(known, known + len(ids), device=tokens.device)[None]
        mask = torch.ones(1, known + len(ids), dtype=torch.long, device=tokens.device)
        states = self.model.states(tokens, mask, position_ids=positions, past_key_values=cache)
        self.model.usage.add(len(ids), 1)
        return states[0]

    def _packed(self, rows: Sequence[Block], cache: Any) -> NDArray[np.float32]:
        """Several blocks in one sequence, each seeing what the cache holds and itself."""
        device = self.model.network.device
        lengths = [len(row.ids) for row in rows]
        known = cache.get_seq_length()
        tokens = torch.tensor([_joined(rows)], device=device)
        own = torch.repeat_interleave(torch.arange(len(rows), device=device), torch.tensor(lengths, device=device))
        place = torch.cat([torch.arange(length, device=device) for length in lengths])
        seen = (own[:, None] == own[None]) & (place[:, None] >= place[None])
        mask = torch.cat([seen.new_ones(len(own), known), seen], dim=1)[None, None]
        states = self.model.states(
            tokens, mask, position_ids=(known + place)[None], past_key_values=prefixes.copied(cache)
        )[0]
        self.model.usage.add(sum(lengths), len(rows))
        starts = np.cumsum([0, *lengths])
        return np.stack([_mean(states[start:], row) for start, row in zip(starts, rows, strict=False)])

    def _empty(self) -> Any:
        from transformers.cache_utils import DynamicCache

        return DynamicCache(config=self.model.config)


def _joined(blocks: Sequence[Block]) -> list[int]:
    return [token for block in blocks for token in block.ids]


def _mean(states_TD: Tensor, block: Block) -> NDArray[np.float32]:
    found: NDArray[np.float32] = states_TD[block.begin : block.end].float().mean(dim=0).cpu().numpy()
    return found


def _packs(lengths: Sequence[int]) -> list[list[int]]:
    """Which blocks are asked together, in order."""
    packs: list[list[int]] = [[]]
    filled = 0
    for at, length in enumerate(lengths):
        if packs[-1] and filled + length > PACKED_TOKENS:
            packs.append([])
            filled = 0
        packs[-1].append(at)
        filled += length
    return packs


def as_block(model: CausalModel, text: str, begin: int, end: int) -> Block:
    """A text as tokens, and those of them that lie between two of its characters.

    Raises:
        ModelError: the tokenizer cannot say where tokens lie, none lies there, or the network does not know one.
    """
    if not model.tokenizer.is_fast:
        raise ModelError(f"{model.source.source}: its tokenizer cannot say where tokens end; use protocol: stream")
    encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    model.refuse_unknown([encoded["input_ids"]])
    inside = [at for at, (first, last) in enumerate(encoded["offset_mapping"]) if last > begin and first < end]
    if not inside:
        raise ModelError(f"{text[begin:end]!r} has no token; drop empty texts")
    return Block(list(encoded["input_ids"]), inside[0], inside[-1] + 1)
