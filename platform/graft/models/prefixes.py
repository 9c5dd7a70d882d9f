"""Key/value caches of token prefixes, so that what many prompts begin with is computed once.

Nothing here changes a cache that is kept: a copy shares its tensors, and growing a copy makes new ones.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MIN_SHARED_TOKENS = 32
"""A shorter common beginning is not worth a forward pass of its own."""

TRIED = (5, 7, 6)
"""Ids of a text on which padding is tried: of real tokens, in most vocabularies."""
TRIED_PADDING = 8
"""Columns of it; measured (29 random networks): the logits that it changes, it changes by over 10% of their spread,
others by less than a millionth as float32 and a hundredth as bfloat16."""

MAX_ENTRIES = 8
MAX_BYTES = 1 << 30
"""Of all kept keys and values together."""


@dataclass
class Group:
    """Prompts that begin alike."""

    members: list[int]
    shared_tokens: int


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens that both begin with."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))


def groups(contexts: Sequence[Sequence[int]]) -> list[Group]:
    """Put prompts together so that computing each group's common beginning once saves the most tokens.

    Neighbours in sorted order share the most, so a group is a run of them; it grows while that saves tokens.
    Each prompt keeps at least its last token for itself: the answer's probabilities are read there.

    Args:
        contexts: tokens of each prompt.
    """
    if len(contexts) == 1:
        # Whoever asks one by one may come back with the same beginning.
        room = len(contexts[0]) - 1
        return [Group([0], room if room >= MIN_SHARED_TOKENS else 0)]
    found: list[Group] = []
    for index in sorted(range(len(contexts)), key=lambda index: list(contexts[index])):
        room = len(contexts[index]) - 1
        if found:
            last = found[-1]
            shared = min(room, last.shared_tokens, common_length(contexts[last.members[0]], contexts[index]))
            saved = (len(last.members) - 1) * last.shared_tokens
            if shared >= MIN_SHARED_TOKENS and len(last.members) * shared >= saved:
                last.members.append(index)
                last.shared_tokens = shared
                continue
        found.append(Group([index], room))
    alone = [group.members[0] for group in found if len(group.members) == 1]
    together = [group for group in found if len(group.members) > 1]
    return [*together, Group(alone, 0)] if alone else together


def shareable(network: nn.Module, config: Any) -> bool:
    """Whether a cached beginning gives exactly what computing it again would give.

    Not with sliding windows or recurrent states, which forget, nor where positions are scaled by the length; nor in a
    network that takes no cache (GPT-1, XLNet) and would read each token by itself.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if "past_key_values" not in inspect.signature(network.forward).parameters:
        return False
    settings = config.get_text_config()
    rope = getattr(settings, "rope_parameters", None) or {}
    scaled = any(kind in ("dynamic", "longrope") for kind in _rope_types(rope))
    # GPT-Neo's windows are of columns, padding included, and no cache is told of them.
    windows = "local" in getattr(settings, "attention_layers", ())
    if scaled or windows or getattr(network, "_is_stateful", False):
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def paddable(network: nn.Module, config: Any, between: bool = False) -> bool:
    """Whether padding before a text changes nothing of what a network says after it.

    It does not where a cache holds all that was read and positions are told. Other networks are tried: some count
    positions by the column (BART's decoder alone), some read padding into their states (RWKV, MiniMax), and some do
    neither (Bloom, Mamba).

    Args:
        network: a causal one, with its head.
        config: its configuration.
        between: padding between tokens too, as it stands behind a common beginning; some count distances by the
            column (MPT).
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    told = {"position_ids", "past_key_values"} <= inspect.signature(network.forward).parameters.keys()
    if told and not getattr(network, "_is_stateful", False):
        kinds = {type(layer) for layer in DynamicCache(config=config).layers}
        if kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
            return True
    first, *rest = TRIED
    gap: list[int | None] = [None] * TRIED_PADDING
    one, other = _said(network, TRIED), _said(network, [*gap, first, *(gap if between else ()), *rest])
    return bool((one - other).std() <= torch.finfo(network.dtype).eps ** 0.5 * one.std())


def _said(network: Any, text: Sequence[int | None]) -> Tensor:
    """Logits [K, V] of a few tokens after a short text, None in which is padding: a token that must not be read."""
    ids = torch.tensor([[TRIED[0] if token is None else token for token in text]], device=network.device)
    # The last token again and again: what is written must be the same to be compared.
    same = [lambda ids_BT, logits_BV: torch.full_like(logits_BV, -torch.inf).scatter(1, ids_BT[:, -1:], 0.0)]
    output = network.generate(
        input_ids=ids,
        attention_mask=torch.tensor([[int(token is not None) for token in text]], device=network.device),
        max_new_tokens=len(TRIED),
        logits_processor=same,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.cat(output.logits).float()


def packable(network: nn.Module) -> bool:
    """Whether prompts may stand beside each other in one sequence, kept apart by a mask and by their positions.

    Only attention by torch's own kernel takes such a mask; some networks know positions by their place alone.
    """
    settings = network.config.get_text_config()  # a configuration that was read alone knows no kernel
    told = "position_ids" in inspect.signature(network.forward).parameters
    return told and settings._attn_implementation == "sdpa" and not getattr(settings, "alibi", False)


def _rope_types(rope: dict[str, Any]) -> list[Any]:
    """Of one set of parameters, or of one per kind of layer."""
    inner = [value.get("rope_type") for value in rope.values() if isinstance(value, dict)]
    return [rope.get("rope_type"), *inner]


def copied(cache: Any) -> Any:
    """A cache that grows without changing this one."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def cropped(cache: Any, tokens: int) -> Any:
    """A copy that holds the first `tokens` tokens."""
    twin = copied(cache)
    for layer in twin.layers:
        if layer.keys is not None:  # a reading of an inner layer fills none of those above it
            layer.keys, layer.values = layer.keys[..., :tokens, :], layer.values[..., :tokens, :]
    return twin


def picked(cache: Any, rows: Tensor) -> Any:
    """A copy whose row i is this cache's row `rows[i]`."""
    twin = copied(cache)
    twin.batch_select_indices(rows)
    return twin


class PrefixCaches:
    """The most recently used prefixes of one model, each with the keys and values of its tokens (batch of one)."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], Any] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def nearest(self, tokens: Sequence[int]) -> tuple[Any | None, int]:
        """A copy of what is known of these tokens, and how many of them that is; None and 0 where it is nothing."""
        best = max(self._kept, key=lambda kept: common_length(kept, tokens), default=())
        shared = common_length(best, tokens)
        if shared < MIN_SHARED_TOKENS:
            return None, 0
        # Used last, so dropped last.
        self._kept[best] = cache = self._kept.pop(best)
        return cropped(cache, shared), shared

    def keep(self, tokens: Sequence[int], cache: Any) -> None:
        """Remember a prefix; those that it extends go, and the oldest ones where there are too many."""
        key = tuple(tokens)
        if any(kept[: len(key)] == key for kept in self._kept):
            return
        self._kept = {kept: value for kept, value in self._kept.items() if key[: len(kept)] != kept}
        self._kept[key] = copied(cache)
        while len(self._kept) > MAX_ENTRIES or (self._kept and sum(map(_bytes, self._kept.values())) > MAX_BYTES):
            del self._kept[next(iter(self._kept))]


def _bytes(cache: Any) -> int:
    tensors = [part for layer in cache.layers for part in (layer.keys, layer.values) if part is not None]
    return sum(int(part.nbytes) for part in tensors)
