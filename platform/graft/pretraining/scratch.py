"""What the one loop needs of a network that begins at random."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pyarrow as pa


@dataclasses.dataclass(frozen=True)
class Scratch:
    """The part of `graft.node.Trains` that all such networks share.

    Args:
        settings: sizes.
        seed: of the first weights.
        device: where it is trained: no part of what it is.
    """

    settings: Mapping[str, Any]
    seed: int
    device: str = "cpu"

    @property
    def terms(self) -> tuple[float, ...]:
        """One loss: the mean over all targets."""
        return (1.0,)

    def encode(self, rows: pa.Table) -> pa.Table:
        """Rows come encoded."""
        return rows

    def handles(self) -> dict[str, Any]:
        """None: nothing is frozen."""
        return {}
