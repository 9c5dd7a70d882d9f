"""One cache for everything that a composed model has read: the anchor, the augmenting models, and the bridges."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from graft.errors import ModelError
from graft.models.calm.reading import Listener


@dataclasses.dataclass
class Heard:
    """What one augmenting model has read of every row.

    Shapes: B rows, S columns of tokens; rows of fewer tokens have gaps, which the mask says.
    """

    ids_BS: Tensor | None = None
    mask_BS: Tensor | None = None
    """True on tokens; None where there are no gaps."""
    listeners: list[Listener] | None = None
    """With a tokenizer of its own: each row's text."""
    own: Any = None
    """The augmenting model's cache, where it can go on from one."""

    @property
    def columns(self) -> int:
        """S."""
        return 0 if self.ids_BS is None else self.ids_BS.shape[1]

    def add(self, ids_BS: Tensor, mask_BS: Tensor | None) -> None:
        """Append columns."""
        if self.ids_BS is None:
            self.ids_BS, self.mask_BS = ids_BS, mask_BS
            return
        if not ids_BS.shape[1]:
            return  # the bridges keep the columns that they know, also where the longest row was dropped
        if mask_BS is not None or self.mask_BS is not None:
            self.mask_BS = torch.cat([_full(self.mask_BS, self.ids_BS), _full(mask_BS, ids_BS)], 1)
        self.ids_BS = torch.cat([self.ids_BS, ids_BS], 1)
        if self.own is None and self.mask_BS is not None:
            self._close_gaps()

    def _close_gaps(self) -> None:
        """Each row's tokens to its beginning: what is read anew may count columns, as a window of attention does."""
        assert self.ids_BS is not None
        assert self.mask_BS is not None
        order = (~self.mask_BS).long().argsort(dim=1, stable=True)[:, : self.longest]
        self.ids_BS, self.mask_BS = self.ids_BS.gather(1, order), self.mask_BS.gather(1, order)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.columns if self.mask_BS is None else int(self.mask_BS.sum(1).max())

    def tokens(self, rows: int) -> list[int]:
        """Tokens of each row."""
        return [self.columns] * rows if self.mask_BS is None else self.mask_BS.sum(1).tolist()

    def pick(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was."""
        if self.ids_BS is not None:
            self.ids_BS = self.ids_BS[rows]
        if self.mask_BS is not None:
            self.mask_BS = self.mask_BS[rows]
        if self.listeners is not None:
            self.listeners = [self.listeners[row].copied() for row in rows.tolist()]


def _full(mask_BS: Tensor | None, ids_BS: Tensor) -> Tensor:
    return torch.ones_like(ids_BS, dtype=torch.bool) if mask_BS is None else mask_BS


class CalmCache(DynamicCache):  # type: ignore[misc]
    """The anchor's cache, with those of the augmenting models and of the bridges, always of the same rows.

    Args:
        anchor: the anchor's configuration.
        augmenting: those of the augmenting models; None for one that must read everything again at each step.
        bridges: number of bridges.
    """

    def __init__(self, anchor: Any, augmenting: list[Any], bridges: int) -> None:
        super().__init__(config=anchor)
        self._made_of = (anchor, augmenting, bridges)
        self._forget()

    def _forget(self) -> None:
        _, augmenting, bridges = self._made_of
        self.heard = [Heard(own=None if config is None else DynamicCache(config=config)) for config in augmenting]
        self.bridged: list[Any] = [None] * bridges
        """Keys and values of every bridge; None before the first token."""
        self.prompt: Tensor | None = None
        """[B] tokens of each row's prompt, where writing began with one."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was, in everything."""
        super().reorder_cache(beam_idx)
        for own in self._filled():
            own.reorder_cache(beam_idx)
        self._pick(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row so many times."""
        rows = torch.arange(self._rows()).repeat_interleave(repeats)
        super().batch_repeat_interleave(repeats)
        for own in self._filled():
            own.batch_repeat_interleave(repeats)
        self._pick(rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        """These rows only."""
        super().batch_select_indices(indices)
        for own in self._filled():
            own.batch_select_indices(indices)
        self._pick(indices)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._forget()

    def crop(self, *_args: Any, **_options: Any) -> NoReturn:
        """Refuse: words that were read are not taken back.

        Raises:
            ModelError: always.
        """
        raise ModelError("a composed model's cache cannot be cropped: assisted decoding is not supported; leave it out")

    def _filled(self) -> Iterator[Any]:
        """The caches of the augmenting models that have read something."""
        return (one.own for one in self.heard if one.own is not None and one.ids_BS is not None)

    def _rows(self) -> int:
        return next(len(keys) for keys, _ in filter(None, self.bridged))

    def _pick(self, rows: Tensor) -> None:
        for heard in self.heard:
            heard.pick(rows.to(heard.ids_BS.device) if heard.ids_BS is not None else rows)
        self.bridged = [
            one and (one[0][rows.to(one[0].device)], one[1][rows.to(one[1].device)]) for one in self.bridged
        ]
        if self.prompt is not None:
            self.prompt = self.prompt[rows.to(self.prompt.device)]
