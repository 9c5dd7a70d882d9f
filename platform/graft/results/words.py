"""How the report writes numbers and sentences."""

from collections.abc import Iterable, Sequence

from graft.results.statistics import Interval
from graft.results.tables import markdown_text, number

MOST_NAMES = 5
"""Names in one sentence; the rest are counted."""

SYMBOLS = {"better": "▲", "worse": "▼", "equivalent": "=", "undecided": "○"}
"""Stands before a verdict's word, so that a glance down a column tells them apart without colours."""

Sentence = tuple[tuple[str, bool], ...]
"""Pieces of text, each with whether it is emphasised."""


def sentence(*pieces: str | tuple[str, bool]) -> Sentence:
    """A sentence of plain pieces and of those that `strong` made."""
    return tuple((piece, False) if isinstance(piece, str) else piece for piece in pieces)


def strong(text: str) -> tuple[str, bool]:
    """An emphasised piece."""
    return text, True


def markdown_sentence(pieces: Sentence) -> str:
    """The sentence with what is emphasised in bold."""
    # A piece ends where a name begins: the space between the two is not to be lost.
    found = []
    for text, bold in pieces:
        inner = markdown_text(text)
        before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
        found.append(f"**{inner}**" if bold else f"{before}{inner}{after}" if inner else text)
    return "".join(found)


def signed(value: float) -> str:
    """`+0.030`, or with a minus sign of the same width."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def limits(interval: Interval, sign: bool = False) -> str:
    """`0.791 to 0.833`; nothing where they are unknown."""
    if interval.low is None or interval.high is None:
        return ""
    write = signed if sign else number
    return f"{write(interval.low)} to {write(interval.high)}"


def p_text(p: float | None) -> str:
    """`0.012`, or `< 0.001`; nothing where it is unknown."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def cost_text(value: float) -> str:
    """Four significant figures at most: 0.42, 61.3, 1,204, 22.7 M."""
    for limit, unit in ((1e9, " G"), (1e6, " M")):
        if value >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def names(found: Iterable[str], most: int = MOST_NAMES) -> str:
    """`a, b and c`, or `a, b, c, d, e and 7 more`."""
    found = list(found)
    shown = found if len(found) <= most + 1 else [*found[:most], f"{len(found) - most} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def plural(count: int, word: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def numbers(found: Sequence[int]) -> str:
    """`0, 1, 2`, or `0 to 9` where they follow one another and are many."""
    if len(found) > 3 and list(found) == list(range(found[0], found[0] + len(found))):
        return f"{found[0]:,} to {found[-1]:,}"
    return ", ".join(f"{value:,}" for value in found)
