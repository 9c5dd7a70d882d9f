"""What an augmenting model with a tokenizer of its own reads while the anchor's tokens come one by one.

    anchor tokens ─► text so far ─► words that are over ─► augmenting tokens

An augmenting token may be seen by an anchor token when its word is over in the text up to that anchor token: when
another word has begun after it, or the prompt ends there. Whether "un" goes on to "unhappy" is not known before, and to
let it show would tell the anchor what comes. The same function of the tokens so far serves training, scoring and
writing, so they cannot differ, and no augmenting token that was read is ever taken back.

A word is a run of letters and digits with the signs and spaces before it, or a run of signs; scripts that write
without spaces count each character. Words become tokens one by one, as they would inside a text.
"""

import copy
import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from graft import hashing
from graft.errors import ModelError
from graft.models.language import leading_ids

UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Tibetan, Burmese, Khmer, Japanese syllables, Chinese characters."""
SIGN = rf"[^\w\s{UNSPACED}]"
WORD = re.compile(rf"\s*(?:{SIGN}*(?:[{UNSPACED}]|(?:(?![{UNSPACED}])\w)+)|{SIGN}+)|\s+")
"""What comes next decides at most whether the last of a text's words is over."""
UNFINISHED = "\ufffd"
"""What bytes of an unfinished character are decoded to."""
AROUND = ("version", "truncation", "padding", "post_processor")
"""Parts of a tokenizer that do not say which tokens a text is."""
BEFORE = ("a", "0", ")")
"""What a word may stand behind while it becomes tokens, so that it is not taken for the beginning of a text."""


def same_tokenizer(one: Any, other: Any) -> bool:
    """Whether two tokenizers make the same tokens of every text."""
    return one is other or (one is not None and tokenizer_fingerprint(one) == tokenizer_fingerprint(other))


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A digest of how texts become tokens: vocabulary, merges and rules.

    What stands around a text (begin and end tokens), padding and chat templates do not matter.
    """
    if not getattr(tokenizer, "is_fast", False):
        return hashing.digest(type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()))
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return hashing.digest({name: content[name] for name in content if name not in AROUND})


class Interpreter:
    """From an anchor's tokens to an augmenting model's.

    Args:
        anchor: the anchor's tokenizer.
        augmenting: the augmenting model's.

    Raises:
        ModelError: one of them is slow, and cannot say where its tokens end.
    """

    def __init__(self, anchor: Any, augmenting: Any) -> None:
        for role, tokenizer in (("anchor", anchor), ("augmenting", augmenting)):
            if not getattr(tokenizer, "is_fast", False):
                raise ModelError(
                    f"the {role} model's tokenizer ({type(tokenizer).__name__}) cannot say where its tokens end; "
                    "load a fast one (tokenizer.json)"
                )
        self.anchor, self.augmenting = anchor, augmenting
        self.lead = leading_ids(augmenting)
        """What the augmenting model reads before every text."""
        self.silent = frozenset(anchor.all_special_ids)
        self.tokens = functools.lru_cache(maxsize=1 << 16)(self._tokens)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of anchor tokens, special ones left out."""
        return str(self.anchor.backend_tokenizer.decode(list(tokens), skip_special_tokens=True))

    def whole(self, text: str) -> list[int]:
        """All augmenting tokens of a text that is complete, special ones included."""
        return list(self.augmenting(text, verbose=False)["input_ids"])

    def read(self, tokens: Sequence[int], prompt_tokens: int | None = None) -> tuple[list[int], list[int]]:
        """What the augmenting model reads of a row, and how many of its tokens each anchor token may see.

        Args:
            tokens: of the anchor.
            prompt_tokens: how many of them are the prompt, after which its last word is over; None for no such place.
        """
        listener = Listener(self)
        found, seen = list(self.lead), []
        for token in tokens:
            found += listener.hear(token, prompt_tokens)
            seen.append(len(found))
        return found, seen

    def _tokens(self, word: str, first: bool) -> tuple[int, ...]:
        """A word's tokens as they are at the beginning of a text, or inside one."""
        for before in () if first else BEFORE:
            encoded = self.augmenting(
                before + word, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            spans = encoded["offset_mapping"]
            if not any(start < len(before) < end for start, end in spans):
                pairs = zip(encoded["input_ids"], spans, strict=True)
                return tuple(token for token, (start, _end) in pairs if start >= len(before))
        return tuple(self.augmenting(word, add_special_tokens=False, verbose=False)["input_ids"])


@dataclasses.dataclass
class Listener:
    """One row's text as it grows."""

    interpreter: Interpreter
    shown: list[int] = dataclasses.field(default_factory=list)
    """The last anchor tokens whose text is known: what follows is written as it stands behind them."""
    held: list[int] = dataclasses.field(default_factory=list)
    """Tokens after those, which end inside a character."""
    rest: str = ""
    """The beginning of a word that is not over."""
    begun: bool = False
    """Whether a word was read."""
    heard: int = 0
    """Anchor tokens so far."""

    def copied(self) -> "Listener":
        """Another one that has heard the same."""
        twin = copy.copy(self)
        twin.shown, twin.held = list(self.shown), list(self.held)
        return twin

    def hear(self, token: int, prompt_tokens: int | None = None) -> list[int]:
        """The augmenting tokens that an anchor token makes known."""
        self.heard += 1
        if token not in self.interpreter.silent:
            self.held.append(token)
            before, whole = map(self.interpreter.text, (self.shown, [*self.shown, *self.held]))
            if len(whole) > len(before) and not whole.endswith(UNFINISHED):
                self.rest += whole[len(before) :]
                self.shown, self.held = self.held, []
        return self._words(over=self.heard == prompt_tokens)

    def _words(self, over: bool) -> list[int]:
        words = WORD.findall(self.rest)
        ended = words if over else words[:-1]
        self.rest = "" if over else "".join(words[-1:])
        found: list[int] = []
        for word in ended:
            found += self.interpreter.tokens(word, not self.begun)
            self.begun = True
        return found
