"""Greedy text from transformers' own `generate`, the same for causal and encoder-decoder models."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graft.models.batching import batches, padded

if TYPE_CHECKING:
    from graft.models.local import LocalModel

TOKENS_PER_BATCH = 32768


def write(
    model: "LocalModel",
    rows: Sequence[list[int]],
    max_new_tokens: int,
    stop: Sequence[str],
    beside: Callable[[Sequence[int]], dict[str, Any]] = lambda _batch: {},
) -> list[str]:
    """The most likely continuation of each row of tokens, cut before the first stop string.

    Args:
        model: a causal or encoder-decoder model; its usage is counted.
        rows: tokens of each prompt, none empty.
        max_new_tokens: upper limit of what is written.
        stop: where a text ends.
        beside: what else the network takes with these rows.
    """
    causal = model.kind == "causal"
    end = model.network.generation_config.eos_token_id
    texts = [""] * len(rows)
    for batch in _batches(model, [len(row) for row in rows], max_new_tokens):
        # Decoders write after the last token, so padding comes first; an encoder does not mind.
        prompts = [rows[index] for index in batch]
        ids, mask = padded(prompts, model.network.device, left=causal)
        starts = [] if causal else model.decoder_start
        width = ids.shape[1] if causal else len(starts)
        # One start token is what `generate` begins with by itself.
        begun = {"decoder_input_ids": ids.new_tensor([starts] * len(batch))} if len(starts) > 1 else {}
        ended = _Ended(model.tokenizer, width, stop)
        output = model.network.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            stopping_criteria=[ended] if stop else [],
            **begun,
            **beside(batch.tolist()),
        )
        for index, prompt, written in zip(batch, prompts, output[:, width:].tolist(), strict=True):
            new = _until_end(written, end)
            model.usage.add(len(prompt) + max(0, len(new) - 1), max(1, len(new)))
            text = completion(model.tokenizer, prompt if causal else [], new)
            texts[index] = text[: _first(text, stop)]
    return texts


def _batches(model: "LocalModel", lengths: list[int], max_new_tokens: int) -> list[NDArray[np.intp]]:
    """Rows to write for together: of one length where there must be no padding."""
    groups = [np.arange(len(lengths))]
    if not model.plain:
        groups = [np.flatnonzero(np.array(lengths) == length) for length in sorted(set(lengths))]
    return [
        group[batch]
        for group in groups
        for batch in batches([lengths[row] + max_new_tokens for row in group], TOKENS_PER_BATCH)
    ]


def make_greedy(network: Any, tokenizer: Any) -> None:
    """Keep the model's special tokens, and nothing of how its authors sample.

    The network's own configuration is replaced: `generate` mixes it into any other that it is given.
    """
    from transformers import GenerationConfig

    own = network.generation_config.to_dict()
    tokens = {name: value for name, value in own.items() if name.endswith("_token_id") and value is not None}
    stated = tokens.get("eos_token_id")
    ends = [*(stated if isinstance(stated, list) else [stated]), tokenizer.eos_token_id]
    # The tokenizer's is what is learned as the end of an answer; a model may state another one.
    end = list(dict.fromkeys(one for one in ends if one is not None))
    if end:
        tokens["eos_token_id"] = end if len(end) > 1 else end[0]
    if tokens.get("pad_token_id") is None:
        padding = tokenizer.pad_token_id
        tokens["pad_token_id"] = padding if padding is not None else next(iter(end), 0)
    network.generation_config = GenerationConfig(do_sample=False, num_beams=1, **tokens)


def completion(tokenizer: Any, prompt: list[int], new: list[int]) -> str:
    """The text of new tokens as it stands after the prompt; some tokenizers drop a space at a text's beginning."""
    before, whole = (
        tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for tokens in (prompt, [*prompt, *new])
    )
    if whole.startswith(before):
        return str(whole[len(before) :])
    return str(tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class _Ended:
    """Tells `generate` which rows hold a stop string, so that it need not go on."""

    def __init__(self, tokenizer: Any, start: int, stop: Sequence[str]) -> None:
        self.tokenizer, self.start, self.stop = tokenizer, start, stop
        # A character takes at most four tokens, so older tokens cannot be part of a stop string that ends here.
        self.window = 4 * max(map(len, stop), default=0) + 4

    def __call__(self, ids_BT: Tensor, _scores: Any, **_options: Any) -> Tensor:
        recent = ids_BT[:, max(self.start, ids_BT.shape[1] - self.window) :]
        texts = self.tokenizer.batch_decode(recent, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ended = [any(word in text for word in self.stop) for text in texts]
        return torch.tensor(ended, device=ids_BT.device)


def _until_end(tokens: list[int], end: Any) -> list[int]:
    """Up to and with the first end token; what follows is padding."""
    ends = set(end) if isinstance(end, list) else {end}
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens


def _first(text: str, stop: Sequence[str]) -> int:
    """Where the first stop string begins, or the text's end."""
    return min((at for at in map(text.find, stop) if at >= 0), default=len(text))
