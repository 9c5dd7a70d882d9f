"""A bridge: one cross-attention from the anchor's states to an augmenting model's.

    augmenting states ─► norm ─► project ─► keys, values ─┐
    anchor states ─────► norm ─► queries ────────────────attend ─► output (begins at zero) ─► added to the anchor's

Bansal et al. 2024 (CALM, arXiv:2401.02412), section 3.1. Beyond the paper: the output projection begins at zero, so
that an untrained bridge leaves the anchor as it is; a null key and value are always visible, so that a token may look
at nothing; both states are normalised first, since models differ in scale (`prenorm`).

Shapes: B rows, T anchor tokens, S augmenting tokens, D and E widths of the two, H heads, K = D / H.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from graft.errors import ModelError

EXACT = 8
DISTANCES = 16
"""Distances 0 to 7 have a bias each; those beyond share one per doubling."""


def heads_for(heads: int | None, anchor_heads: int, width: int) -> int:
    """As many heads as asked for, or the anchor's, lowered to what divides its width.

    Raises:
        ModelError: the heads asked for do not divide the width.
    """
    if heads is None:
        return next(count for count in range(min(anchor_heads, width), 0, -1) if width % count == 0)
    if heads < 1 or width % heads:
        raise ModelError(
            f"heads: got {heads}, which does not divide the anchor's width {width}; give null or a divisor"
        )
    return heads


class Bridge(nn.Module):  # type: ignore[misc]
    """A trainable connection between a layer of an augmenting model and one of the anchor.

    Args:
        augmenting_width: E.
        anchor_width: D.
        heads: H, which divides D.
        rank: inner width of the projection from E to D; None for a full one.
        prenorm: normalise both states (RMS) first; False is the paper's.
        distance_bias: learn a bias per head by how long ago an augmenting token was read.
    """

    def __init__(
        self,
        augmenting_width: int,
        anchor_width: int,
        heads: int,
        rank: int | None = None,
        prenorm: bool = True,
        distance_bias: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.read_norm = nn.RMSNorm(augmenting_width) if prenorm else nn.Identity()
        self.ask_norm = nn.RMSNorm(anchor_width) if prenorm else nn.Identity()
        if rank is None:
            self.project: nn.Module = nn.Linear(augmenting_width, anchor_width, bias=False)
        else:
            low = nn.Linear(augmenting_width, rank, bias=False), nn.Linear(rank, anchor_width, bias=False)
            self.project = nn.Sequential(*low)
        self.query, self.key, self.value, self.output = (
            nn.Linear(anchor_width, anchor_width, bias=False) for _ in range(4)
        )
        nn.init.zeros_(self.output.weight)
        self.distance = nn.Parameter(_newest_first(heads)) if distance_bias else None

    def keys_values(self, states_BSE: Tensor | None, rows: int, null: bool) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, S (+ 1), K] of augmenting states.

        Args:
            states_BSE: frozen; None where there are none yet.
            rows: B.
            null: begin with the null key and value, as the first ones of a text do.
        """
        width = self.key.weight.shape[0]
        empty = self.key.weight.new_zeros(rows, self.heads, int(null), width // self.heads)
        if states_BSE is None:
            return empty, empty
        read = self.project(self.read_norm(states_BSE.to(self.key.weight)))
        keys, values = self._by_head(self.key(read)), self._by_head(self.value(read))
        if not null:
            return keys, values
        return torch.cat([empty.to(keys.dtype), keys], 2), torch.cat([empty.to(values.dtype), values], 2)

    def forward(
        self, anchor_BTD: Tensor, keys: Tensor, values: Tensor, visible_BTS: Tensor | None, ago_BTS: Tensor | None
    ) -> Tensor:
        """What is added to the anchor's states, [B, T, D].

        Args:
            anchor_BTD: the anchor's states.
            keys: [B, H, 1 + S, K], the null key first.
            values: likewise.
            visible_BTS: True where anchor token t may look at augmenting token s; None where it may at all of them.
            ago_BTS: how many augmenting tokens were read after token s when t was; read by `distance_bias` only.
        """
        asked = self._by_head(self.query(self.ask_norm(anchor_BTD.to(self.query.weight))))
        # A large model may lie on several devices.
        visible_BTS, ago_BTS = (None if one is None else one.to(asked.device) for one in (visible_BTS, ago_BTS))
        mask = None if visible_BTS is None else functional.pad(visible_BTS[:, None], (1, 0), value=True)
        if self.distance is not None and ago_BTS is not None:
            bias = functional.pad(self.distance.to(asked.dtype)[:, _bucket(ago_BTS)].transpose(0, 1), (1, 0))
            mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
        found = functional.scaled_dot_product_attention(asked, keys.to(asked.dtype), values.to(asked.dtype), mask)
        added: Tensor = self.output(found.transpose(1, 2).flatten(2))
        return added.to(anchor_BTD)

    def _by_head(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _newest_first(heads: int) -> Tensor:
    """The bias that training begins with: most of the attention (e⁴ to 1) on the newest token."""
    bias = torch.zeros(heads, DISTANCES)
    bias[:, 0] = 4.0
    return bias


def _bucket(ago: Tensor) -> Tensor:
    """Which bias a distance has."""
    ago = ago.clamp(min=0)
    far = EXACT + (ago.clamp(min=EXACT).float() / EXACT).log2().long()
    return torch.where(ago < EXACT, ago, far.clamp(max=DISTANCES - 1))
