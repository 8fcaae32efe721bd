"""Unicode clean-up: one spelling for every sign, nothing that cannot be said."""

import re
import unicodedata

FIXED = "\ue000"  # stands for a word whose phonemes are given; clean text has no such character

# Signs of one meaning and many shapes. Dashes become the hyphen or the em dash, quotation marks the straight ones:
# the corpora that voices learn from hold no others.
_SAME = {
    "'": "‘’‚‛ʼ`´′ʹ＇",
    '"': "“”„‟″«»‹›〝〞＂「」『』《》",
    "-": "‐‑‒−﹣－",
    "—": "―⸺⸻–",
    ".": "。।॥۔｡។။",
    ",": "、،､﹐",
    ";": "؛︔",
    "?": "؟︖⸮",
    "(": "[{【〔〈",
    ")": "]}】〕〉",
    "/": "⁄∕",
    "•": "·‣◦▪●○■□◆◇►▶",
}
# What NFKC would turn into something read differently: a circle above is a degree, a raised 2 is no factor.
_KEPT = {
    "…": "…",
    "™": "™",
    "²": "²",
    "³": "³",
    "º": "º",
    "ª": "ª",
    "µ": "µ",
    "℃": "°C",
    "℉": "°F",
    "№": "No. ",
    "℅": "c/o",
}
_TO_SPACE = frozenset({"Zs", "Zl", "Zp", "Cc"})
_GONE = frozenset({"Cf", "Co", "Cn", "Cs", "So", "Sk"})  # So is where emoji, dingbats and pictographs live
_SIGNS = frozenset("°©®™^•")  # of the categories above, but read
_JOINERS = "\u200c\u200d"  # meaningful between letters of Arabic and Indic scripts


class _Cleaner(dict[int, str]):
    """A table for ``str.translate`` that works out each character once."""

    def __missing__(self, code: int) -> str:
        self[code] = found = self._of(chr(code))
        return found

    @staticmethod
    def _of(char: str) -> str:
        if char in _KEPT:
            return _KEPT[char]
        if char in "\n\u2029\x85":
            return "\n"
        digit = unicodedata.digit(char, None)
        if digit is not None:
            return str(digit)
        if unicodedata.numeric(char, None) is not None and "/" in (plain := _compatible(char)):
            return f" {plain}"
        category = unicodedata.category(char)
        if char in _JOINERS or char in _SIGNS:
            return char
        if category in _TO_SPACE:
            return " " if char.isspace() else ""
        if category in _GONE or 0xFE00 <= ord(char) <= 0xFE0F or char == "\u20e3":
            return ""
        return _compatible(char)


def _compatible(char: str) -> str:
    """NFKC of a character whose compatible form is no new sign, and one shape for quotes, dashes and brackets."""
    plain = unicodedata.normalize("NFKC", char)
    return "".join(_SHAPES.get(c, c) for c in plain if unicodedata.category(c) not in _GONE or c in _SIGNS)


_SHAPES = {shape: sign for sign, shapes in _SAME.items() for shape in shapes}
_CLEANER = _Cleaner()
_POWER = re.compile(r"(?<=\d)[⁰¹²³⁴-⁹]+")
_STRAY_JOINER = re.compile(f"(?<![\u0600-\u0dff])[{_JOINERS}]|[{_JOINERS}](?![\u0600-\u0dff])")
_SPACES = re.compile(r"[ \t]+")
_LINES = re.compile(r" ?\n ?")
_MANY = re.compile(r"([^\w\s])\1{3,}")


def clean(text: str) -> str:
    """Text in composed Unicode without controls, emoji and invisible characters; lines stay lines.

    Quotation marks become straight, brackets round, dashes "-" (in words) or "—" (between them), digits of all scripts
    0-9, vulgar fractions 1/2; a sign repeated more than three times is kept thrice; runs of spaces become one.
    """
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n").translate(_SURROGATES))
    text = _STRAY_JOINER.sub("", _powers(text).translate(_CLEANER))
    text = unicodedata.normalize("NFC", _powers(text))  # again: ¹ has become the digit before a ²
    text = text.replace("...", "…")
    text = _LINES.sub("\n", _SPACES.sub(" ", _MANY.sub(r"\1\1\1", text)))
    return text.strip(" ")


def _powers(text: str) -> str:
    return _POWER.sub(lambda m: "^" + unicodedata.normalize("NFKC", m.group()), text)


class _Surrogates(dict[int, int | None]):
    def __missing__(self, code: int) -> int | None:
        return None if 0xD800 <= code <= 0xDFFF else code


_SURROGATES = _Surrogates()
