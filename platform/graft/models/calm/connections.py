"""Which layer of an augmenting model is read at which layer of the anchor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graft.errors import ModelError

Pair = tuple[int, int]
"""A layer of the augmenting model and one of the anchor: 0 the embeddings, i what block i gives."""

EVERY = 4
"""The paper reads every fourth layer of the augmenting model (section 4)."""


@dataclass(frozen=True)
class Connection:
    """One bridge's place."""

    model: int
    """Number of the augmenting model, from 0."""
    source: int
    """Its layer that is read."""
    target: int
    """The anchor's layer whose states are changed."""


def paper(augmenting_depth: int, anchor_depth: int) -> list[Pair]:
    """Connections by the paper's rule (Bansal et al. 2024, sections 3.1 and 4), evenly spaced in both models.

    n = augmenting depth / 4 of them. Which layer of each four is read is not stated there: here it is the last one, so
    that the augmenting model's last layer is always read.

    Args:
        augmenting_depth: blocks of the augmenting model.
        anchor_depth: blocks of the anchor.
    """
    count = max(1, min(augmenting_depth // EVERY, anchor_depth))
    return [(round(i * augmenting_depth / count), round(i * anchor_depth / count)) for i in range(1, count + 1)]


def resolved(given: Any, augmenting_depths: Sequence[int], anchor_depth: int) -> tuple[Connection, ...]:
    """All connections in order.

    Args:
        given: `paper`, a list of pairs for every augmenting model, or one such list for each.
        augmenting_depths: blocks of each augmenting model.
        anchor_depth: blocks of the anchor.

    Raises:
        ModelError: a layer that a model has not, a pair twice, or none at all.
    """
    found: list[Connection] = []
    lists = _lists(given, augmenting_depths, anchor_depth)
    for number, (pairs, depth) in enumerate(zip(lists, augmenting_depths, strict=True)):
        for source, target in pairs:
            _check("augmenting", source, depth)
            _check("anchor", target, anchor_depth)
            connection = Connection(number, source, target)
            if connection in found:
                raise ModelError(f"connections: [{source}, {target}] is there twice; name each pair once")
            found.append(connection)
    if not found:
        raise ModelError("connections: got none; give paper, or pairs such as [[2, 0], [2, 1]]")
    return tuple(found)


def _lists(given: Any, augmenting_depths: Sequence[int], anchor_depth: int) -> list[list[Pair]]:
    """The pairs of each augmenting model."""
    if given == "paper":
        return [paper(depth, anchor_depth) for depth in augmenting_depths]
    several = isinstance(given, list | tuple) and bool(given) and all(map(_is_pairs, given))
    if several and len(given) != len(augmenting_depths):
        raise ModelError(
            f"connections: got {len(given)} lists of pairs for {len(augmenting_depths)} augmenting models; give one "
            "list for all, or one for each"
        )
    if not several and not _is_pairs(given):
        raise ModelError(f"connections: got {given!r}; give paper, or pairs such as [[2, 0], [2, 1]]")
    return [[(int(a), int(b)) for a, b in pairs] for pairs in (given if several else [given] * len(augmenting_depths))]


def _is_pairs(given: Any) -> bool:
    return isinstance(given, list | tuple) and all(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(isinstance(layer, int) and not isinstance(layer, bool) for layer in pair)
        for pair in given
    )


def _check(role: str, layer: int, depth: int) -> None:
    if not 0 <= layer <= depth:
        raise ModelError(
            f"connections: layer {layer} of the {role} model; it has {depth} blocks: give 0 (its embeddings) to {depth}"
        )
