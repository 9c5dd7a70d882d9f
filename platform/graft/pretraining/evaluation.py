"""How surprised a language model is by text that it never saw."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from graft.pretraining.generated import GeneratedRows
from graft.tasks.worlds import Row


def bits_per_byte(
    model: Any, texts: Sequence[str], progress: Callable[[int, int], None] = lambda done, total: None
) -> float:
    """Bits that a causal language model needs for a byte of text: comparable between tokenizers.

    A text that is longer than the context is read in windows that overlap by half: every token is predicted from at
    least half a context of those before it, or from all there are.

    Args:
        model: handle of a causal model.
        texts: any length; each begins anew.
        progress: told about texts.
    """
    import torch

    nats, size = 0.0, 0
    context = model.context_tokens or 1024
    with model.lock, torch.inference_mode():
        start = model.never_empty([])
        for place, text in enumerate(texts):
            ids = model.tokenizer(text, verbose=False, split_special_tokens=True)["input_ids"]
            ids = ids if ids[: len(start)] == start else [*start, *ids]
            nats -= sum(_window(model, ids, begin, context) for begin in _begins(len(ids), context))
            size += len(text.encode())
            progress(place + 1, len(texts))
    return nats / size / math.log(2)


def _begins(length: int, context: int) -> range:
    """Where windows begin: one for a text that fits."""
    stride = max(1, context // 2)
    return range(0, max(1, length - context + stride), stride)


def _window(model: Any, ids: list[int], begin: int, context: int) -> float:
    """Log-probability of those tokens of a window that the window before it did not hold."""
    import torch

    window = torch.tensor([ids[begin : begin + context]], device=model.network.device)
    if window.shape[1] < 2:
        return 0.0
    seen = 0 if begin == 0 else context - max(1, context // 2)
    logits = model.network(input_ids=window, use_cache=False).logits[0, :-1].float()
    found = logits.log_softmax(-1).gather(1, window[0, 1:, None])[:, 0]
    model.usage.add(window.shape[1], 1)
    return float(found[max(0, seen - 1) :].double().sum())


def exact_match(network: Any, rows: GeneratedRows, asked: Sequence[Row]) -> dict[str, float]:
    """Share of rows of each kind whose whole answer is the most likely one, token by token.

    Args:
        network: a causal network.
        rows: knows the words' numbers.
        asked: rows.
    """
    import torch

    found: dict[str, list[bool]] = {}
    with torch.inference_mode():
        for row in asked:
            ids, labels = rows.tokens(row)
            logits = network(input_ids=torch.tensor([ids], device=network.device), use_cache=False).logits[0]
            wanted = np.array(labels)
            right = (logits.argmax(-1).cpu().numpy() == wanted)[wanted >= 0].all()
            found.setdefault(row.part, []).append(bool(right))
    return {part: float(np.mean(several)) for part, several in sorted(found.items())}


def masked_loss(network: Any, node: Any, rows: pa.Table) -> float:
    """Nats that an encoder needs for a token that is missing.

    Args:
        network: that of a masked language model.
        node: what it was trained as: knows how rows become a batch.
        rows: encoded.
    """
    import torch

    from graft.models.objective import NextTokenLoss

    loss, nats = NextTokenLoss(network), 0.0
    with torch.inference_mode():
        for place in range(rows.num_rows):
            nats += float(loss(**node.collate(rows.slice(place, 1)))[0])
    return nats / sum(count for (count,) in rows["targets"].to_pylist())
