"""What little worlds are made of: rows about things that exist only here, so that the truth is known."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Random = np.random.Generator


@dataclass(frozen=True)
class Row:
    """A prompt and what follows it."""

    part: str
    """Which kind of row it is."""
    prompt: str
    answer: str


def one_in(share: float, world: int, text: str) -> bool:
    """Whether a text is among a share of all texts, which its own hash decides."""
    number = int.from_bytes(hashlib.blake2b(f"{world} {text}".encode(), digest_size=8).digest(), "little")
    return number < share * 2**64


def names(count: int, random: Random, taken: Sequence[str] = ()) -> list[str]:
    """Different pronounceable words."""
    consonants, vowels = list("bdfghjklmnprstvz"), list("aeiou")
    found: dict[str, None] = {}
    length = 2
    while len(found) < count:
        for _ in range(4 * count):
            word = "".join(random.choice(consonants) + random.choice(vowels) for _ in range(length))
            if word not in taken and len(found) < count:
                found[word] = None
        length += 1
    return list(found)
