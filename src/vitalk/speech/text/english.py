"""English read aloud: the rules, in the order in which they apply.

Every rule is a regular expression and a function from its match to words. A rule can start only where a token does,
and what repeats is possessive or bounded, so that no text makes it backtrack: time is linear.
"""

import re
import unicodedata
from collections.abc import Callable
from re import Match

from . import numbers_english, words_english
from .numerals import digits
from .tables import SIGNS

Rule = tuple[re.Pattern[str], Callable[[Match[str], str], str]]
RULES: list[Rule] = [*words_english.LINKS, *words_english.ABBREVIATED, *numbers_english.RULES, *words_english.CAPITALS]
_SIGN = re.compile("[" + re.escape("".join(SIGNS)) + "]")
_TIDY = [
    (re.compile(r"[ \t]+"), " "),
    (re.compile(r" (?=[,.;:!?)])"), ""),
    (re.compile(r",(?:\s?,)+"), ","),
    (re.compile(r"(?<=\() "), ""),
    (re.compile(r" ?\n ?"), "\n"),
]


class _Unread(dict[int, int | str]):
    """Signs that have no words here become spaces."""

    def __missing__(self, code: int) -> int | str:
        self[code] = found = " " if unicodedata.category(chr(code)) in ("Sm", "Sc", "So", "Sk") else code
        return found


_UNREAD = _Unread()


def spoken(text: str, lang: str = "en-us") -> str:
    """Clean text as it is read, without a digit."""
    for pattern, words in RULES:
        text = pattern.sub(lambda match, words=words: words(match, lang), text)
    text = _SIGN.sub(lambda match: f" {SIGNS[match.group()]} ", text)
    text = re.sub(r"\d+", lambda match: f" {digits(match.group())} ", text).translate(_UNREAD)
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    return text.lstrip(" ,").rstrip(" ")
