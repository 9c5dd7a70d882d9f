"""Tokens to text while they come: the pieces together are exactly what decoding everything at once gives.

Tokens are decoded in a window that ends with the newest one and begins where a few tokens of known text stand, so a
token costs the same however long its text is:

    prompt … ─► [known tokens, new tokens] ─► text ─► without what is told already, and what is not sure yet
"""

import functools
from collections.abc import Sequence
from typing import Any

from graft.models.asked import PART

KEPT_TOKENS = 8
"""Of known text, at a window's beginning: what a tokenizer drops there is known text."""
LONGEST_WINDOW = 32


class Spelling:
    """What a tokenizer's tokens spell."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special = {token for token, one in tokenizer.added_tokens_decoder.items() if one.special}
        words = [f"<0x{value:02X}>" for value in range(256)]
        found = dict(zip(words, tokenizer.convert_tokens_to_ids(words), strict=True))
        # An unknown word is the tokenizer's unknown token.
        self.octets = {
            token
            for word, token in found.items()
            if token is not None and tokenizer.convert_ids_to_tokens(token) == word
        }
        """Tokens that are a byte: decoders read a run of them as a whole, and give it up as a whole."""
        self._before = tokenizer("a", add_special_tokens=False)["input_ids"]
        self.name = functools.lru_cache(maxsize=1 << 16)(self._name)

    def text(self, tokens: Sequence[int]) -> str:
        """As `writing.completion` decodes."""
        decoded = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(decoded)

    def _name(self, token: int) -> str:
        """What a token by itself writes after another; a special one's name."""
        if token in self.special:
            return str(self.tokenizer.convert_ids_to_tokens(token))
        before, both = self.text(self._before), self.text([*self._before, token])
        return both[len(before) :] if both.startswith(before) else self.text([token])


class Text:
    """The text of the tokens that follow a prompt.

    Args:
        spelling: the tokenizer's.
        prompt: tokens that the text stands after; none where it is written by a decoder beside an encoder.
    """

    def __init__(self, spelling: Spelling, prompt: Sequence[int]) -> None:
        self.spelling = spelling
        self.window, self.told = list(prompt), spelling.text(prompt) if prompt else ""
        self._shorten(self.told)
        self.given_tokens, self.given = len(self.window), len(self.told)
        """How much of the window is the prompt's."""
        self.in_run = False
        """The newest tokens are bytes that belong together."""
        self.sure = True
        """All of it is told: `rest` is empty."""

    def add(self, token: int) -> str:
        """What is sure now and was not before."""
        self.window.append(token)
        if token in self.spelling.octets:
            self.in_run = True
        elif token not in self.spelling.special:
            self.in_run = False
        if self.in_run:
            self.sure = False
            return ""
        return self._tell()

    def rest(self) -> str:
        """What is not sure: the text's end if nothing follows any more, and maybe something else if anything does."""
        text, told, _ = self._read()
        return text[told:]

    def _read(self) -> tuple[str, int, int]:
        """The window's text, how much of it is told, and how many of the window's tokens stand before it."""
        text = self.spelling.text(self.window)
        if self.given_tokens and not text.startswith(self.told):
            # The prompt's last character has become another one: `completion` reads the new tokens alone.
            text, start = self.spelling.text(self.window[self.given_tokens :]), self.given_tokens
            return text, len(self.told) - self.given, start
        return text, len(self.told), 0

    def _tell(self) -> str:
        text, told, start = self._read()
        if start:
            self.window, self.told, self.given_tokens, self.given = self.window[start:], text[:told], 0, 0
        # Of bytes that may become a character, a decoder makes one sign, and it is the last one.
        sure = len(text) - text.endswith(PART)
        new = text[told:sure]
        if new:
            self.told = text[:sure]
        self.sure = len(self.told) == len(text)
        if len(self.window) > LONGEST_WINDOW and self.sure:
            self._shorten(text)
        return new

    def _shorten(self, text: str) -> None:
        """Drop what the window does not need to spell its end, all of whose text is told."""
        for kept in (KEPT_TOKENS, 4 * KEPT_TOKENS):
            tail = self.window[-kept:]
            known = self.spelling.text(tail) if kept < len(self.window) else ""
            # A window may not begin inside a character or a word, which would then be spelt otherwise.
            if known and text.endswith(known):
                self.window, self.told = tail, known
                self.given_tokens = self.given = 0
                return
