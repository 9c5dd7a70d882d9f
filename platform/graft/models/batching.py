"""Sequences of different lengths as rectangular batches."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TOKENS_PER_BATCH = 4096
"""Positions of a batch, padding included; measured (MiniLM, CPU): 2,048 to 8,192 run alike, 16,384 half as fast."""

PADDING_PER_BATCH = 256
"""Positions without a token for which one more call pays off; measured (MiniLM, CPU): 512 docstrings of 18 tokens on
average take 3.0 ms each so, with 512 of them 5.0, and without a limit 6.7."""

LOGITS_PER_BATCH = 1 << 26
"""Logits of a batch (256 MiB as float32): vocabularies are large."""


def batches(
    lengths: Sequence[int] | NDArray[np.int64],
    tokens: int = TOKENS_PER_BATCH,
    rows: int | None = None,
    padding: int | None = None,
) -> list[NDArray[np.intp]]:
    """Indices of sequences that go through the model together, the longest first.

    Args:
        lengths: tokens of each sequence.
        tokens: positions of a batch, padding included; a longer sequence goes alone.
        rows: upper limit of sequences in a batch.
        padding: upper limit of positions without a token in a batch; None where a call costs more than any padding.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    found, start = [], 0
    while start < len(order):
        # The first is the longest, so it sets the width of its batch.
        size = max(1, tokens // max(1, lengths[order[start]]))
        size = min(size, rows) if rows else size
        if padding is not None:
            within = np.asarray(lengths)[order[start : start + size]]
            # Padding only grows as more, and shorter, ones are added.
            size = int(np.searchsorted(np.cumsum(within[0] - within), padding, side="right"))
        found.append(order[start : start + size])
        start += size
    return found


def padded(rows: Sequence[Sequence[int]], device: torch.device, left: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both int64 [B, T]; the mask is 1 on tokens and 0 on padding (id 0)."""
    width = max(map(len, rows))
    ids = np.zeros((len(rows), width), np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        here = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, here] = row
        mask[index, here] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def token_log_probabilities(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Natural-log probability of each target token, float64 [B, T] on the CPU."""
    chosen_BT = logits_BTV.gather(-1, targets_BT[..., None])[..., 0]
    return (chosen_BT.float() - logits_BTV.float().logsumexp(-1)).double().cpu()
