"""SSML: the part of the W3C's Speech Synthesis Markup Language 1.1 that says how to speak, as a list of spans.

speak, p, s, break, prosody, phoneme, sub, say-as, lang. What the steps of rate, pitch, volume and pause amount to is
our choice; the standard leaves it open.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from xml.parsers import expat

from vitalk.errors import UserError, nearest

from .say_as import INTERPRETATIONS, say_as
from .symbols import unknown

SENTENCE, PARAGRAPH = 0.3, 0.6  # seconds of pause
TAGS = ("speak", "p", "s", "break", "prosody", "phoneme", "sub", "say-as", "lang")
RATES = {"x-slow": 0.5, "slow": 0.75, "medium": 1.0, "default": 1.0, "fast": 1.25, "x-fast": 1.5}
PITCHES = {"x-low": 0.75, "low": 0.87, "medium": 1.0, "default": 1.0, "high": 1.15, "x-high": 1.33}
VOLUMES = {"silent": float("-inf"), "x-soft": -12.0, "soft": -6.0, "medium": 0.0, "default": 0.0, "loud": 6.0,
           "x-loud": 12.0}  # fmt: skip
BREAKS = {"none": 0.0, "x-weak": 0.1, "weak": 0.2, "medium": 0.4, "strong": 0.75, "x-strong": 1.2}
_NUMBER = r"([+-]?(?:\d{1,6}(?:\.\d{0,6})?|\.\d{1,6}))"


@dataclass
class Span:
    """Text that is spoken in one manner.

    phonemes: IPA that replaces the text's own. rate, pitch: factors. volume: dB. pause: seconds of silence after it.
    lang: code of the language, None for the one around. A span without text is only a pause.
    """

    text: str
    phonemes: str | None = None
    rate: float = 1.0
    pitch: float = 1.0
    volume: float = 0.0
    pause: float = 0.0
    lang: str | None = None


def parse_ssml(text: str, lang: str = "en-us") -> list[Span]:
    """Spans of SSML in the order of speech; the speak element around it may be left out.

    lang: language of the text where it names none, for say-as. Nested prosody multiplies (dB add up).
    Raises UserError, with line, column and tag, for what is malformed, tags and values that do not exist, and document
    types (with them, for entities that expand).
    """
    # XML forbids these outright, in whatever way they got into a text.
    text = re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)
    whole = re.match(r"\ufeff?\s*(?:<\?xml\b|<!DOCTYPE\b|<!--|<speak\b)", text)
    return _Parser(lang, wrapped=not whole).parse(text)


@dataclass
class _Element:
    tag: str
    manner: Span
    attributes: dict[str, str] = field(default_factory=dict)


class _Parser:
    def __init__(self, lang: str, wrapped: bool):
        self.lang, self.wrapped = lang, wrapped
        self.spans: list[Span] = []
        self.open: list[_Element] = []
        self.text: list[str] = []
        self.parser = expat.ParserCreate("utf-8")
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self.text.append

    def parse(self, text: str) -> list[Span]:
        source = f"<speak>{text}</speak>" if self.wrapped else text.lstrip("\ufeff \t\r\n")
        try:
            self.parser.Parse(source.encode(), True)
        except expat.ExpatError as error:
            column = error.offset - (7 if self.wrapped and error.lineno == 1 else 0)
            tag = self.open[-1].tag if self.open else "speak"
            reason = expat.ErrorString(error.code)
            raise UserError(
                f"SSML line {error.lineno}, column {column + 1}, in <{tag}>: {reason}; "
                "close every tag, write & as &amp;"
            ) from None
        for span in self.spans:
            span.text = span.text if span.phonemes is None else span.text.strip()
        return [span for span in self.spans if span.text.strip() or span.phonemes or span.pause]

    def _fail(self, tag: str, problem: str) -> UserError:
        line, column = self.parser.CurrentLineNumber, self.parser.CurrentColumnNumber
        column -= 7 if self.wrapped and line == 1 else 0
        return UserError(f"SSML line {line}, column {column + 1}, <{tag}>: {problem}")

    def _doctype(self, name: str, *_: object) -> None:
        raise self._fail("!DOCTYPE", "document types and entities are not allowed; leave it out")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        tag = name.rpartition(":")[2]
        if tag not in TAGS:
            raise self._fail(name, f"there is no such tag; there are {', '.join(TAGS)}.{nearest(tag, list(TAGS))}")
        if self.open and self.open[-1].tag in ("phoneme", "sub", "say-as", "break"):
            raise self._fail(tag, f"it cannot stand inside <{self.open[-1].tag}>, which holds text only")
        if (tag == "speak") == bool(self.open):
            raise self._fail(tag, "<speak> must be around everything, once")
        self._flush()
        manner = self.open[-1].manner if self.open else Span("")
        if language := attributes.get("xml:lang") or (attributes.get("lang") if tag == "lang" else None):
            manner = replace(manner, lang=language)
        elif tag == "lang":
            raise self._fail(tag, 'it needs a language, such as xml:lang="de"')
        if tag == "prosody":
            manner = self._prosody(manner, attributes)
        if tag == "break":
            self._pause(self._break(attributes))
        for needed, values in {
            "phoneme": ("ph", ()),
            "sub": ("alias", ()),
            "say-as": ("interpret-as", INTERPRETATIONS),
        }.items():
            if tag == needed:
                self._require(tag, attributes, *values)
        if tag == "phoneme" and attributes.get("alphabet", "ipa") != "ipa":
            raise self._fail(tag, f'the alphabet {attributes["alphabet"]!r} is not known; use alphabet="ipa"')
        if tag == "phoneme" and (strange := unknown(attributes["ph"])):
            raise self._fail(tag, f"ph holds {strange!r}, which is no IPA")
        self.open.append(_Element(tag, manner, attributes))

    def _require(self, tag: str, attributes: dict[str, str], key: str, values: tuple[str, ...]) -> None:
        value = attributes.get(key, "").strip()
        if not value:
            raise self._fail(tag, f"it needs the attribute {key}")
        if values and value not in values:
            raise self._fail(tag, f"{key} cannot be {value!r}; choose one of {', '.join(values)}")

    def _end(self, name: str) -> None:
        element = self.open[-1]
        inside = " ".join("".join(self.text).split())
        if element.tag == "phoneme":
            self.text.clear()
            self.spans.append(replace(element.manner, text=inside, phonemes=element.attributes["ph"].strip()))
        elif element.tag == "sub":
            self.text[:] = [element.attributes["alias"]]
        elif element.tag == "say-as":
            self.text[:] = [self._say_as(inside, element)]
        elif element.tag == "break":
            if inside:
                raise self._fail("break", "it holds no text; write <break/>")
            self.text.clear()
        self._flush()
        if element.tag in ("p", "s"):
            self._pause(PARAGRAPH if element.tag == "p" else SENTENCE, least=True)
        self.open.pop()

    def _say_as(self, inside: str, element: _Element) -> str:
        attributes = element.attributes
        try:
            return say_as(
                inside,
                attributes["interpret-as"].strip(),
                attributes.get("format", ""),
                (element.manner.lang or self.lang).lower(),
            )
        except UserError as error:
            raise self._fail("say-as", str(error)) from None

    def _flush(self) -> None:
        """Make a span of the text so far, or lengthen the last one if the manner is the same."""
        text = re.sub(r"\s+", " ", "".join(self.text))
        self.text.clear()
        if not text or not self.open:
            return
        manner = self.open[-1].manner
        last = self.spans[-1] if self.spans else None
        if (
            last
            and last.phonemes is None
            and not last.pause
            and (text == " " or replace(last, text="") == replace(manner, text=""))
        ):
            last.text += text
        elif text != " " or (last and not last.pause):
            self.spans.append(replace(manner, text=text))

    def _pause(self, seconds: float, least: bool = False) -> None:
        while self.spans and not (self.spans[-1].text.strip() or self.spans[-1].phonemes or self.spans[-1].pause):
            self.spans.pop()
        if not self.spans:
            self.spans.append(Span("")) if not least else None
        if self.spans:
            last = self.spans[-1]
            last.pause = max(last.pause, seconds) if least else last.pause + seconds

    def _break(self, attributes: dict[str, str]) -> float:
        if "time" not in attributes:
            strength = attributes.get("strength", "medium")
            if strength not in BREAKS:
                raise self._fail("break", f"strength cannot be {strength!r}; choose one of {', '.join(BREAKS)}")
            return BREAKS[strength]
        found = re.fullmatch(rf"\+?{_NUMBER}(ms|s)", attributes["time"].strip())
        seconds = float(found[1]) / (1000 if found[2] == "ms" else 1) if found else -1.0
        if not 0 <= seconds <= 60:
            raise self._fail(
                "break", f'time cannot be {attributes["time"]!r}; give up to 60 s, such as "500ms" or "1s"'
            )
        return seconds

    def _prosody(self, manner: Span, attributes: dict[str, str]) -> Span:
        def value(key: str, names: dict[str, float], read: Callable[[str], float | None], example: str) -> float | None:
            if key not in attributes:
                return None
            given = attributes[key].strip().lower()
            number = names[given] if given in names else read(given)
            if number is None:
                raise self._fail("prosody", f"{key} cannot be {given!r}; give {example}, or one of {', '.join(names)}")
            return number

        rate = value("rate", RATES, _factor, '"120%" or "1.2" (0.1 to 10 times)')
        pitch = value("pitch", PITCHES, _pitch, '"+2st" or "-5%" (0.1 to 10 times)')
        volume = value("volume", VOLUMES, _decibels, '"+6dB" (up to 60 dB)')
        return replace(
            manner, rate=manner.rate * (rate or 1), pitch=manner.pitch * (pitch or 1),
            volume=manner.volume + (volume or 0),
        )  # fmt: skip


def _factor(given: str) -> float | None:
    found = re.fullmatch(rf"{_NUMBER}(%?)", given)
    if not found:
        return None
    number = float(found[1])
    if found[2]:
        number = number / 100 + (1 if given[0] in "+-" else 0)
    return number if 0.1 <= number <= 10 else None


def _pitch(given: str) -> float | None:
    found = re.fullmatch(rf"{_NUMBER}st", given)
    if not found:
        return _factor(given)
    factor = 2 ** (max(min(float(found[1]), 99.0), -99.0) / 12)
    return factor if 0.1 <= factor <= 10 else None


def _decibels(given: str) -> float | None:
    found = re.fullmatch(rf"{_NUMBER}db", given)
    return float(found[1]) if found and abs(float(found[1])) <= 60 else None
