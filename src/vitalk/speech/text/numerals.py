"""Number words by num2words, in every language that it has."""

import re
from functools import lru_cache

DIGITS = {"0": "zero", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "7": "seven",
          "8": "eight", "9": "nine"}  # fmt: skip
# (minus, decimal sign). What num2words makes of negative numbers and fractions is wrong in Polish, Italian, Vietnamese
# and others; languages that are not here leave both to espeak.
SIGNED = {
    "ar": ("سالب", "فاصلة"), "az": ("mənfi", "vergül"), "be": ("мінус", "коска"), "ca": ("menys", "coma"),
    "cs": ("minus", "celá"), "da": ("minus", "komma"), "de": ("minus", "Komma"), "en": ("minus", "point"),
    "eo": ("minus", "komo"), "es": ("menos", "coma"), "fa": ("منفی", "ممیز"), "fi": ("miinus", "pilkku"),
    "fr": ("moins", "virgule"), "he": ("מינוס", "נקודה"), "hu": ("mínusz", "egész"), "id": ("minus", "koma"),
    "is": ("mínus", "komma"), "it": ("meno", "virgola"), "ko": ("마이너스", "점"), "kz": ("минус", "үтір"),
    "lt": ("minus", "kablelis"), "lv": ("mīnus", "komats"), "nl": ("min", "komma"), "no": ("minus", "komma"),
    "pl": ("minus", "przecinek"), "pt": ("menos", "vírgula"), "ro": ("minus", "virgulă"), "ru": ("минус", "запятая"),
    "sk": ("mínus", "celá"), "sl": ("minus", "cela"), "sr": ("minus", "zapeta"), "sv": ("minus", "komma"),
    "tr": ("eksi", "virgül"), "uk": ("мінус", "кома"), "vi": ("âm", "phẩy"),
}  # fmt: skip
LONGEST = 15  # digits; what is longer is read digit by digit
# What num2words writes in Chinese characters, espeak cannot read in Japanese; its own numbers are sound.
_CODES = {"nb": "no", "nn": "no", "kk": "kz", "cmn": "", "yue": "", "hak": "", "ja": ""}


@lru_cache
def code(lang: str) -> str:
    """num2words' code of an espeak language, "" where it has none."""
    from num2words import CONVERTER_CLASSES

    base, _, region = lang.replace("_", "-").partition("-")
    base = _CODES.get(base, base)
    full = f"{base}_{region.upper()}"
    return next((found for found in (full, base) if found in CONVERTER_CLASSES), "")


@lru_cache(maxsize=50_000)
def _words(number: str, lang: str, kind: str) -> str:
    from num2words import num2words

    found = num2words(int(number), lang=code(lang), to=kind)
    if code(lang) == "en":
        found = found.replace(",", "")
        if lang.startswith("en-us"):
            found = found.replace(" and ", " ")
    return " ".join(found.split())


def _say(number: str, lang: str, kind: str) -> str:
    try:
        found = _words(number, lang, kind)
    except Exception:  # num2words raises whatever its languages happen to raise; the digits are what remains
        found = ""
    return found if found and not re.search(r"\d", found) else digits(number, lang)


def digits(number: str, lang: str = "en-us") -> str:
    """Digit by digit: "007" -> "zero zero seven"; as it is where there are no words."""
    if code(lang) == "en":
        return " ".join(DIGITS[c] for c in number if c in DIGITS)
    if not code(lang):
        return " ".join(number)
    return " ".join(_one(c, lang) for c in number if c in DIGITS)


@lru_cache(maxsize=2_000)
def _one(digit: str, lang: str) -> str:
    try:
        return _words(digit, lang, "cardinal")
    except Exception:
        return digit


def cardinal(number: str, lang: str = "en-us") -> str:
    """The number in words: "12" -> "twelve", "-3.05" -> "minus three point zero five".

    Zeros in front and more than ``LONGEST`` digits are read digit by digit.
    """
    if not code(lang):
        return number
    minus, point = SIGNED.get(code(lang)[:2], ("", ""))
    whole, _, fraction = number.removeprefix("-").partition(".")
    if (number[0] == "-" and not minus) or (fraction and not point):
        return number
    if len(whole) > LONGEST or (len(whole) > 1 and whole[0] == "0"):
        said = digits(whole, lang)
    else:
        said = _say(whole or "0", lang, "cardinal")
    parts = [minus if number[0] == "-" else "", said, f"{point} {digits(fraction, lang)}" if fraction else ""]
    return " ".join(part for part in parts if part)


def ordinal(number: str, lang: str = "en-us") -> str:
    """ "21" -> "twenty-first"; cardinal where the language has no ordinals."""
    if not code(lang):
        return number
    if len(number) > LONGEST:
        return digits(number, lang)
    try:
        found = _words(number, lang, "ordinal")
    except Exception:
        found = ""
    return found if found and not re.search(r"\d", found) else cardinal(number, lang)


def year(number: str, lang: str = "en-us") -> str:
    """ "1984" -> "nineteen eighty-four"; other languages read years as they read numbers or as num2words knows."""
    if code(lang) == "en" or code(lang) in ("de", "no", "da", "sv"):
        return _say(number.lstrip("0") or "0", lang, "year")
    return cardinal(number.lstrip("0") or "0", lang)


def plural(word: str) -> str:
    """Plural of an English number word: "eighty" -> "eighties"."""
    if word.endswith("y"):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("x", "s")) else "s")
