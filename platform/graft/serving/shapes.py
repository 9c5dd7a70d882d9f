"""Texts in OpenAI's two shapes, of completions and of chats: whole, or as events of what is new."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graft.models.asked import PART, Piece, Token

Numbered = Sequence[tuple[int, Piece]]
"""Pieces, each with the number of its text."""

IMPOSSIBLE = -9999.0
"""OpenAI's log-probability of what cannot be; JSON has no infinity."""


@dataclass(frozen=True)
class Shape:
    """In which of OpenAI's two shapes texts are told."""

    chat: bool
    model: str
    fingerprint: str
    request_id: str
    created: int

    @property
    def head(self) -> dict[str, Any]:
        """What every answer begins with, but for its kind."""
        name = "chatcmpl" if self.chat else "cmpl"
        return {
            "id": f"{name}-{self.request_id}",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"fp_{self.fingerprint[:12]}",
        }

    def whole(self, pieces: Numbered, usage: dict[str, int]) -> dict[str, Any]:
        """One answer with all texts."""
        kind = "chat.completion" if self.chat else "text_completion"
        choices = [self._choice(number, piece) for number, piece in pieces]
        return {**self.head, "object": kind, "choices": choices, "usage": usage}

    def _choice(self, number: int, piece: Piece) -> dict[str, Any]:
        logprobs = self._logprobs(piece.logprobs)
        if not self.chat:
            return {"index": number, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": piece.finish}

    def event(self, new: tuple[int, Piece], begun: set[int]) -> dict[str, Any]:
        """What is new of one text: clients read an event's first choice only.

        Args:
            new: number of the text, and its piece.
            begun: texts that were told of before; this one is put in.
        """
        number, piece = new
        choice = self._choice(number, piece)
        if self.chat:
            del choice["message"]
            role = {} if number in begun else {"role": "assistant"}
            choice["delta"] = {**role, **({"content": piece.text} if piece.text or role else {})}
        begun.add(number)
        return {**self._event_head, "choices": [choice]}

    def counted(self, usage: dict[str, int]) -> dict[str, Any]:
        """The event after the last piece, where the usage was asked for."""
        return {**self._event_head, "choices": [], "usage": usage}

    @property
    def _event_head(self) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk" if self.chat else "text_completion"}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not tokens:
            return None
        if self.chat:
            return {"content": [_chat_token(token) for token in tokens], "refusal": None}
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [_by_name(token.top) for token in tokens],
            "text_offset": [token.offset for token in tokens],
        }


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else IMPOSSIBLE


def _by_name(top: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The likeliest of those that are named alike, as parts of characters are."""
    found: dict[str, float] = {}
    for name, logprob in top:
        found.setdefault(name, _finite(logprob))
    return found


def _chat_token(token: Token) -> dict[str, Any]:
    def entry(text: str, logprob: float) -> dict[str, Any]:
        # A part of a character has no text of its own, and OpenAI allows that its bytes are not told.
        return {"token": text, "logprob": _finite(logprob), "bytes": None if PART in text else list(text.encode())}

    return {**entry(token.text, token.logprob), "top_logprobs": [entry(*one) for one in token.top]}


@dataclass
class Counted:
    """Tokens of a request's texts: a prompt is counted once, whatever is written after it."""

    choices: int
    prompt: int = 0
    written: int = 0

    def add(self, pieces: Numbered) -> None:
        """Count what is new."""
        for number, piece in pieces:
            self.written += piece.tokens
            self.prompt += 0 if number % self.choices else piece.prompt_tokens

    @property
    def total(self) -> int:
        """Read and written."""
        return self.prompt + self.written

    @property
    def usage(self) -> dict[str, int]:
        """As OpenAI calls it."""
        return {"prompt_tokens": self.prompt, "completion_tokens": self.written, "total_tokens": self.total}


def event_line(content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"
