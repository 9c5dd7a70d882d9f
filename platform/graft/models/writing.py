"""Text from transformers' own `generate`, greedy or drawn, the same for causal and encoder-decoder models."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graft.models import prefixes
from graft.models.asked import Asked
from graft.models.batching import batches, padded
from graft.models.drawing import Gumbel
from graft.models.growing import Growing, first_of
from graft.models.model import Sampling, Written

if TYPE_CHECKING:
    from graft.models.language import CausalModel
    from graft.models.local import LocalModel

TOKENS_PER_BATCH = 32768
MIN_ALIKE = 4
"""Rows for which a common beginning is worth a group of their own: small batches are slow."""

Beside = Callable[[Sequence[int]], dict[str, Any]]
"""Rows to what else the network takes with them."""


class Hearer(Protocol):
    """Chooses and hears every token of a batch while it is written, and ends its rows."""

    @property
    def tokens(self) -> list[int]:
        """That each row wrote."""
        ...

    def scores(self, ids_BT: Tensor, logits_BV: Tensor, /) -> Tensor:
        """Scores [B, V], the highest of which is each row's next token."""
        ...

    def ended(self, ids_BT: Tensor, scores: Any, /, **options: Any) -> Tensor:
        """Hear the newest token of each row, the last of its ids; True [B] where a row ends."""
        ...


def write(
    model: "LocalModel",
    rows: Sequence[list[int]],
    max_new_tokens: int,
    stop: Sequence[str],
    sampling: Sampling | None = None,
    beside: Beside = lambda _batch: {},
    heard_by: Callable[[Sequence[int]], Hearer] | None = None,
) -> list[Written]:
    """A continuation of each row of tokens, cut before the first stop string.

    Rows of similar length are written together; what many of them begin with is computed once.

    Args:
        model: a causal or encoder-decoder model; its usage is counted.
        rows: tokens of each prompt, none empty.
        max_new_tokens: upper limit of what is written.
        stop: where a text ends.
        sampling: draw them; None writes the most likely ones.
        beside: what else the network takes with these rows.
        heard_by: who chooses and hears the tokens of these rows, which are written together; `stop` and `sampling`
            are then its affair.
    """
    found: list[Any] = [None] * len(rows)
    decoder = cast("CausalModel", model)  # where anything is shared
    for group in _alike(decoder, rows):
        shared = group.shared_tokens
        lengths = [len(rows[index]) - shared for index in group.members]
        beginning = decoder.beginning(rows[group.members[0]][:shared]) if shared else None
        for batch in _batches(model, lengths, shared + max_new_tokens):
            members = [group.members[position] for position in batch]
            written = _write_batch(
                model, [rows[row] for row in members], (beginning, shared), max_new_tokens, stop,
                None if sampling is None else Gumbel(sampling.temperature, [sampling.seeds[row] for row in members]),
                beside(members),
                heard_by(members) if heard_by else None,
            )  # fmt: skip
            for row, one in zip(members, written, strict=True):
                found[row] = one
    return found


def _write_batch(
    model: "LocalModel",
    prompts: list[list[int]],
    beginning: tuple[Any, int],
    max_new_tokens: int,
    stop: Sequence[str],
    drawing: Gumbel | None,
    beside: dict[str, Any],
    hearer: Hearer | None,
) -> list[Written]:
    causal = model.kind == "causal"
    ends = end_tokens(model)
    cache, shared = beginning
    # Decoders write after the last token, so padding comes first; an encoder does not mind.
    ids, mask = padded([prompt[shared:] for prompt in prompts], model.network.device, left=causal)
    given = dict(beside)
    if shared:
        ids = torch.cat([ids.new_tensor([prompt[:shared] for prompt in prompts]), ids], 1)
        mask = torch.cat([mask.new_ones(len(prompts), shared), mask], 1)
        given["past_key_values"] = prefixes.picked(cache, ids.new_zeros(len(prompts)))
    starts = [] if causal else model.decoder_start
    width = ids.shape[1] if causal else len(starts)
    if len(starts) > 1:  # one start token is what `generate` begins with by itself
        given["decoder_input_ids"] = ids.new_tensor([starts] * len(prompts))
    texts: list[Growing] = []
    if stop and not hearer:
        asked = Asked("", max_new_tokens, tuple(stop))
        texts = [Growing(asked, prompt, prompt if causal else (), model.spelling, ends) for prompt in prompts]
    output = model.network.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        stopping_criteria=[hearer.ended] if hearer else [_Ended(texts, width)] if texts else [],
        logits_processor=[hearer.scores] if hearer else [drawing] if drawing else [],
        **given,
    )
    found = []
    for row, (prompt, written) in enumerate(zip(prompts, output[:, width:].tolist(), strict=True)):
        new = written[: hearer.tokens[row]] if hearer else _until_end(written, ends)
        model.usage.add(len(prompt) - shared + max(0, len(new) - 1), max(1, len(new)))
        text = completion(model.tokenizer, prompt if causal else [], new)
        at = first_of(text, stop)
        until = len(text) if at is None else at
        ended = until < len(text) or len(new) < max_new_tokens or new[-1] in ends
        found.append(Written(text[:until], ended))
    return found


def _alike(model: "CausalModel", rows: Sequence[list[int]]) -> list[prefixes.Group]:
    """Rows in groups that begin alike, where a beginning is computed once; small groups are none."""
    everything = prefixes.Group(list(range(len(rows))), 0)
    if model.kind != "causal" or len(rows) < 2 or not model.shares_prefixes:
        return [everything]
    found = [group for group in prefixes.groups(rows) if group.shared_tokens and len(group.members) >= MIN_ALIKE]
    grouped = {row for group in found for row in group.members}
    rest = [row for row in everything.members if row not in grouped]
    return [*found, prefixes.Group(rest, 0)] if rest else found


def _batches(model: "LocalModel", lengths: list[int], more: int) -> list[NDArray[np.intp]]:
    """Rows to write for together: of one length where there must be no padding."""
    groups, different = [np.arange(len(lengths))], sorted(set(lengths))
    if len(different) > 1 and not model.mixes_lengths:
        groups = [np.flatnonzero(np.array(lengths) == length) for length in different]
    return [
        group[batch] for group in groups for batch in batches([lengths[row] + more for row in group], TOKENS_PER_BATCH)
    ]


def make_greedy(network: Any, tokenizer: Any) -> None:
    """Keep the model's special tokens, and nothing of how its authors sample or end a text at its limit.

    The network's own configuration is replaced: `generate` mixes it into any other that it is given.
    """
    from transformers import GenerationConfig

    own = network.generation_config.to_dict()
    tokens = {name: value for name, value in own.items() if name.endswith("_token_id") and value is not None}
    # A token that is forced at the batch's limit, or in its second column, depends on the texts beside it.
    tokens.pop("forced_eos_token_id", None)
    if not network.config.is_encoder_decoder:  # a decoder beside an encoder starts with it
        tokens.pop("forced_bos_token_id", None)
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
    """Tells `generate` which rows hold a stop string, so that it need not go on: as `Growing` does for served texts.

    Args:
        texts: of the rows.
        start: columns that hold no written token.
    """

    def __init__(self, texts: Sequence[Growing], start: int) -> None:
        self.texts, self.heard = texts, start

    def __call__(self, ids_BT: Tensor, _scores: Any, **_options: Any) -> Tensor:
        for text, tokens in zip(self.texts, ids_BT[:, self.heard :].tolist(), strict=True):
            for token in tokens:
                if not text.over:
                    text.add(token)
        self.heard = ids_BT.shape[1]
        return torch.tensor([text.over for text in self.texts], device=ids_BT.device)


def end_tokens(model: "LocalModel") -> set[int]:
    """Tokens that end a text."""
    end = model.network.generation_config.eos_token_id
    return set(end) if isinstance(end, list) else {end}


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """Up to and with the first end token; what follows is padding."""
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens
