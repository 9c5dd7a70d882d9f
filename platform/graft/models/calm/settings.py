"""What makes bridges what they are, beside their weights."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """How a composed model reads and bridges."""

    mode: Literal["mirror", "prompt", "context"]
    heads: int
    rank: int | None
    prenorm: bool
    distance_bias: bool
