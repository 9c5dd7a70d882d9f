"""The next token of each text: the most likely one, or one drawn by its probability, and what it is worth.

Shapes: B texts, V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from graft.models.asked import Token

if TYPE_CHECKING:
    from graft.models.growing import Growing


class Gumbel:
    """Turns the most likely token into a drawn one: noise is added to the logits (the Gumbel-max trick).

    Each row has its own stream of noise, so what is drawn does not depend on the batch.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self.temperatures = [temperature] * len(seeds)
        self.streams = [stream(seed) for seed in seeds]

    def __call__(self, _ids_BT: Tensor, logits_BV: Tensor) -> Tensor:
        """Logits [B, V] of the next token, with noise."""
        return noisy(logits_BV, self.temperatures, self.streams)


def stream(seed: int) -> np.random.Generator:
    """A text's own draws."""
    return np.random.Generator(np.random.Philox(seed))


def noisy(
    logits_BV: Tensor,
    temperatures: Sequence[float],
    streams: Sequence[np.random.Generator],
    top_ps: Sequence[float] | None = None,
) -> Tensor:
    """Scores [B, V], float32, the highest of which is a drawn token.

    Args:
        logits_BV: of any floating-point type.
        temperatures: of each text, above 0.
        streams: of each text; a draw is taken from each.
        top_ps: of each text; None for 1.
    """
    noise_BV = np.stack([one.gumbel(size=logits_BV.shape[1]) for one in streams])
    scores_BV = logits_BV.float() / logits_BV.new_tensor(temperatures, dtype=torch.float32)[:, None]
    if top_ps is not None and min(top_ps) < 1:
        scores_BV = nucleus(scores_BV, scores_BV.new_tensor(top_ps))
    return scores_BV + torch.from_numpy(noise_BV).to(scores_BV.device, torch.float32)


def nucleus(scores_BV: Tensor, top_p_B: Tensor) -> Tensor:
    """Scores whose tokens outside the fewest that have probability `top_p` together are minus infinity."""
    ordered_BV, order_BV = scores_BV.softmax(-1).sort(-1, descending=True)
    before_BV = ordered_BV.cumsum(-1) - ordered_BV
    outside_BV = before_BV >= top_p_B[:, None]
    # The likeliest stays, whatever rounding says. Where all are asked for, none is left out.
    outside_BV[:, 0] = False
    outside_BV &= top_p_B[:, None] < 1
    return scores_BV.masked_fill(outside_BV.scatter(1, order_BV, outside_BV), -torch.inf)


def scores(logits_BV: Tensor, texts: Sequence["Growing"]) -> Tensor:
    """Scores [B, V], float32, the highest of which is each text's next token; takes a draw where it is drawn."""
    logits_BV = logits_BV.float()
    streams = {row: text.stream for row, text in enumerate(texts) if text.stream is not None}
    if not streams:
        return logits_BV
    rows = list(streams)
    settings = [texts[row].asked for row in rows]
    drawn = noisy(
        logits_BV[rows],
        [asked.temperature for asked in settings],
        list(streams.values()),
        [asked.top_p for asked in settings],
    )
    return logits_BV.index_copy(0, torch.tensor(rows, device=logits_BV.device), drawn)


def worths(logits_BV: Tensor, tokens: Sequence[int], texts: Sequence["Growing"]) -> list[Token | None]:
    """Each text's new token with its log-probability, where that is asked for."""
    found: list[Token | None] = [None] * len(texts)
    rows = [row for row, text in enumerate(texts) if text.asked.logprobs is not None and text.finish is None]
    if not rows:
        return found
    values_BV = logits_BV[rows].float().log_softmax(-1)
    own = values_BV.gather(1, values_BV.new_tensor([tokens[row] for row in rows], dtype=torch.long)[:, None])
    most = min(max(texts[row].asked.logprobs or 0 for row in rows), values_BV.shape[1])
    best = values_BV.topk(most, -1)
    for row, value, top, places in zip(
        rows, own[:, 0].tolist(), best.values.tolist(), best.indices.tolist(), strict=True
    ):
        name, count = texts[row].text.spelling.name, texts[row].asked.logprobs
        beside = tuple((name(place), one) for place, one in zip(places[:count], top[:count], strict=True))
        found[row] = Token(name(tokens[row]), value, beside)
    return found
