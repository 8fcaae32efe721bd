"""What SSML's say-as means in words."""

import re

from vitalk.errors import UserError

from .cleaning import clean
from .normalise import normalise
from .numerals import cardinal, code, digits, ordinal, year
from .tables import LINK_SIGNS, MONTHS, SIGNS

INTERPRETATIONS = ("characters", "spell-out", "cardinal", "number", "ordinal", "digits", "date", "time", "telephone",
                   "currency")  # fmt: skip


def say_as(text: str, interpretation: str, form: str, lang: str) -> str:
    """The text in words. interpretation: one of ``INTERPRETATIONS``. form: order of a date, such as "dmy".

    Raises UserError where the text is no such thing.
    """
    text = clean(text)
    if interpretation in ("characters", "spell-out"):
        return _spelled(text, lang)
    if interpretation == "time":
        return normalise(text, lang)
    if not re.search(r"\d", text):
        raise UserError(f"{text!r} has no digit to be read as {interpretation}")
    if interpretation == "digits":
        return digits(re.sub(r"\D", "", text), lang)
    if interpretation == "telephone":
        plus = "plus " if text.startswith("+") and code(lang) == "en" else ""
        return plus + ", ".join(digits(group, lang) for group in re.findall(r"\d+", text))
    if interpretation == "date":
        return _date(text, form.lower(), lang)
    if interpretation == "currency":
        return normalise(text, lang)
    number = re.fullmatch(r"(-?)(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?:st|nd|rd|th|\.)?", text)
    if not number:
        raise UserError(f"{text!r} is no number to be read as {interpretation}")
    plain = number[2].replace(",", "")
    if interpretation == "ordinal":
        return ordinal(plain, lang)
    return cardinal(f"{number[1]}{plain}{number[3] or ''}", lang)


def _spelled(text: str, lang: str) -> str:
    names = SIGNS | LINK_SIGNS | {",": "comma", ";": "semicolon", "!": "exclamation mark", "'": "apostrophe"}
    if code(lang) != "en":
        return " ".join(digits(c, lang) if c.isdigit() else c for c in text if not c.isspace())
    # Letters that hang together are letters to espeak, even where one alone would be the article "a".
    apart = re.findall(r"[^\W\d_]+|\S", text)
    return " ".join(
        "-".join(p.upper()) if p.isalpha() else digits(p) if p.isdigit() else names.get(p, "") for p in apart
    )


def _date(text: str, form: str, lang: str) -> str:
    numbers = re.findall(r"\d+", text)
    if not form or sorted(form) != sorted(set(form) & set("dmy")) or len(numbers) != len(form):
        return normalise(text, lang)
    part = dict(zip(form, numbers, strict=True))
    if "m" in part and not 1 <= int(part["m"]) <= 12:
        raise UserError(f"{text!r} is no date of the form {form}")
    if "d" in part and not 1 <= int(part["d"]) <= 31:
        raise UserError(f"{text!r} is no date of the form {form}")
    if set(part) == set("dmy"):
        full = part["y"] if len(part["y"]) == 4 else f"20{part['y'][-2:]}"
        return normalise(f"{full}-{int(part['m']):02d}-{int(part['d']):02d}", lang)
    if code(lang) != "en":
        return normalise(text, lang)
    month = MONTHS[int(part["m"]) - 1] if "m" in part else ""
    said = (
        f"{month} {ordinal(part['d'], lang)}"
        if "d" in part
        else f"{month} {year(part['y'], lang)}"
        if "y" in part
        else month
    )
    return said.strip()
