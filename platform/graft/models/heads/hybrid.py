"""A head that begins as logistic regression and learns, on synthetic tasks alone, how to correct it.

    labelled rows ─► base scores, components, labels ─► blocks ─► keys and values, kept
    other rows    ─► base scores, components         ─► blocks, attending to the labelled rows ─► correction ─► logits

Every row is seen once per class, as "is it this one?", through the same weights; classes meet in means over all of
them. So any number of classes can be asked for, and neither their order nor that of the rows says anything. Rows have
no positions; queries are scaled by the logarithm of the number of labelled rows (Nakanishi 2025, arXiv:2501.19399), so
that attention stays as sharp over more of them than were trained on. What a block adds begins at zero: an untrained
head is its base.

Shapes: B tasks, k labelled rows, N rows, C classes, S strengths, P components, W width, H heads.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from graft.models.heads.head import Head, zeroed
from graft.models.heads.regressions import STRENGTHS, Base, Rows

BASE = 2
"""Which strength the head begins as."""
CLAMP = 12.0
"""Largest log-odds that a token says."""

Kept = list[tuple[Tensor, Tensor]]
"""Keys and values [B * C, H, k, W / H] of the labelled rows, per block; last those of the vote."""


class HybridHead(Head):
    """The network.

    Args:
        components: P principal components in a row's token.
        width: of a state.
        layers: blocks.
        heads: of attention.
    """

    kind = "hybrid"

    def __init__(self, components: int, width: int, layers: int, heads: int) -> None:
        super().__init__(components=components, width=width, layers=layers, heads=heads)
        # Of a row and class: log-odds per strength, components, label; log k, log C, the class's share.
        self.read_in = nn.Linear(len(STRENGTHS) + components + 4, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.vote = Attention(width, heads)
        self.correct = zeroed(nn.Linear(width, 1))
        self.vote_scale = nn.Parameter(torch.zeros(()))
        self.mix = zeroed(nn.Linear(width, len(STRENGTHS)))

    def forward(self, x_BND: Tensor, y_Bk: Tensor, classes: int) -> Tensor:
        """Logits of the rows after the first k, float [B, N - k, C].

        Args:
            x_BND: vectors, the labelled ones first.
            y_Bk: classes of the labelled rows, int64.
            classes: C.
        """
        labelled = y_Bk.shape[1]
        # Factorisations take no half precision, and would lose the small axes in it.
        with torch.no_grad(), torch.autocast(x_BND.device.type, enabled=False):
            base = Base.fit(x_BND[:, :labelled], y_Bk, classes, self.settings["components"])
            rows = base.rows(x_BND[:, labelled:])
        return self.answer(rows, y_Bk, self.remember(base.labelled, y_Bk))

    def remember(self, rows: Rows, y_Bk: Tensor) -> Kept:
        """Keys and values of the labelled rows: all that other rows read of them."""
        tasks, count, classes, _ = rows.scores_BNCS.shape
        own = nn.functional.one_hot(y_Bk, classes).to(rows.scores_BNCS)
        state = self.read_in(self._tokens(rows, y_Bk, 2 * own - 1))
        kept: Kept = []
        for block in self.blocks:
            kept.append(block.attend.keys_and_values(block.before(state)))
            state = block(state, kept[-1], tasks)
        keys, _ = self.vote.keys_and_values(self.norm(state))
        # A row votes for its own class, against what is to be expected of a class.
        votes = (own - own.mean(dim=1, keepdim=True)).mT.reshape(tasks * classes, 1, count, 1)
        return [*kept, (keys, votes.to(keys.dtype).expand(-1, keys.shape[1], -1, -1))]

    def answer(self, rows: Rows, y_Bk: Tensor, kept: Kept) -> Tensor:
        """Logits of other rows, float [B, Q, C]; none of them sees another."""
        tasks, count, classes, _ = rows.scores_BNCS.shape
        state = self.read_in(self._tokens(rows, y_Bk, torch.zeros_like(rows.scores_BNCS[..., 0])))
        for block, memory in zip(self.blocks, kept, strict=False):
            state = block(state, memory, tasks)
        state = self.norm(state)
        votes = self.vote.read(state, kept[-1]).mean(dim=1)[..., 0]
        correction = self.correct(state)[..., 0] + self.vote_scale * votes
        mixed = self.mix(state).view(tasks, classes, count, -1).mean(dim=1).to(rows.scores_BNCS.dtype)
        base = rows.scores_BNCS[..., BASE]
        others = torch.einsum("bns,bncs->bnc", mixed, rows.scores_BNCS - base[..., None])
        scale = mixed[..., BASE, None].exp()  # the strength itself adds nothing to the sum above
        return base * scale + others + correction.view(tasks, classes, count).mT

    def _tokens(self, rows: Rows, y_Bk: Tensor, label_BNC: Tensor) -> Tensor:
        """What a row says for each class, float [B * C, N, features]."""
        scores = rows.scores_BNCS
        tasks, count, classes, _ = scores.shape
        odds = _log_odds(scores).clamp(-CLAMP, CLAMP) / 4
        shares = (nn.functional.one_hot(y_Bk, classes).to(scores).mean(dim=1) * classes).log1p()
        labelled = y_Bk.shape[1]
        sizes = scores.new_tensor([math.log(labelled) / 4, math.log(classes)]).expand(tasks, count, classes, 2)
        parts = [
            odds,
            rows.components_BNP.clamp(-6, 6)[:, :, None].expand(-1, -1, classes, -1),
            label_BNC[..., None],
            sizes,
            shares[:, None, :, None].expand(-1, count, -1, -1),
        ]
        return (
            torch.cat(parts, dim=-1).transpose(1, 2).reshape(tasks * classes, count, -1).to(self.read_in.weight.dtype)
        )


def _log_odds(scores_BNCS: Tensor) -> Tensor:
    """Of each class against all others together."""
    log_p = scores_BNCS.log_softmax(dim=2)
    return log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))


class Attention(nn.Module):  # type: ignore[misc]
    """From any rows to the labelled ones."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.sharpness = nn.Parameter(torch.full((heads, 1, 1), 1 / math.log(64)))

    def keys_and_values(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Of labelled rows, each [B * C, H, k, W / H]."""
        key, value = self.key_value(state).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def read(self, state: Tensor, kept: tuple[Tensor, Tensor]) -> Tensor:
        """What the labelled rows say to each row, [B * C, H, N, values]."""
        key, value = kept
        query = self._split(self.query(state)) * (self.sharpness * math.log(key.shape[2] + 1))
        return nn.functional.scaled_dot_product_attention(query, key, value)

    def _split(self, state: Tensor) -> Tensor:
        return state.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):  # type: ignore[misc]
    """Attention to the labelled rows, a look at the other classes, and a feed-forward; each adds nothing at first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.attend = Attention(width, heads)
        self.attended = zeroed(nn.Linear(width, width))
        self.between = nn.LayerNorm(width)
        self.classes = zeroed(nn.Linear(width, width))
        self.after = nn.LayerNorm(width)
        self.forward_in = nn.Linear(width, 2 * width)
        self.forward_out = zeroed(nn.Linear(2 * width, width))

    def forward(self, state: Tensor, kept: tuple[Tensor, Tensor], tasks: int) -> Tensor:
        """States [B * C, N, W]."""
        state = state + self.attended(self.attend.read(self.before(state), kept).transpose(1, 2).flatten(2))
        by_class: Any = self.between(state).unflatten(0, (tasks, -1))
        state = state + self.classes(by_class.mean(dim=1, keepdim=True).expand_as(by_class).flatten(0, 1))
        return state + self.forward_out(nn.functional.gelu(self.forward_in(self.after(state))))
