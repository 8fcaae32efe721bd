"""Phonemes by espeak-ng, in IPA, from the library and the data that come with espeakng-loader."""

import re
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path

from vitalk.errors import UserError, nearest

from .cleaning import FIXED, clean
from .lexicon import read_lexicon

_ALIASES = {"en": "en-us", "fr": "fr-fr", "zh": "cmn", "zh-hk": "yue", "no": "nb", "nn": "nb", "iw": "he", "in": "id"}
_MARKS = r';:,.!?¡¿—…"«»“”(){}\[\]'
# Between digits a point, comma or colon is part of a number, which espeak reads where it has not become words before.
_PAUSE = re.compile(rf"( ?(?!(?<=\d)[.,:]\d)[{_MARKS}][{_MARKS} ]*+)")
_FLAG = re.compile(r"\([^()]*\)")
_WORD = re.compile(r"[^\W_](?:[\w'-]*[^\W_])?")
_TOKEN = re.compile(rf"[^\s{_MARKS}{FIXED}]+")
# Letters that hyphens hold together, as ``normalise`` writes acronyms; espeak stresses them well where stops do.
_LETTERS = re.compile(r"(?<![\w-])[A-Z](?:-[A-Z])++(?![\w-])")
_RUN = re.compile(r"\S{40,}")
_STRESS = str.maketrans("", "", "ˈˌ")

Fixed = tuple[str, str]


@lru_cache(1)
def languages() -> dict[str, str]:
    """Code -> name of every language that espeak-ng speaks, such as "en-us" -> "English (America)".

    Read from espeak's data, without starting it. Languages whose dictionary is missing there are left out: espeak lists
    them, but spells their words.
    """
    import espeakng_loader

    data = Path(espeakng_loader.get_data_path())
    found = {}
    for path in sorted((data / "lang").rglob("*")):
        description = path.read_text("utf-8", errors="replace") if path.is_file() else ""
        entries = {
            key: re.search(rf"^{key}\s+([^\n]+)", description, re.M) for key in ("name", "language", "dictionary")
        }
        if not entries["name"] or not entries["language"]:
            continue
        code = entries["language"][1].split()[0]
        dictionary = entries["dictionary"][1].split()[0] if entries["dictionary"] else code.partition("-")[0]
        if (data / f"{dictionary}_dict").is_file():
            found.setdefault(code, entries["name"][1].split("//")[0].replace("_", " ").strip())
    return dict(sorted(found.items()))


def language(code: str) -> str:
    """espeak's code of a language given in any common way: "en-US", "de_DE", "fr", "zh".

    Raises UserError for languages that espeak does not speak.
    """
    known, wanted = languages(), code.strip().replace("_", "-").lower()
    folded = {name.lower(): name for name in known}
    base = wanted.partition("-")[0]
    for candidate in (wanted, _ALIASES.get(wanted), base, _ALIASES.get(base)):
        if candidate in folded:
            return folded[candidate]
    close = nearest(wanted, list(known)) or nearest(code.capitalize(), list(known.values()))
    raise UserError(f"espeak does not speak the language {code!r}; give a code such as en-us, de or fr-fr.{close}")


def _wrapper():  # noqa: ANN202 - its type is only known once phonemizer is imported
    import espeakng_loader
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    return EspeakWrapper()


class _Espeak:
    """espeak with a voice: it keeps global state, so each language has a copy, used by one thread at a time."""

    def __init__(self, lang: str):
        self._espeak = _wrapper()
        self._espeak.set_voice(lang)
        self._lock = threading.Lock()
        self._spoken: dict[str, bool] = {}
        # espeak names letters that it cannot read: "letter 16A0". The word is what two such names begin with.
        runic, glagolitic = self.say("ᚠ"), self.say("ⰰ")
        same = next((i for i, (a, b) in enumerate(zip(runic, glagolitic, strict=False)) if a != b), 0)
        self._letter = runic[:same].translate(_STRESS).strip()

    def say(self, text: str) -> str:
        """Phonemes of text without punctuation, words apart by single spaces."""
        text = _RUN.sub(lambda match: " ".join(_cut(match.group())), text)
        text = _LETTERS.sub(lambda match: match.group().replace("-", "."), text)
        with self._lock:
            found = " ".join(map(self._espeak.text_to_phonemes, _calls(text)))
        return " ".join(_FLAG.sub("", found).replace("_", "").split())

    def speakable(self, text: str) -> str:
        """The text without the letters that espeak would only name, as it does with scripts foreign to the language."""
        if text.isascii():
            return text
        return "".join(c if c.isascii() or self._speaks(c) else " " for c in text)

    def _speaks(self, char: str) -> bool:
        if char == FIXED or not unicodedata.category(char).startswith("L"):
            return True
        if char not in self._spoken:
            name = self.say(char).translate(_STRESS)
            # The word itself may be how a letter of the language sounds; only as a part of more it is a name.
            named = self._letter and self._letter in name and len(name) > len(self._letter)
            self._spoken[char] = not named
        return self._spoken[char]


@cache
def _espeak(lang: str) -> _Espeak:
    return _Espeak(lang)


class Phonemizer:
    """Text to IPA, punctuation kept, stress marked: "Hello, world!" -> "həlˈoʊ, wˈɜːld!".

    lang: code of an espeak language (see ``languages``; "en", "de-DE" work too). lexicon: word -> phonemes in IPA,
    from a dict or a file (JSON, or a word and its phonemes on each line); case does not matter, and the words around
    are pronounced as if espeak had read the word itself, wherever the word can be found again in what espeak says.
    espeak starts with the first text, once a language; several threads may share a Phonemizer.
    Raises UserError for unknown languages and lexicons that cannot be read.
    """

    def __init__(self, lang: str = "en-us", lexicon: Mapping[str, str] | str | Path | None = None):
        self.lang = language(lang)
        self.lexicon = read_lexicon(lexicon)

    def phonemes(self, text: str) -> str:
        """Phonemes of one text; numbers and signs are espeak's affair, see ``normalise`` for better."""
        return self.spoken(*self.marked(" ".join(clean(text).split()), []))

    def phonemes_of(self, texts: Iterable[str]) -> list[str]:
        """Phonemes of each text."""
        return [self.phonemes(text) for text in texts]

    def marked(self, text: str, fixed: list[Fixed]) -> tuple[str, list[Fixed]]:
        """Clean text with ``FIXED`` in place of each word of the lexicon, and (word, phonemes) of each such place.

        fixed: (word, phonemes) for the places that the text has already.
        """
        if not self.lexicon:
            return text, fixed
        before, found = iter(fixed), []

        def replaced(match: re.Match[str]) -> str:
            word = match.group()
            if word == FIXED:
                found.append(next(before))
            elif word.casefold() in self.lexicon:
                found.append((word, self.lexicon[word.casefold()]))
                return FIXED
            elif match.re is whole:
                return _WORD.sub(replaced, word)
            return word

        whole = re.compile(f"{FIXED}|{_TOKEN.pattern}")
        return whole.sub(replaced, text), found

    def spoken(self, text: str, fixed: list[Fixed]) -> str:
        """Phonemes of clean text in one line, with the given (word, phonemes) in place of each ``FIXED``."""
        given = iter(fixed)
        espeak = _espeak(self.lang)
        parts = _PAUSE.split(espeak.speakable(text))
        for i in range(0, len(parts), 2):
            places = [next(given) for _ in range(parts[i].count(FIXED))]
            parts[i] = self._clause(parts[i], places) if places else espeak.say(parts[i])
        return " ".join("".join(parts).split())

    def _clause(self, text: str, fixed: list[Fixed]) -> str:
        say = _espeak(self.lang).say
        pieces = text.split(FIXED)
        words = [pieces[0]]
        for (word, _), piece in zip(fixed, pieces[1:], strict=True):
            words += [word, piece]
        said = say("".join(words)).split()
        places = _places(said, [say(word).translate(_STRESS) for word, _ in fixed])
        if places is not None:
            for place, (_, phonemes) in zip(places, fixed, strict=True):
                said[place] = phonemes
            return " ".join(said)
        apart = [say(pieces[0])]
        for (_, phonemes), piece in zip(fixed, pieces[1:], strict=True):
            apart += [phonemes, say(piece)]
        return " ".join(part for part in apart if part)


def _cut(run: str, longest: int = 120) -> list[str]:
    """A run of letters in parts of at most ``longest`` bytes, none beginning with a mark.

    espeak loses what lies beyond 160 bytes of a word, and takes text in scripts without spaces for one.
    """
    parts, size = [""], 0
    for char in run:
        width = len(char.encode())
        if size + width > longest and not unicodedata.category(char).startswith("M"):
            parts.append("")
            size = 0
        parts[-1] += char
        size += width
    return parts


def _calls(text: str, longest: int = 240) -> Iterator[str]:
    """The text in parts that espeak reads to the end: its buffers hold a clause of letters, not one of syllables."""
    if text.isascii() or len(text.encode()) < max(2.1 * len(text), longest):
        yield text
        return
    part = ""
    for word in text.split(" "):
        if part and len(part.encode()) + len(word.encode()) > longest:
            yield part
            part = ""
        part += f" {word}"
    yield part


def _places(said: list[str], words: list[str]) -> list[int] | None:
    """Where each of the words is among those said, in order; None where that is not certain."""
    bare = [word.translate(_STRESS) for word in said]
    if any(not word or " " in word or bare.count(word) != words.count(word) for word in words):
        return None
    wanted = set(words)
    places = [i for i, word in enumerate(bare) if word in wanted]
    return places if [bare[i] for i in places] == words else None
