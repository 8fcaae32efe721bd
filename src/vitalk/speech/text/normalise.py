"""Text as it is written -> text as it is read aloud."""

import re

from .cleaning import clean
from .english import spoken as english
from .international import spoken as international

_DASHES = re.compile(r"-{2,3}+|——+")


def normalise(text: str, lang: str = "en-us") -> str:
    """Write out what a voice has to read: numbers, dates, times, money, units, abbreviations, links, signs.

    lang: code of an espeak language. English is treated in full and comes back without a digit; day and month are in
    American order for en-us and after the day elsewhere. Other languages get numbers, money, percents, times and dates
    in words where num2words knows the language, the rest is espeak's. Time grows linearly with the text. The rules are
    ours.
    """
    return verbalise(clean(text), lang)


def verbalise(text: str, lang: str) -> str:
    """``normalise`` for text that is clean already; characters of private use pass through."""
    text = _DASHES.sub("—", text)
    lang = lang.replace("_", "-").lower()
    if lang.partition("-")[0] == "en":
        return english(text, "en-us" if lang == "en" else lang)
    return international(text, lang)
