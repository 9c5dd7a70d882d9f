"""One text while it is written: when it ends, and what can be told of it."""

import dataclasses
from collections.abc import Sequence

from graft.models.asked import PART, Asked, Finish, Piece, Token
from graft.models.detokenizing import Spelling, Text
from graft.models.drawing import stream


class Growing:
    """A text to which tokens are added.

    Args:
        asked: what is written.
        prompt: tokens of its prompt.
        after: tokens that the text stands after: the prompt, or nothing beside an encoder.
        spelling: the tokenizer's.
        ends: tokens that end a text.
    """

    def __init__(
        self, asked: Asked, prompt: Sequence[int], after: Sequence[int], spelling: Spelling, ends: set[int]
    ) -> None:
        self.asked, self.prompt_tokens, self.ends = asked, len(prompt), ends
        self.text = Text(spelling, after)
        self.stream = stream(asked.seed) if asked.temperature > 0 else None
        self.tokens = 0
        self.finish: Finish | None = None
        self._held = ""
        self._told_characters = 0
        self._rest = ""
        """How the text would go on, were its newest token the last."""
        self._offset = 0
        """Of the newest token."""
        self._untold: list[Token] = []
        self._told_tokens = 0

    @property
    def over(self) -> bool:
        """Nothing more is to be written."""
        return self.finish is not None or self.asked.gone

    def add(self, token: int, worth: Token | None = None) -> Piece | None:
        """Take the next token; gives what can be told now, if anything can."""
        self.tokens += 1
        ended, stop = token in self.ends, self.asked.stop
        last = ended or self.tokens >= self.asked.max_new_tokens
        if worth is not None:
            self._offset = self._place(worth)
            self._untold.append(dataclasses.replace(worth, offset=self._offset))
        self._held += self.text.add(token)
        # What is not sure may already spell a stop string, and with what follows another text.
        self._rest = self.text.rest() if not self.text.sure and (last or stop or worth) else ""
        text = self._held + self._rest
        at = first_of(text, stop)
        if at is not None:
            self._held, self.finish = text[:at], "stop"
        elif last:
            self._held, self.finish = text, "stop" if ended else "length"
        sure = len(self._held) - (begun(self._held, stop) if self.finish is None else 0)
        if not sure and self.finish is None:
            return None
        return self._piece(sure)

    def _place(self, worth: Token) -> int:
        """Characters before a token that comes now."""
        sure = self._told_characters + len(self._held)
        if PART in self._rest and worth.text.startswith(PART):
            return max(sure, self._offset)  # it goes on with the character that is not whole
        return sure + len(self._rest)

    def _piece(self, sure: int) -> Piece:
        text, self._held = self._held[:sure], self._held[sure:]
        self._told_characters += len(text)
        prompt = 0 if self._told_tokens else self.prompt_tokens
        new, self._told_tokens = self.tokens - self._told_tokens, self.tokens
        worths, self._untold = tuple(self._untold), []
        return Piece(text, new, worths, self.finish, prompt)


def first_of(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string begins."""
    return min((at for at in map(text.find, stop) if at >= 0), default=None)


def begun(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of a text that a stop string may begin with."""
    most = min(len(text), max(map(len, stop), default=1) - 1)
    for count in range(most, 0, -1):
        end = text[-count:]
        if any(word.startswith(end) for word in stop):
            return count
    return 0
