r"""What a written answer says: parsers that read one value out of a model's text.

    "So 3 × 6 = 18. The answer is 18."   number ──► "18"
    "(A) is too small, hence (C)."       choice ──► "C"

A parser takes any text and gives a normal form, so that answers written in different ways compare equal, or None where
it finds nothing. What it gives it reads again as the same.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable

from graft.errors import DataError

MARKER = r"(?:####|\banswer\s*(?:is|:)(?:\s*:)?)"
"""What announces the answer: GSM8K's own sign, and the words that prompts for reasoning teach."""

_SIGNS = str.maketrans({"−": "-", "－": "-", "﹣": "-", "，": ",", "．": ".", "٬": ",", "٫": ".", "％": "%", "＄": "$"})
"""Signs of other scripts; decimal digits are known to Unicode."""
_GROUPED = (
    r"\d{1,3}(?:,\d{2,3})*,\d{3}",  # 1,234,567 and 12,34,567
    r"\d{1,3}(?:\.\d{3}){2,}",
    r"\d{1,3}(?:[\u00a0\u202f\u2009]\d{3})+",
)
"""Digits with separators of thousands."""
_NUMBER = re.compile(
    # A sign after a digit, a letter or a bracket subtracts; before or after a currency's sign it is the number's.
    r"(?:(?<![\w)])(?P<before>-)\s?)?(?:[$€£¥₹]\s?(?P<after>-)?)?"
    r"(?<![A-Za-z0-9_])(?<!\d\.)(?:"
    rf"(?P<grouped>{'|'.join(_GROUPED)})(?!\d)(?P<part>\.\d+)?"
    r"|(?<!,)(?P<whole>\d+),(?P<comma>\d{1,2})(?![\d,])"
    r"|(?P<plain>\d+(?:\.\d+)?|(?<!\.)\.\d+))"
)
_CHOICE = re.compile(r"\(\s*([A-Ja-j])\s*\)")
_ANNOUNCED_CHOICE = re.compile(
    # "A dog" and "I think" are no choices, "A because" is one; as small letters "a" and "i" are words.
    rf"(?i:{MARKER})\s*(?:\(\s*([A-Ja-j])\s*\)"
    r"|([B-HJb-hj]|[AI](?![ \t]+(?!(?:as|because|but|not|or|since)\b)[a-z]))(?![\w'’]))"
)
_BARE_CHOICE = re.compile(r"\s*(?:([A-Ja-j])\s*[.:)]?\s*$|([A-J])[.:)]\s)")
_YES_NO = re.compile(r"\b(yes|no)\b", re.I)
_BLOCK = re.compile(r"```[ \t]*(?:python3?|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.S | re.I)


def number(text: str) -> str | None:
    """The first number after the last "answer is", "answer:" or "####", else the last number of the text.

    Reads digits of any script, thousands separators (1,234,567; 1,00,000; 1.234.567; 1 234 with a no-break space), a
    decimal comma before one or two digits, and drops currencies, "%" and what is zero: "$1,050.0" is "1050".
    "70.000" is 70: one dot is a decimal point.
    """
    plain = "".join(_ascii(character) for character in text.translate(_SIGNS))
    for marker in reversed(list(re.finditer(MARKER, plain, re.I))):
        if found := _NUMBER.search(plain, marker.end()):
            return _normal_number(found)
    numbers = list(_NUMBER.finditer(plain))
    return _normal_number(numbers[-1]) if numbers else None


def choice(text: str) -> str | None:
    """The letter A to J of one of several options, as a capital.

    The one after "answer is", else a text that is one letter or begins with one ("B. because"), else the last one in
    brackets.
    """
    bare = text.replace("*", "")
    announced = list(_ANNOUNCED_CHOICE.finditer(bare))
    found = announced[-1] if announced else _BARE_CHOICE.match(bare)
    found = found or next(iter(list(_CHOICE.finditer(bare))[-1:]), None)
    return next(letter for letter in found.groups() if letter).upper() if found else None


def yes_no(text: str) -> str | None:
    """`yes` or `no`: the one after "answer is", else the one the text begins with, else the last one."""
    words = list(_YES_NO.finditer(text))
    if not words:
        return None
    for marker in reversed(list(re.finditer(MARKER, text, re.I))):
        if found := _YES_NO.search(text, marker.end()):
            return found[1].lower()
    begins = not re.search(r"\w", text[: words[0].start()])
    return words[0 if begins else -1][1].lower()


def python(text: str) -> str | None:
    """The code of the first block between ``` marks that holds any, else the text itself; its indentation stays."""
    blocks = [block for block in _BLOCK.findall(text) if block.strip()]
    code = (blocks[0] if blocks else text).replace("\r\n", "\n")
    return re.sub(r"\A(?:[ \t]*\n)+", "", code.rstrip()) or None


PARSERS: dict[str, Callable[[str], str | None]] = {
    "number": number,
    "choice": choice,
    "yes_no": yes_no,
    "python": python,
}
"""Name to the function that reads an answer; None means that there is none in it."""

SINGLE = ("number", "choice", "yes_no")
"""Parsers that give one value: it is right or wrong, and nothing in between."""


def parse(text: str | None, parser: str | None) -> str | None:
    """What an answer says: the text as it is where the task names no parser."""
    return text if text is None or parser is None else PARSERS[parser](text)


def check_targets(targets: Iterable[str], parser: str | None, where: str) -> None:
    """Refuse targets that could never be met.

    Args:
        targets: of all rows of a file.
        parser: the spec's `task.parser`.
        where: file and column, for the message.

    Raises:
        DataError: the parser finds nothing in one of them; the message names the row.
    """
    for row, target in enumerate(targets, 1):
        if parse(target, parser) is None:
            shown = target if len(target) <= 60 else target[:60] + "…"
            raise DataError(
                f"{where}, row {row} (counted from 1, without the header): task.parser: {parser} finds nothing in the "
                f"target {shown!r}; correct the row, or choose another parser: {', '.join(PARSERS)}"
            )


def _ascii(character: str) -> str:
    """A decimal digit of any script as one of 0 to 9."""
    value = unicodedata.decimal(character, None)
    return character if value is None else str(value)


def _normal_number(found: re.Match[str]) -> str:
    """Without separators, zeros that say nothing, and a sign of zero; never in exponents."""
    if found["grouped"]:
        text = re.sub(r"\D", "", found["grouped"]) + (found["part"] or "")
    else:
        text = found["plain"] or f"{found['whole']}.{found['comma']}"
    whole, _, part = text.partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    value = f"{whole}.{part}" if part else whole
    return f"-{value}" if (found["before"] or found["after"]) and value != "0" else value
