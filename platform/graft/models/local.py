"""A model whose weights are in this process: tokens, context and embeddings.

Shapes: N texts, B of them in a batch, T tokens, D width.
"""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graft.errors import ModelError
from graft.models.batching import PADDING_PER_BATCH, batches, padded
from graft.models.blocks import Reached, at_layer, blocks_of
from graft.models.detokenizing import Spelling
from graft.models.model import SCORING, WRITING, Candidates, Kind, Model
from graft.models.pooling import Readout
from graft.spec import ModelSource

FIXED_DATE = "{%- macro strftime_now(form) -%}26 Jul 2024{%- endmacro -%}"
"""Some chat templates print today's date; a prompt must not depend on the day."""


@dataclass(frozen=True)
class Weights:
    """A network that is not in memory yet, and what is known of it."""

    open: Callable[[], nn.Module]
    """Loads it: a transformers model in evaluation mode without gradients."""
    parameters: int
    device: torch.device
    dtype: str


def twin_of(network: nn.Module) -> Any:
    """Another object that shares a network's weights: frozen parameters of its own, and hooks of its own."""
    shared: dict[int, Any] = {}
    for parameter in network.parameters():
        plain = type(parameter) is nn.Parameter
        shared[id(parameter)] = nn.Parameter(parameter.data, requires_grad=False) if plain else parameter
    for buffer in network.buffers():
        shared[id(buffer)] = buffer
    return copy.deepcopy(network, shared)


class LocalModel(Model):
    """An encoder, and what causal and encoder-decoder models share with it."""

    kind: Kind = "encoder"
    plain: bool = True
    """The network may be cached, padded and called in parts; False with soft prompts in it."""

    def __init__(
        self,
        source: ModelSource,
        mark: str,
        config: Any,
        tokenizer: Any,
        readout: Readout,
        context_tokens: int | None,
        weights: Weights,
    ) -> None:
        """Take what is known of a model without its weights.

        Args:
            source: where it came from and how it is read.
            mark: its fingerprint.
            config: its transformers configuration.
            tokenizer: its tokenizer.
            readout: how token states become an embedding.
            context_tokens: longest input; None for no limit.
            weights: loaded at the first use.

        Raises:
            ModelError: `source.layer` is more than the model has.
        """
        super().__init__(source, mark)
        self.config = config
        self.tokenizer = tokenizer
        self.readout = readout
        self.device: torch.device = weights.device
        self.dtype = weights.dtype
        self.parameters = weights.parameters
        self.context_tokens = context_tokens
        self.dimensions = readout.width
        if tokenizer.chat_template and source.variant != "pretrained":
            self.chat = functools.partial(_render, source.source, tokenizer)
        self._weights = weights
        self._network: Any = None
        if source.layer is not None and source.layer > (depth := config.get_text_config().num_hidden_layers):
            raise ModelError(
                f"models.ROLE.layer: got {source.layer}; {source.source} has {depth} blocks; give 0 to {depth}"
            )

    @property
    def network(self) -> Any:
        """The transformers model, loaded by whoever needs it first.

        Raises:
            ModelError: transformers cannot load it, weights are missing, or the folder has changed.
        """
        # What is made in inference mode could never be part of a gradient.
        with self.lock, torch.inference_mode(False):
            if self._network is None:
                self._network = self._weights.open()
                # A device map may have put it elsewhere.
                self.device = self._network.device
            return self._network

    def frozen_copy(self) -> Any:
        """The network as another object that shares this one's weights, to put trained parts into.

        Its parameters are other objects, so that giving one new values leaves this model as it is.
        """
        return twin_of(self.network)

    def around(self, network: Callable[[], nn.Module], mark: str, **changes: Any) -> Self:
        """A handle that reads and writes text as this one does, around another network.

        Args:
            network: opens it: this one's with something trained in it.
            mark: its fingerprint.
            changes: attributes that differ, such as `context_tokens`.
        """
        weights = dataclasses.replace(self._weights, open=network)
        other = type(self)(self.source, mark, self.config, self.tokenizer, self.readout, self.context_tokens, weights)
        other.usage, other.lock = self.usage, self.lock
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    def unload(self) -> None:
        """Forget the weights until something is computed again."""
        with self.lock:
            self._network = None

    @functools.cached_property
    def spelling(self) -> Spelling:
        """What the tokenizer's tokens spell, for texts that are read while they are written."""
        return Spelling(self.tokenizer)

    @property
    def mixes_lengths(self) -> bool:
        """Whether prompts of unequal length are written beside each other."""
        return self.plain

    @property
    def decoder_start(self) -> list[int]:
        """What a decoder reads before an answer; nothing where there is none beside an encoder."""
        return []

    @property
    def body(self) -> Any:
        """The bare model that turns texts into states: no language-model head, no decoder."""
        return self.network

    def count_tokens(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Tokens of each text, special tokens included, int32 [N]; a readout's template is not counted."""
        with self.lock:
            return np.array([len(ids) for ids in self._tokenize(texts)], np.int32)

    def cut(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """Beginnings of at most `max_tokens` tokens; `embed(texts, n)` is `embed(cut(texts, n))`."""
        special = self.tokenizer.num_special_tokens_to_add()
        if max_tokens <= special:
            raise ModelError(
                f"task.max_tokens: got {max_tokens}; {self.source.source} adds {special}; give more than that"
            )
        with self.lock:
            counts = self.count_tokens(texts)
            return [
                self._cut(text, max_tokens, special) if count > max_tokens else text
                for text, count in zip(texts, counts, strict=True)
            ]

    def _cut(self, text: str, max_tokens: int, special: int) -> str:
        if not self.tokenizer.is_fast:
            raise ModelError(
                f"{self.source.source}: its tokenizer cannot say where tokens end; leave task.max_tokens null"
            )
        ends = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        # A beginning may need more tokens alone than it had inside the text, so the first guess can be too long.
        for keep in range(max_tokens - special, 0, -1):
            beginning = text[: ends["offset_mapping"][keep - 1][1]]
            if len(self._tokenize([beginning])[0]) <= max_tokens:
                return beginning
        return ""

    def embed(self, inputs: Sequence[Any], max_tokens: int | None = None) -> NDArray[np.float32]:
        """Vectors [N, D] of texts, in batches of similar length."""
        with self.lock, torch.inference_mode():
            texts = list(inputs) if max_tokens is None else self.cut(inputs, max_tokens)
            rows = self._dressed(texts)
            lengths = [len(row) for row in rows]
            self._check_fits(lengths, "text", lambda: self._shorter_texts(texts, lengths))
            vectors = np.empty((len(rows), self.dimensions), np.float32)
            for batch in batches(lengths, padding=PADDING_PER_BATCH):
                ids, mask = padded([rows[index] for index in batch], self.network.device)
                vectors[batch] = self.readout(self.states(ids, mask), mask).cpu().numpy()
                self.usage.add(int(mask.sum()), len(batch))
            return vectors

    def _dressed(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text as it is embedded."""
        return [self.never_empty(ids) for ids in self._tokenize([self.readout.dress(text) for text in texts])]

    def _shorter_texts(self, texts: Sequence[str], lengths: Sequence[int]) -> str:
        """The cure for texts that do not fit: what the readout puts around a text needs room too."""
        around = sum(map(len, self._tokenize(self.readout.around(), special=False)))
        # Where a text and its surroundings meet, tokens may split or join.
        around = max(around, int(np.max(np.array(lengths) - self.count_tokens(texts))))
        room = (self.context_tokens or 0) - around
        if room <= self.tokenizer.num_special_tokens_to_add():
            return "what is put around each text leaves no room: set models.ROLE.pooling to mean"
        return f"set task.max_tokens to {room} or less"

    def excess(
        self, prompts: Sequence[str], candidates: Candidates | None = None, max_new_tokens: int | None = None
    ) -> NDArray[np.int32]:
        """Tokens above the context, int32 [N]."""
        if self.context_tokens is None:
            return np.zeros(len(prompts), np.int32)
        with self.lock:
            needs = []
            if candidates is not None:
                needs.append(self._scored_tokens(prompts, candidates))
            if max_new_tokens is not None:
                needs.append(self._written_tokens(prompts, max_new_tokens))
            if not needs:
                needs.append([len(row) for row in self._dressed(prompts)])
            return np.max(np.array(needs, np.int32), axis=0) - np.int32(self.context_tokens)

    def _scored_tokens(self, prompts: Sequence[str], candidates: Candidates) -> list[int]:
        """Positions that `score` needs for each prompt."""
        self._cannot(*SCORING)

    def _written_tokens(self, prompts: Sequence[str], max_new_tokens: int) -> list[int]:
        """Positions that `generate` needs for each prompt."""
        self._cannot(*WRITING)

    def states(self, ids_BT: Tensor, mask: Tensor, **more: Any) -> Tensor:
        """Token states [B, T, D] of `source.layer`, or of the model's output.

        Args:
            ids_BT: tokens.
            mask: [B, T], 1 on tokens and 0 on padding; or [B, 1, T, S], which token sees which.
            more: further inputs of the body: positions, and a cache, which holds these tokens too afterwards.
        """
        body, layer = self.body, self.source.layer
        use_cache = more.get("past_key_values") is not None
        inputs = {"input_ids": ids_BT, "attention_mask": mask, **accepted(body, use_cache=use_cache, **more)}
        if layer is None:
            return body(**inputs).last_hidden_state
        reached: list[Tensor] = []

        def keep(states: Tensor) -> None:
            reached.append(states)
            raise Reached

        hook = at_layer(blocks_of(body, self.source.source), layer, keep)
        try:
            body(**inputs)
        except Reached:
            return reached[0]
        finally:
            hook.remove()
        raise ModelError(f"{self.source.source}: layer {layer} was not reached; leave models.ROLE.layer null")

    def _tokenize(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        rows = list(encoded["input_ids"])
        self.refuse_unknown(rows)
        return rows

    def refuse_unknown(self, rows: Sequence[Sequence[int]]) -> None:
        """Raise where a text has a token that the network has no row for: it would fail, and all that is beside it.

        Raises:
            ModelError: a tokenizer has more tokens than its model's embedding, and a text has one of them.
        """
        limit = getattr(self.config.get_text_config(), "vocab_size", None)
        worst = max((max(row) for row in rows if row), default=0)
        if limit is not None and worst >= limit:
            raise ModelError(
                f"{self.source.source}: a text has the token {self.tokenizer.convert_ids_to_tokens(worst)!r} (id "
                f"{worst}), but the model embeds {limit} tokens (ids 0 to {limit - 1}); leave it out of the text, or "
                "name a model that was saved after resize_token_embeddings"
            )

    def never_empty(self, ids: list[int]) -> list[int]:
        """A sequence that the model can read: an empty one is its start token alone."""
        if ids:
            return ids
        known = self.tokenizer
        for start in (known.bos_token_id, known.eos_token_id, known.pad_token_id):
            if start is not None:
                self.refuse_unknown([[start]])
                return [start]
        raise ModelError(
            f"{known.name_or_path}: a text has no token and the tokenizer has no start token; drop empty texts"
        )

    def _check_fits(self, lengths: Sequence[int], what: str, cure: Callable[[], str]) -> None:
        limit = self.context_tokens
        if limit is None or not len(lengths) or max(lengths) <= limit:
            return
        over = sum(length > limit for length in lengths)
        raise ModelError(
            f"{self.source.source}: the longest {what} has {max(lengths)} tokens, its context holds {limit} "
            f"({over} of {len(lengths)} do not fit); {cure()}"
        )


def accepted(network: nn.Module, **arguments: Any) -> dict[str, Any]:
    """Those arguments that the network's forward knows by name."""
    known = inspect.signature(network.forward).parameters
    return {name: value for name, value in arguments.items() if name in known}


def _render(name: str, tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """Chat messages as the model's template writes them, up to where its answer begins."""
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                chat_template=FIXED_DATE + tokenizer.get_chat_template(),
                tokenize=False,
                add_generation_prompt=True,
            )
        )
    except TemplateError as error:
        raise ModelError(f"{name}: its chat template refuses these messages: {error}") from error
