"""English words and signs: links, abbreviations, acronyms, roman numerals."""

import re
from re import Match

from .cleaning import FIXED
from .numerals import cardinal, digits, ordinal, year
from .tables import (
    ABBREVIATIONS,
    BARE,
    BEFORE_NAME,
    BEFORE_NUMBER,
    EMPHASISED,
    LINK_SIGNS,
    MONARCHS,
    NUMBERED,
    SAID,
    SPELLED,
    TLDS,
    WITH_STOPS,
    either,
)  # fmt: skip

_VOWELS = frozenset("aeiouyAEIOUY")


def letters(word: str) -> str:
    """Letter by letter: "FBI" -> "F-B-I", which espeak reads as letters even where one is the article "a"."""
    return "-".join(word.upper())


def _ends(match: Match[str]) -> str:
    """The full stop of an abbreviation that ends the text is the sentence's too."""
    return "." if match.string[match.end() : match.end() + 1] in ("", "\n", '"', ")") else ""


def _link(text: str) -> str:
    words = []
    for token in re.findall(r"[^\W\d_]+|\d+|[^\w\s]|_", text):
        if token.isdigit():
            four = len(token) == 4 and token[0] in "12"
            words.append(year(token) if four else cardinal(token) if len(token) < 3 else digits(token))
        elif token == FIXED:
            words.append(token)
        elif token in LINK_SIGNS:
            words.append(LINK_SIGNS[token])
        elif token.isalpha():
            short = token.isascii() and (len(token) <= 2 or (len(token) <= 5 and not _VOWELS & set(token)))
            words.append(letters(token) if short else token)
    return " ".join(words)


def _url(match: Match[str], lang: str) -> str:
    found = re.sub(r"^[a-z]+://", "", match.group())
    whole = found.rstrip(".,;:!?)'*_")
    return _link(whole.rstrip("/")) + found[len(whole) :]


def _bare_domain(match: Match[str], lang: str) -> str:
    return _url(match, lang) if re.search(r"[A-Za-z]", match["name"]) else match.group()


def _camel(text: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_|(?<=[^\W\d])(?=\d)|(?<=\d)(?=[^\W\d])", " ", text)


def _titled(match: Match[str], lang: str) -> str:
    short = match["short"]
    before = match.string[max(match.start() - 30, 0) : match.start()].rstrip(" ")
    after = match.string[match.end() : match.end() + 2]
    place = bool(re.search(r"(?:[A-Z][a-z]+|\d(?:st|nd|rd|th))$", before))
    named = len(after) == 2 and after[0] == " " and after[1].isupper()
    if short == "St":
        return ("Street" if place else "Saint" if named else "Street") + _ends(match)
    return ("Drive" if place and not named else "Doctor") + _ends(match)


def _abbreviation(match: Match[str], lang: str) -> str:
    short = match["short"]
    key = short if short in ABBREVIATIONS else short.lower()
    after = match.string[match.end() : match.end() + 2].lstrip(" ")
    if key in BEFORE_NUMBER and not after[:1].isdigit():
        return match.group()
    if key in BEFORE_NAME and not after[:1].isupper():
        return match.group()
    again = "." if key == "etc" and after[:1].isupper() else _ends(match)
    gap = " " if key in BEFORE_NUMBER else ""
    return ABBREVIATIONS[key] + gap + again


def _acronym(match: Match[str], lang: str) -> str:
    word, tail = match["word"], match["tail"] or ""
    vowels = _VOWELS & set(word)
    if word in SAID or (word in EMPHASISED and word not in SPELLED):
        return match.group()
    shouted = word in EMPHASISED or (len(word) > 3 and vowels) or word == "OK"
    if shouted and (word not in SPELLED or (word in EMPHASISED and _shouting(match))):
        return match.group()
    if vowels and word not in SPELLED and _shouting(match):
        return match.group()
    return letters(word) + ("'s" if tail else "")


def _shouting(match: Match[str]) -> bool:
    """Whether the words around it are in capitals, so that capitals mean nothing."""
    around = match.string[max(match.start() - 60, 0) : match.start()] + match.string[match.end() : match.end() + 60]
    return bool(re.search(r"[A-Z]{3}", around)) and not re.search(r"[a-z]{2}", around)


def roman(numeral: str) -> int:
    """Value of a roman numeral, 0 where it is none: "VIII" -> 8."""
    if not re.fullmatch(r"M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})", numeral):
        return 0
    values = [dict(zip("IVXLCDM", (1, 5, 10, 50, 100, 500, 1000), strict=True))[c] for c in numeral]
    return sum(-v if v < after else v for v, after in zip(values, [*values[1:], 0], strict=True))


def _roman(match: Match[str], lang: str) -> str:
    name, numeral = match["name"], match["numeral"]
    value = roman(numeral)
    after = match.string[match.end() : match.end() + 9]
    if not value or numeral in ("MD", "DC", "CD", "DM", "MM", "CV", "MC", "MI", "DI", "LI", "XL", "L", "C", "D", "M"):
        return match.group()
    if numeral == "I" and not re.match(
        r"$|[.,;:!?)'\n]| (?:was|of|and|became|died|had|to|in|began|ended|ruled)\b", after
    ):
        return match.group()
    if name in MONARCHS:
        return f"{name} the {ordinal(str(value), lang).capitalize()}"
    if name in NUMBERED or len(numeral) > 1:
        return f"{name} {cardinal(str(value), lang)}"
    return match.group()


LINKS = [
    (re.compile(r"(?<![\w.+%-])[A-Za-z0-9._%+-]{1,64}+@[A-Za-z0-9-]{1,63}+(?:\.[A-Za-z0-9-]{1,63}+){1,8}+"),
     lambda m, lang: _link(m.group())),
    (re.compile(r"(?<!\w)(?:https?://|ftp://|www\.)[^\s<>\"]++"), _url),
    (re.compile(rf"(?<![\w@./-])(?P<name>(?:[A-Za-z0-9-]{{1,63}}+\.){{1,6}})(?:{TLDS})(?![\w-])"
                r"(?:/[^\s<>\"]*+)?"), _bare_domain),
    (re.compile(r"(?<![\w&])#(?=\d*[^\W\d])(\w++)"), lambda m, lang: f"hashtag {_camel(m[1])}"),
    (re.compile(r"(?<![\w.])@(\w++)"), lambda m, lang: f"at {_camel(m[1])}"),
    (re.compile(r"(?<!\w)([CF])#(?!\w)"), lambda m, lang: f"{m[1]} sharp"),
    (re.compile(r"(?<!\w)w/o(?!\w)"), lambda m, lang: "without"),
    (re.compile(r"(?<!\w)w/(?=\s)"), lambda m, lang: "with"),
    (re.compile(r"(?<!\w)c/o(?!\w)"), lambda m, lang: "care of"),
    (re.compile(r"(?<!\w)([Aa]nd)/(?=or(?!\w))"), lambda m, lang: f"{m[1]} "),
]  # fmt: skip

_SHORT = either({s for a in ABBREVIATIONS for s in (a, a.capitalize())} - {"St", "Dr"})
ABBREVIATED = [
    (re.compile(rf"(?<![\w.])({either(WITH_STOPS)})(?!\w)"), lambda m, lang: WITH_STOPS[m[1]] + _ends(m)),
    (re.compile(r"(?<![\w.'])((?:[A-Za-z]\.){2,8}+)(?!\w)"), lambda m, lang: letters(m[1].replace(".", "")) + _ends(m)),
    (re.compile(r"(?<![\w.'])([B-HJ-Z])\.(?=\s[A-Z])"), lambda m, lang: m[1]),
    (re.compile(r"(?<![\w.])(?P<short>St|Dr)\.(?!\w)"), _titled),
    (re.compile(rf"(?<![\w.])(?P<short>{_SHORT})\.(?![^\W\d])"), _abbreviation),
    (re.compile(rf"(?<![\w.])({either(BARE)})(?![\w.-])"), lambda m, lang: ABBREVIATIONS[m[1]]),
]

CAPITALS = [
    (re.compile(r"(?<!\w)(?P<name>[A-Z][a-z]{1,20}+) (?P<numeral>[IVXLCDM]{1,9}+)(?!\w|-[A-Z])"), _roman),
    (re.compile(r"(?<!\w)([A-Z]{1,4})&([A-Z]{1,4})(?!\w)"), lambda m, lang: f"{letters(m[1])} and {letters(m[2])}"),
    (re.compile(r"(?<![\w'])(?P<word>[A-Z]{2,6}+)(?P<tail>'?s)?(?!\w)"), _acronym),
]
