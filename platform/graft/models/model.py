"""What every frozen model answers to; nothing here imports torch."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from graft.errors import ModelError
from graft.spec import ModelSource

Kind = Literal["encoder", "causal", "seq2seq", "endpoint", "head"]

Candidates = Sequence[str] | Sequence[Sequence[str]]
"""Continuations common to all prompts, or one list of equal length per prompt."""

SCORING = ("score candidates", "name a causal or encoder-decoder model whose weights can be loaded")
WRITING = ("generate", "name a causal or encoder-decoder model")
"""What some kinds of model cannot do, and the cure."""


@dataclass
class Usage:
    """What a handle has computed since it was loaded."""

    tokens: int = 0
    """Tokens put through the model, padding not counted."""
    forward_passes: int = 0
    """Sequences put through the model, whatever the batch; a generated token is one more."""

    def add(self, tokens: int, forward_passes: int) -> None:
        """Count a batch."""
        self.tokens += tokens
        self.forward_passes += forward_passes


@dataclass(frozen=True)
class Written:
    """A text that a model wrote."""

    text: str
    whole: bool
    """False where the limit of tokens ended it."""


@dataclass(frozen=True)
class Sampling:
    """Texts drawn by their probability instead of the most likely ones.

    A prompt's draw depends on its own seed alone, whatever is written beside it.
    """

    temperature: float
    """Divides the logits."""
    seeds: Sequence[int]
    """One per prompt."""


class Model:
    """A frozen model's handle.

    A kind of model that cannot do something says so with a ModelError that names the cure. What the attributes say
    is known without the weights: these are loaded when something is first computed.

    Attributes:
        source: where it came from and how it is read.
        fingerprint: what it computes, by content; equal to `graft.models.fingerprint(source)`.
        kind: encoder, causal, seq2seq, endpoint, or head (a reasoning module, which reads vectors).
        config: the transformers configuration; None for an endpoint.
        tokenizer: the transformers tokenizer; None for an endpoint.
        reads: kinds of input that it embeds: text, messages, image, audio.
        remote: it is computed elsewhere and may change without notice; True for an endpoint.
        device: where its inputs go; `remote` for an endpoint.
        dtype: floating-point type that it computes in (`torch.float32`); "" for an endpoint.
        parameters: number of weights; 0 where unknown.
        context_tokens: longest input, special tokens included; None where there is no limit or it is unknown.
        dimensions: width of an embedding; 0 where there is none.
        usage: what was computed so far.
        chat: chat messages to the prompt that asks for the next answer; None where the model has no chat template
            or `source.variant` is pretrained.
    """

    kind: Kind
    reads: tuple[str, ...] = ("text", "messages")
    remote: bool = False
    config: Any = None
    tokenizer: Any = None
    device: Any = "remote"
    dtype: str = ""
    parameters: int = 0
    context_tokens: int | None = None
    dimensions: int = 0
    chat: Callable[[Sequence[Mapping[str, Any]]], str] | None = None

    def __init__(self, source: ModelSource, fingerprint: str) -> None:
        self.source = source
        self.fingerprint = fingerprint
        self.usage = Usage()
        # Tokenizers and the usage counter are not made for several threads at once.
        self.lock = threading.RLock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source.source!r}, kind={self.kind!r}, device={str(self.device)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """A handle travels as where its model is, where it computes and what: the weights stay."""
        from graft.models import absolute, reopen

        # Another machine numbers its GPUs by itself.
        return reopen, (absolute(self.source), str(self.device).partition(":")[0], self.fingerprint)

    def embed(self, inputs: Sequence[Any], max_tokens: int | None = None) -> NDArray[np.float32]:
        """One vector per text, image or sound, float32 [N, D], pooled and normalised as the source says.

        Args:
            inputs: texts, or the bytes of what it `reads`; any order and length, results keep the order.
            max_tokens: cut longer texts to this many tokens; None makes a text that does not fit an error.

        Raises:
            ModelError: a text is longer than the context, or this kind of model gives no embeddings.
        """
        self._cannot("embed", "name a model whose weights can be loaded")

    def score(self, prompts: Sequence[str], candidates: Candidates, normalize: bool = False) -> NDArray[np.float64]:
        """Natural-log probability of each continuation of each prompt, float64 [N, C].

        Args:
            prompts: N texts.
            candidates: C continuations common to all prompts, or one list of C per prompt.
            normalize: the mean over a continuation's tokens instead of their sum.

        Raises:
            ModelError: a prompt with its continuation is longer than the context, a continuation adds no token,
                or this kind of model gives no probabilities.
        """
        self._cannot(*SCORING)

    def continuations(self, prompts: Sequence[str], targets: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Tokens of each prompt and of its target, as `score` reads them; no end token.

        Raises:
            ModelError: a target adds no token, or this kind of model gives no probabilities.
        """
        self._cannot(*SCORING)

    def generate(self, prompts: Sequence[str], max_new_tokens: int = 64, stop: Sequence[str] = ()) -> list[str]:
        """The most likely continuation of each prompt, token by token (greedy), without the prompt.

        Args:
            prompts: N texts.
            max_new_tokens: upper limit of what is written.
            stop: the text ends before the first of these.

        Raises:
            ModelError: a prompt leaves no room in the context, or this kind of model writes no text.
        """
        return [one.text for one in self.write(prompts, max_new_tokens, stop)]

    def write(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
    ) -> list[Written]:
        """As `generate`, and whether each text came to its end; `sampling` draws texts instead."""
        self._cannot(*WRITING)

    def rows_to_write(self, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        """Tokens of each prompt as `write` reads them.

        Raises:
            ModelError: a prompt leaves no room in the context, this kind of model writes no text, or it is elsewhere.
        """
        self._cannot(*WRITING)

    def excess(
        self, prompts: Sequence[str], candidates: Candidates | None = None, max_new_tokens: int | None = None
    ) -> NDArray[np.int32]:
        """By how many tokens each prompt exceeds the context, int32 [N]; at most 0 where it fits.

        Zeros where the context is unknown. Nothing is computed but tokens, so callers may ask beforehand.

        Args:
            prompts: N texts; alone, they are read as `embed` reads them.
            candidates: the longest one of each prompt needs room too, as `score` reads them.
            max_new_tokens: what is written needs room too, as `generate` does it.

        Raises:
            ModelError: a candidate adds no token, or this kind of model cannot do what is asked about.
        """
        return np.zeros(len(prompts), np.int32)

    def count_tokens(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Tokens of each text, special tokens included, int32 [N]."""
        self._cannot("count tokens", "leave task.max_tokens null: its tokenizer is not known here")

    def tokens_over(self, texts: Sequence[str], max_tokens: int | None) -> NDArray[np.int32]:
        """How many tokens of each text `cut` would remove, int32 [N]; zeros where `max_tokens` is None."""
        if max_tokens is None:
            return np.zeros(len(texts), np.int32)
        return np.maximum(self.count_tokens(texts) - max_tokens, 0).astype(np.int32)

    def cut(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """Each text, or its longest beginning that has at most `max_tokens` tokens, special tokens included."""
        self._cannot("cut texts", "leave task.max_tokens null: its tokenizer is not known here")

    def cut_columns(self, rows: pa.Table, names: Sequence[str], max_tokens: int | None) -> pa.Table:
        """Rows whose texts in these columns are `cut` to `max_tokens` each; as they are where it is None."""
        if max_tokens is None:
            return rows
        for name in names:
            column = pa.array(self.cut(rows[name].to_pylist(), max_tokens))
            rows = rows.set_column(rows.column_names.index(name), name, column)
        return rows

    def _cannot(self, what: str, cure: str) -> NoReturn:
        article = "an" if self.kind[0] in "aeiou" else "a"
        raise ModelError(f"{self.source.source}: {article} {self.kind} model cannot {what}; {cure}")


def refuse_what_is_for_text(source: ModelSource) -> None:
    """Raise where a source of images or sounds asks for what only models of text have.

    Raises:
        ModelError: it does.
    """
    asked = {name: getattr(source, name) for name in ("layer", "variant", "quantization", "device_map", "dtype")}
    asked["pooling"] = None if source.pooling in ("model", "mean") else source.pooling
    for name, value in asked.items():
        if value is not None and value != "float32":
            raise ModelError(f"models.ROLE.{name}: got {value}; {source.source} does not read text: leave it out")
