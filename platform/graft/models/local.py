"""A model whose weights are in this process: tokens, context and embeddings.

Shapes: N texts, B of them in a batch, T tokens, D width.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graft.errors import ModelError
from graft.models.batching import batches, padded
from graft.models.model import Kind, Model
from graft.models.pooling import Readout
from graft.spec import ModelSource

FIXED_DATE = "{%- macro strftime_now(form) -%}26 Jul 2024{%- endmacro -%}"
"""Some chat templates print today's date; a prompt must not depend on the day."""


class LocalModel(Model):
    """An encoder, and what causal and encoder-decoder models share with it."""

    kind: Kind = "encoder"

    def __init__(
        self,
        source: ModelSource,
        mark: str,
        network: nn.Module,
        tokenizer: Any,
        readout: Readout,
        context_tokens: int | None,
    ) -> None:
        """Take a frozen network.

        Args:
            source: where it came from and how it is read.
            mark: its fingerprint.
            network: a transformers model in evaluation mode without gradients.
            tokenizer: its tokenizer.
            readout: how token states become an embedding.
            context_tokens: longest input; None for no limit.
        """
        super().__init__(source, mark)
        self.network: Any = network
        self.tokenizer = tokenizer
        self.readout = readout
        self.config: Any = self.network.config
        self.device: torch.device = self.network.device
        self.dtype = str(self.network.dtype)
        self.parameters = int(self.network.num_parameters())
        self.context_tokens = context_tokens
        self.dimensions = readout.width
        if tokenizer.chat_template and source.variant != "pretrained":
            self.chat = functools.partial(_render, source.source, tokenizer)
        if source.layer is not None:
            self._blocks(self.body)

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

    def embed(self, texts: Sequence[str], max_tokens: int | None = None) -> NDArray[np.float32]:
        """Vectors [N, D], in batches of similar length."""
        with self.lock, torch.inference_mode():
            texts = list(texts) if max_tokens is None else self.cut(texts, max_tokens)
            rows = [self._never_empty(ids) for ids in self._tokenize([self.readout.dress(text) for text in texts])]
            self._check_fits([len(row) for row in rows], "text", "set task.max_tokens to {limit} or less")
            vectors = np.empty((len(rows), self.dimensions), np.float32)
            for batch in batches([len(row) for row in rows]):
                ids, mask = padded([rows[index] for index in batch], self.device)
                vectors[batch] = self.readout(self._states(ids, mask), mask).cpu().numpy()
                self.usage.add(int(mask.sum()), len(batch))
            return vectors

    def _states(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Token states [B, T, D] of `source.layer`, or of the model's output."""
        body, layer = self.body, self.source.layer
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT, **accepted(body, use_cache=False)}
        if layer is None:
            return body(**inputs).last_hidden_state
        reached: list[Tensor] = []
        hook = _hook(self._blocks(body), layer, reached)
        try:
            body(**inputs)
        except _Reached:
            return reached[0]
        finally:
            hook.remove()
        raise ModelError(f"{self.source.source}: layer {layer} was not reached; leave models.ROLE.layer null")

    def _blocks(self, body: nn.Module) -> nn.ModuleList:
        depth = body.config.get_text_config().num_hidden_layers
        found = [module for module in body.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
        if not found:
            raise ModelError(f"{self.source.source}: its blocks are not a list; leave models.ROLE.layer null")
        if self.source.layer is not None and self.source.layer > depth:
            name = self.source.source
            raise ModelError(
                f"models.ROLE.layer: got {self.source.layer}; {name} has {depth} blocks; give 0 to {depth}"
            )
        return found[0]

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
        return list(encoded["input_ids"])

    def _never_empty(self, ids: list[int]) -> list[int]:
        """A sequence that the model can read: an empty one is its start token alone."""
        if ids:
            return ids
        known = self.tokenizer
        for start in (known.bos_token_id, known.eos_token_id, known.pad_token_id):
            if start is not None:
                return [start]
        raise ModelError(
            f"{known.name_or_path}: a text has no token and the tokenizer has no start token; drop empty texts"
        )

    def _check_fits(self, lengths: Sequence[int], what: str, cure: str) -> None:
        limit = self.context_tokens
        if limit is None or not len(lengths) or max(lengths) <= limit:
            return
        over = sum(length > limit for length in lengths)
        raise ModelError(
            f"{self.source.source}: the longest {what} has {max(lengths)} tokens, its context holds {limit} "
            f"({over} of {len(lengths)} do not fit); {cure.format(limit=limit)}"
        )


class _Reached(Exception):
    """A signal, not an error: the wanted layer is computed, and what follows it is not needed."""


def _hook(blocks: nn.ModuleList, layer: int, reached: list[Tensor]) -> Any:
    """Stop the forward pass at a layer and keep its states: 0 is what enters the first block, i what block i gives."""

    def keep(states: Any) -> None:
        reached.append(states[0] if isinstance(states, tuple) else states)
        raise _Reached

    if layer == 0:
        return blocks[0].register_forward_pre_hook(
            lambda _block, args, kwargs: keep(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    return blocks[layer - 1].register_forward_hook(lambda _block, _inputs, output: keep(output))


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
