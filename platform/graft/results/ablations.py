"""How the members of a sweep's ablations are called: the column `ablation` of its `metrics.parquet`.

    full                        nothing is taken away
    2 method.instruction=false  a ladder's rung: its number, and the item that it lacks besides those above it
    method.instruction=false    this item alone, or several of a factorial, one after the other

Sorted by name, the rungs of a ladder stand in its order. The name belongs to the sweep: a run's own table has none,
since the same experiment may be reached by an axis of another sweep, or by another ladder.
"""

import re
from collections.abc import Sequence

FULL = "full"
"""The name of what lacks nothing."""

_RUNG = re.compile(r"(\d+) (.+)")


def rung_name(number: int, last: int, item: str) -> str:
    """The name of a ladder's rung; numbers have as many digits as that of the last rung."""
    return f"{number:0{len(str(last))}d} {item}"


def combination_name(items: Sequence[str]) -> str:
    """The name of an experiment that lacks these items."""
    return " ".join(items) or FULL


def rung_of(name: str) -> int | None:
    """The number of a ladder's rung; None for `full`, and for what is no ladder."""
    found = _RUNG.fullmatch(name)
    return int(found[1]) if found else None


def label(name: str) -> str:
    """How tables write it: `full`, or `- method.instruction=false`."""
    if name == FULL:
        return FULL
    found = _RUNG.fullmatch(name)
    return f"- {found[2] if found else name}"
