"""A causal transformer that reads labelled points and says the next one's label.

    x_1 y_1 x_2 y_2 ... x_N ─► read in ─► GPT-2 blocks ─► read out, at every x ─► logit of y = 1

Bhatia et al. 2023 (TART, arXiv:2306.07536, section 4.1). A label is written into the first coordinate, as in the
authors' code, whose weights fit. Deviations: the loss is computed from logits, and positions begin as waves.

Shapes: B tasks, N points, D dimensions, T = 2 N positions, W width.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from graft.models import prefixes
from graft.models.heads.head import Head


class TartHead(Head):
    """The network.

    Args:
        dimensions: D of an input.
        points: longest sequence of points.
        width: of a state.
        layers: blocks.
        heads: of attention.
    """

    kind = "tart"

    def __init__(self, dimensions: int, points: int, width: int, layers: int, heads: int) -> None:
        from transformers import GPT2Config, GPT2Model

        super().__init__(dimensions=dimensions, points=points, width=width, layers=layers, heads=heads)
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        sizes = {"n_positions": 2 * points, "n_embd": width, "n_layer": layers, "n_head": heads}
        self.read_in = nn.Linear(dimensions, width)
        # It is given states, never tokens: its table of tokens has one row.
        self.backbone = GPT2Model(GPT2Config(vocab_size=1, bos_token_id=None, eos_token_id=None, **sizes, **dropout))
        self.read_out = nn.Linear(width, 1)
        # Positions must be told apart before anything else can be learned. The shipped head's recipe ends at 87.4 %
        # with waves, and at 80.3 % with the authors' small random numbers.
        with torch.no_grad():
            self.backbone.wpe.weight.copy_(0.5 * _waves(2 * points, width))

    def forward(self, x_BND: Tensor, y_BN: Tensor) -> Tensor:
        """Logit of y = 1 for every point, given those before it, float [B, N]; a point's own label is not read."""
        inputs = self.read_in(self._interleaved(x_BND, y_BN))
        states_BTW = self.backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return self.read_out(states_BTW[:, ::2])[..., 0]

    @staticmethod
    def _interleaved(x_BND: Tensor, y_BN: Tensor) -> Tensor:
        """Points and labels in turn, [B, T, D]."""
        label_BND = torch.zeros_like(x_BND)
        label_BND[:, :, 0] = y_BN
        return torch.stack([x_BND, label_BND], dim=2).flatten(1, 2)

    def remember(self, x_BkD: Tensor, y_Bk: Tensor) -> Any:
        """Keys and values of the labelled points: all that other points read of them."""
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache(config=self.backbone.config)
        self.backbone(inputs_embeds=self.read_in(self._interleaved(x_BkD, y_Bk)), past_key_values=cache, use_cache=True)
        return cache

    def answer(self, x_BQD: Tensor, kept: Any) -> Tensor:
        """Logits of y = 1, float [B, Q], for other points: each stands behind the labelled ones, none sees another."""
        tasks, count = x_BQD.shape[:2]
        labelled = kept.get_seq_length()
        own = torch.eye(count, dtype=torch.bool, device=x_BQD.device)
        mask = torch.cat([own.new_ones(count, labelled), own], dim=1).expand(tasks, 1, -1, -1)
        states = self.backbone(
            inputs_embeds=self.read_in(x_BQD),
            attention_mask=mask,
            position_ids=torch.full((tasks, count), labelled, device=x_BQD.device),
            past_key_values=prefixes.copied(kept),
            use_cache=True,
        ).last_hidden_state
        return self.read_out(states)[..., 0]


def _waves(positions: int, width: int) -> Tensor:
    """Sines and cosines of positions, [positions, width] (Vaswani et al. 2017, arXiv:1706.03762, section 3.5)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(positions)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
