"""Texts ranked by the words they share: BM25, by the bm25s library (Lu 2024, arXiv:2407.03618; k1 1.5, b 0.75).

Words are runs of letters, marks and digits without regard to case. Scripts that put no spaces between words give
pairs of neighbouring characters instead, as search engines read them. Nothing is stemmed and no word is left out:
that would depend on the language, and BM25 weighs frequent words little anyway.
"""

import functools
import itertools
import unicodedata
from collections.abc import Sequence

import numpy as np

UNSPACED = ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""How the Unicode names of characters begin whose scripts put no spaces between words."""


class Bm25:
    """Texts that others are compared with."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Count the texts' words."""
        import bm25s

        self.size = len(texts)
        counted = [words(text) for text in texts]
        self._index = bm25s.BM25() if any(counted) else None  # the library divides by the mean number of words
        if self._index is not None:
            self._index.index(counted, show_progress=False)

    def scores(self, text: str) -> np.ndarray:
        """How well each of the texts answers to this one, float32 [N]; zero where they share no word."""
        asked = words(text)
        if self._index is None or not asked:
            return np.zeros(self.size, np.float32)
        return np.asarray(self._index.get_scores(asked), np.float32)


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    found: list[str] = []
    for kind, run in itertools.groupby(unicodedata.normalize("NFKC", text).casefold(), _kind):
        whole = "".join(run)
        if kind == "spaced":
            found.append(whole)
        elif kind == "unspaced":
            found += [whole[at : at + 2] for at in range(max(1, len(whole) - 1))]
    return found


@functools.lru_cache(maxsize=65536)
def _kind(character: str) -> str:
    """Whether a character is part of a word, and of which kind of script."""
    # Marks count: Python's \w leaves out the vowel signs of Indic scripts, and would tear their words apart.
    if unicodedata.category(character)[0] not in "LMN":
        return ""
    return "unspaced" if unicodedata.name(character, "").startswith(UNSPACED) else "spaced"
