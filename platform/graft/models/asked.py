"""What is asked of whoever writes texts, and what is told of them while they are written; without torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

PART = "\ufffd"
"""What decoders write for bytes that are no character, or not yet."""

Finish: TypeAlias = Literal["stop", "length"]


@dataclass(eq=False)
class Asked:
    """One text to be written."""

    prompt: str
    """May be a kind of str that carries more, as `graft.methods.calm.Prompt` does."""
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    temperature: float = 0.0
    """Divides the logits; 0 writes the most likely token."""
    top_p: float = 1.0
    """Draw among the most likely tokens that have this much probability together."""
    seed: int = 0
    """Of this text's own stream of draws."""
    logprobs: int | None = None
    """How many of the likeliest tokens are told beside each token; None: no log-probabilities."""
    gone: bool = False
    """Set by whoever asked: nobody waits for it any more, and it leaves at the next token."""
    ids: list[int] | None = field(default=None, repr=False)
    """The prompt's tokens, once `check` has read them."""


@dataclass(frozen=True)
class Token:
    """A token, and its natural-log probability by the model itself: at temperature 1, all tokens allowed."""

    text: str
    """As it stands after another token; a part of a character is U+FFFD."""
    logprob: float
    top: tuple[tuple[str, float], ...]
    """The likeliest tokens in its place, and theirs, the likeliest first; some may be named alike."""
    offset: int = 0
    """Characters of the text before it, one that a stop string has cut included; a character's parts have the same."""


@dataclass(frozen=True)
class Piece:
    """What is new of a text."""

    text: str
    """Never a part of a stop string or of a character: what may become one is told later."""
    tokens: int
    """Written since the last piece, an end token included; 0 where the model is elsewhere and does not say."""
    logprobs: tuple[Token, ...] = ()
    """One for each of `tokens`, where they were asked for; some may stand for text that a stop string has cut."""
    finish: Finish | None = None
    """On the last piece: it came to its end or a stop string, or to its limit of tokens."""
    prompt_tokens: int = 0
    """On the first piece; 0 where the model is elsewhere."""

    def followed(self, other: "Piece") -> "Piece":
        """Both as one."""
        return Piece(
            self.text + other.text,
            self.tokens + other.tokens,
            self.logprobs + other.logprobs,
            other.finish,
            self.prompt_tokens + other.prompt_tokens,
        )


More: TypeAlias = Callable[[int], Sequence[Asked]]
Emit: TypeAlias = Callable[[Asked, Piece | Exception], None]


class Writer(Protocol):
    """Writes texts for many who ask, in one thread."""

    def write(self, first: Sequence[Asked], more: More, emit: Emit) -> None:
        """Write until nothing is left.

        What fails for all is raised; what was told until then stays told.

        Args:
            first: checked (`graft.models.decoding.check`), in the order in which they begin.
            more: asked between tokens, or between batches, for at most so many who may join; never blocks.
            emit: hears each piece, and never blocks. Instead of a last piece, an exception where this text alone
                could not be written. Nothing more is told of a text that is `gone`.
        """
        ...
