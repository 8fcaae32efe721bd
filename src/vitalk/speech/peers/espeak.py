"""espeak-ng's own formant voice, from the library and data of espeakng-loader; the program itself is not needed."""

import ctypes
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from vitalk.errors import UserError
from vitalk.speech.audio import Audio
from vitalk.speech.synthesizer import Prompt, refuse_beyond
from vitalk.speech.text.phonemes import language
from vitalk.speech.text.sentences import split_sentences
from vitalk.speech.text.ssml import SENTENCE
from vitalk.speech.voice import join

# Names and values of espeak's speak_lib.h.
SYNCHRONOUS, RATE, UTF8, POS_CHARACTER = 2, 1, 1, 1
WORDS_A_MINUTE = 175  # espeak's own speed
SPEEDS = (0.5, 2.5)  # what espeak's 80 to 450 words a minute leave
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """espeak-ng with its own reading of numbers and abbreviations, and its own voice.

    A prompt may give speed and lang. espeak could give sound in parts of 60 ms; here, as from the other voices,
    it comes sentence by sentence. What was said before it shows in a sentence's length by a few samples, since the
    library does not forget. Raises UserError for unknown languages.
    """

    name = "espeak"

    def __init__(self, lang: str = "en-us"):
        self.lang = language(lang)
        self.rate = _library().rate

    def synthesize(self, text: str, prompt: Prompt = Prompt()) -> Audio:
        """As every ``Synthesizer``; the prompt's speed and lang are followed."""
        refuse_beyond(prompt, self.name, ("speed", "lang"))
        return join(list(self.stream(text, prompt.speed, prompt.lang)))

    def stream(self, text: str, speed: float = 1.0, lang: str | None = None) -> Iterator[Audio]:
        """Say a text sentence by sentence, 0.3 s of silence between two."""
        if not SPEEDS[0] <= speed <= SPEEDS[1]:
            raise UserError(f"speed must be from {SPEEDS[0]:g} to {SPEEDS[1]:g}, got {speed:g}")
        code = language(lang) if lang else self.lang
        pause, spoken = np.zeros(int(SENTENCE * self.rate), np.float32), False
        for sentence in split_sentences(text.replace("\0", " "), code):
            samples = _library().say(sentence, code, speed)
            if samples.any():
                yield Audio(np.concatenate([pause, samples]) if spoken else samples, self.rate)
                spoken = True
        if not spoken:
            raise UserError(f"there is nothing to say in {text[:40]!r}; give some words in the language {code}")


class _Library:
    """The library itself. It has one state a process, so one thread at a time; phonemizer works with copies of it."""

    def __init__(self) -> None:
        import espeakng_loader

        self._espeak = ctypes.CDLL(espeakng_loader.get_library_path())
        self._lock, self._parts = threading.Lock(), []
        self._heard = CALLBACK(self._hear)  # kept, since the library only holds its address
        self.rate: int = self._espeak.espeak_Initialize(SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if self.rate <= 0:
            raise UserError("espeak-ng cannot start; pip install --force-reinstall espeakng-loader")
        self._espeak.espeak_SetSynthCallback(self._heard)
        self._espeak.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
            ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip

    def say(self, text: str, lang: str, speed: float) -> np.ndarray:
        """Samples [time] of a text, full scale at 1."""
        said = text.encode("utf-8", "ignore")
        with self._lock:
            self._parts = []
            if self._espeak.espeak_SetVoiceByName(lang.encode()):
                raise UserError(f"espeak-ng has no voice for {lang}; `--lang en-us` has one")
            self._espeak.espeak_SetParameter(RATE, round(WORDS_A_MINUTE * speed), 0)
            self._espeak.espeak_Synth(said, len(said) + 1, 0, POS_CHARACTER, 0, UTF8, None, None)
            return np.concatenate([np.zeros(0, np.float32), *self._parts])

    def _hear(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int | None) -> int:
        if samples and count > 0:  # without samples all is said
            self._parts.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32) / 32768)
        return 0


@cache
def _library() -> _Library:
    return _Library()


def files() -> list[Path]:
    """What the library reads to speak English."""
    import espeakng_loader

    data = Path(espeakng_loader.get_data_path())
    return [data / name for name in ("phondata", "phonindex", "phontab", "intonations", "en_dict")]
