"""The text front end: text in, symbol ids out, one sentence at a time."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from vitalk.errors import UserError

from .cleaning import FIXED, clean
from .normalise import verbalise
from .phonemes import Fixed, Phonemizer
from .sentences import split_sentences
from .ssml import PARAGRAPH, SENTENCE, Span, parse_ssml
from .symbols import utterance_ids

Piece = tuple[str, list[Fixed], float]  # a sentence, its given phonemes, seconds of pause after it
LONGEST = 600  # characters of one utterance as it is read
CLAUSE = 0.15  # seconds of pause after a part of a long sentence


@dataclass
class Utterance:
    """What is synthesised in one go.

    text: as written. phonemes: IPA; ids: the same as symbol ids, see ``utterance_ids``. rate, pitch: factors.
    volume: dB. pause: seconds of silence after it. Without phonemes it is only its pause.
    """

    text: str
    phonemes: str
    ids: list[int]
    rate: float = 1.0
    pitch: float = 1.0
    volume: float = 0.0
    pause: float = 0.0


class Front:
    """Text or SSML to utterances.

    lang: code of an espeak language. lexicon: pronunciations for that language, see ``Phonemizer``.
    Pauses, where the text does not set them, are ours: 0.3 s after a sentence, 0.6 s after a paragraph, 0.15 s after a
    part of a long sentence or a line without full stop, none at the end. Raises UserError as ``Phonemizer`` does.
    """

    def __init__(self, lang: str = "en-us", lexicon: Mapping[str, str] | str | Path | None = None):
        main = Phonemizer(lang, lexicon)
        self.lang = main.lang
        self._phonemizers = {main.lang: main, lang: main}

    def utterances(self, text: str, ssml: bool = False) -> Iterator[Utterance]:
        """Utterances of the text, worked out one by one as they are asked for.

        What espeak cannot speak in the language is left out. Raises UserError where nothing remains, and for bad SSML.
        """
        spans = parse_ssml(text, self.lang) if ssml else [Span(text)]
        held, spoken = None, False
        for found in self._all(spans, plain=not ssml):
            if not found.ids and held is not None:
                held.pause = max(held.pause, found.pause)
                continue
            if held is not None:
                yield held
            held, spoken = found if found.ids or (ssml and found.pause) else None, spoken or bool(found.ids)
        if not spoken:
            raise UserError(f"there is nothing to say in {_shown(text)}; give some words in the language {self.lang}")
        if held is not None:
            yield held

    def _all(self, spans: list[Span], plain: bool) -> Iterator[Utterance]:
        runs = list(_runs(spans))
        for number, run in enumerate(runs):
            explicit = run[-1].pause
            empty = True
            for (sentence, fixed, pause), last in _with_last(self._sentences(run, paragraphs=plain)):
                empty = False
                if last:
                    closes = sentence.rstrip("\"')")[-1:] in ".!?…"
                    pause = explicit or (SENTENCE if closes and number < len(runs) - 1 else 0.0)
                yield from self._spoken(sentence, fixed, replace(run[-1], pause=pause))
            if empty and explicit:
                yield Utterance("", "", [], pause=explicit)

    def _sentences(self, run: list[Span], paragraphs: bool) -> Iterator[Piece]:
        fixed = iter([(clean(span.text), span.phonemes) for span in run if span.phonemes is not None])
        text = "".join(map(_clean, run))
        for paragraph in re.split(r"\n\n+", text) if paragraphs else [text]:
            sentences = split_sentences(paragraph, run[0].lang or self.lang)
            for i, sentence in enumerate(sentences):
                pause = SENTENCE if sentence.rstrip("\"')")[-1:] in ".!?…" else CLAUSE
                if i == len(sentences) - 1:
                    pause = PARAGRAPH
                yield sentence, list(islice(fixed, sentence.count(FIXED))), pause

    def _spoken(self, sentence: str, fixed: list[Fixed], manner: Span) -> Iterator[Utterance]:
        phonemizer = self._phonemizer(manner.lang or self.lang)
        words = iter([word for word, _ in fixed])
        written = re.sub(FIXED, lambda _: next(words), sentence)
        # Once for words as they are written (GPT4), once for those that numbers and abbreviations have become.
        text, fixed = phonemizer.marked(sentence, fixed)
        text, fixed = phonemizer.marked(verbalise(text, phonemizer.lang), fixed)
        # Digits grow when they become words; most sentences stay in one part.
        parts, given = split_sentences(text, phonemizer.lang, LONGEST) if len(text) > LONGEST else [text], iter(fixed)
        for i, part in enumerate(parts):
            phonemes = phonemizer.spoken(part, list(islice(given, part.count(FIXED))))
            audible = any(c.isalpha() for c in phonemes)
            whole = replace(manner, pause=manner.pause if i == len(parts) - 1 else 0.0)
            yield Utterance(
                written if len(parts) == 1 else part.replace(FIXED, ""), phonemes if audible else "",
                utterance_ids(phonemes) if audible else [], whole.rate, whole.pitch, whole.volume, whole.pause,
            )  # fmt: skip

    def _phonemizer(self, lang: str) -> Phonemizer:
        if lang not in self._phonemizers:
            found = Phonemizer(lang)
            self._phonemizers[lang] = self._phonemizers.setdefault(found.lang, found)
        return self._phonemizers[lang]


def _runs(spans: list[Span]) -> Iterator[list[Span]]:
    """Spans that are spoken in one breath: of one manner, with no pause but after the last."""
    run: list[Span] = []
    for span in spans:
        if run and (run[-1].pause or _manner(run[-1]) != _manner(span)):
            yield run
            run = []
        run.append(span)
    if run:
        yield run


def _manner(span: Span) -> tuple[float, float, float, str | None]:
    return span.rate, span.pitch, span.volume, span.lang


def _clean(span: Span) -> str:
    """The span's clean text, or ``FIXED`` for its phonemes; a space at either end stays, for the spans beside it."""
    if span.phonemes is not None:
        return FIXED
    return " " * span.text[:1].isspace() + clean(span.text) + " " * span.text[-1:].isspace()


def _with_last(pieces: Iterable[Piece]) -> Iterator[tuple[Piece, bool]]:
    """The pieces, and whether each is the last one."""
    before = None
    for piece in pieces:
        if before is not None:
            yield before, False
        before = piece
    if before is not None:
        yield before, True


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
