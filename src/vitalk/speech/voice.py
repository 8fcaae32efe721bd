"""The Voice: speech from one ONNX file on onnxruntime, without torch.

A voice file maps symbol ids to the spectrum of its waveform. Inputs: ids int64 [1, text] and the factors speed, pitch
and energy, float32 [1]; where it has several speakers, speaker int64 [1]. Outputs: real and imag [1, bins, frames],
and durations int64 [1, text] in frames. Its metadata ``vitalk.voice`` is JSON: name, lang, rate, n_fft, hop,
speakers, symbols (those it has learnt), licence, follows (the factors that it heeds; all where it does not say). The
inverse Fourier transform is done here.
"""

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from vitalk.errors import UserError, nearest

from .audio import Audio
from .synthesizer import Prompt, refuse_beyond
from .text.front import Front, Utterance
from .text.symbols import SYMBOLS, adapted, utterance_ids
from .vocoder.istft_numpy import overlap_add

RANGES = {"speed": (0.25, 4.0), "pitch": (0.5, 2.0), "energy": (0.25, 4.0)}
SILENCE = -70.0  # dB RMS relative to full scale


@dataclass(frozen=True)
class Spoken:
    """An utterance as it was said: its text, the sound, the symbols [n], and the seconds of each, [n] float32.

    seconds: None for voices that do not tell.
    """

    text: str
    audio: Audio
    symbols: list[str]
    seconds: np.ndarray | None


class Voice:
    """A voice that is ready to speak.

    Voice.load() is the embedded voice, Voice.load("file.onnx") one that ``vitalk export`` wrote.

        Voice.load().speak("Hello.").save("hello.wav")
    """

    def __init__(self, session: Any, about: dict[str, Any]):
        self.session, self.about = session, about
        self.name, self.lang, self.rate = str(about["name"]), str(about["lang"]), int(about["rate"])
        self.speakers: list[str] = list(about.get("speakers") or [])
        self.follows: tuple[str, ...] = tuple(about.get("follows", RANGES))  # the factors that it can be told
        self._front: dict[tuple[str, str], Front] = {}
        self.lexicon: dict[str, str] | Path | None = None

    @classmethod
    def load(cls, name: str | Path | None = None, threads: int | None = None) -> "Voice":
        """The voice of this name or file; without one the embedded voice.

        threads: of onnxruntime, None for one a core. Raises UserError for names and files that are no voice.
        """
        import onnxruntime as ort

        path = find_voice(name)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            about = json.loads(session.get_modelmeta().custom_metadata_map["vitalk.voice"])
            return cls(session, about)
        except KeyError:
            raise UserError(f"{path} is no voice; `vitalk voices` lists those there are") from None
        except Exception as error:  # onnxruntime has an exception class for each kind of damage
            raise UserError(f"{path} cannot be opened as a voice ({str(error).splitlines()[0][:100]})") from None

    def speak(
        self, text: str, speed: float = 1.0, pitch: float = 1.0, energy: float = 1.0, ssml: bool = False, **more: Any
    ) -> Audio:
        """Say a text of any length.

        speed, pitch, energy: factors, 0.25 to 4, 0.5 to 2 and 0.25 to 4. ssml: the text is SSML.
        more: speaker, lang of ``Prompt``.
        Raises UserError for factors out of range and for texts in which there is nothing to say.
        """
        return join(list(self.stream(text, speed, pitch, energy, ssml, **more)))

    def synthesize(self, text: str, prompt: Prompt = Prompt()) -> Audio:
        """As every ``Synthesizer``; the prompt's speaker, speed, pitch, energy and lang are followed."""
        refuse_beyond(prompt, self.name, ("speaker", "speed", "pitch", "energy", "lang"))
        p = prompt
        return self.speak(text, p.speed, p.pitch, p.energy, speaker=p.speaker, lang=p.lang)

    def stream(
        self,
        text: str,
        speed: float = 1.0,
        pitch: float = 1.0,
        energy: float = 1.0,
        ssml: bool = False,
        speaker: str | None = None,
        lang: str | None = None,
    ) -> Iterator[Audio]:
        """Say a text sentence by sentence; each comes as soon as it is ready, with the pause that follows it."""
        factors = {"speed": speed, "pitch": pitch, "energy": energy}
        self.check(factors, speaker)
        for utterance in self.utterances(text, ssml, lang):
            yield self.say(utterance, factors, speaker).audio

    def check(self, factors: Mapping[str, float], speaker: str | None = None) -> None:
        """Raise UserError for a factor (speed, pitch, energy) that is out of range or that this voice cannot follow,

        and where there is no such speaker.
        """
        for name, value in factors.items():
            low, high = RANGES[name]
            if not low <= value <= high:
                raise UserError(f"{name} must be from {low:g} to {high:g}, got {value:g}")
            self._follow(name, value)
        self._speaker(speaker)

    def _follow(self, name: str, value: float) -> None:
        if value != 1 and name not in self.follows:
            raise UserError(f"the voice {self.name} cannot change its {name}, got {value:g}; leave it out")

    def utterances(self, text: str, ssml: bool = False, lang: str | None = None) -> Iterator[Utterance]:
        """What ``say`` takes, of a text: the same as ``stream`` says, worked out as it is asked for."""
        return self._front_for(lang or self.lang).utterances(text, ssml=ssml)

    def say(self, utterance: Utterance, factors: Mapping[str, float], speaker: str | None = None) -> Spoken:
        """Say one utterance; factors: speed, pitch, energy, as ``check`` allows them.

        Raises UserError for what this voice has no sounds for, and for SSML that it cannot follow.
        """
        self._follow("speed", utterance.rate)
        self._follow("pitch", utterance.pitch)
        if not utterance.ids:  # a pause alone
            silence = np.zeros(int(utterance.pause * self.rate), np.float32)
            return Spoken(utterance.text, Audio(silence, self.rate), [], None)
        ids = utterance_ids(adapted(utterance.phonemes, self.about.get("symbols") or SYMBOLS))
        if not any(unicodedata.category(SYMBOLS[i]) in ("Ll", "Lu", "Lo") for i in ids):
            raise UserError(f"the voice {self.name} has learnt none of the sounds of {utterance.text[:60]!r}")
        fed = {
            "ids": np.asarray([ids], np.int64),
            "speed": np.float32([factors["speed"] * utterance.rate]),
            "pitch": np.float32([factors["pitch"] * utterance.pitch]),
            "energy": np.float32([factors["energy"]]),
            "speaker": np.int64([self._speaker(speaker)]),
        }
        wanted = {node.name for node in self.session.get_inputs()}
        told = [node.name for node in self.session.get_outputs()]
        given = dict(zip(told, self.session.run(told, {n: v for n, v in fed.items() if n in wanted}), strict=True))
        real, imag = given["real"], given["imag"]
        samples = overlap_add(real[0] + 1j * imag[0], int(self.about["n_fft"]), int(self.about["hop"]))
        audio = Audio(samples.astype(np.float32), self.rate)
        if not np.isfinite(samples).all() or audio.rms() < SILENCE:
            raise UserError(f"the voice {self.name} gave no sound for {utterance.text[:60]!r}; try another voice")
        loud = np.clip(audio.samples * 10 ** (utterance.volume / 20), -1, 1)
        pause = np.zeros(int(utterance.pause * self.rate), np.float32)
        seconds = None
        if "durations" in given:
            seconds = (given["durations"][0] * int(self.about["hop"]) / self.rate).astype(np.float32)
        said = Audio(np.concatenate([loud.astype(np.float32), pause]), self.rate)
        return Spoken(utterance.text, said, [SYMBOLS[i] for i in ids], seconds)

    def _speaker(self, name: str | None) -> int:
        if name is None:
            return 0
        if name not in self.speakers:
            known = ", ".join(self.speakers) or "one speaker without a name"
            raise UserError(
                f"the voice {self.name} has no speaker {name}; it has {known}.{nearest(name, self.speakers)}"
            )
        return self.speakers.index(name)

    def _front_for(self, lang: str) -> Front:
        key = (lang, repr(self.lexicon))
        if key not in self._front:
            self._front[key] = Front(lang, self.lexicon)
        return self._front[key]


def join(parts: list[Audio]) -> Audio:
    """Sounds of one rate one after the other."""
    return Audio(np.concatenate([part.samples for part in parts]), parts[0].rate)


def voices() -> dict[str, Path]:
    """Voice files by name: those that ship with the package, and those in the user's folder of voices."""
    from platformdirs import user_data_path

    shipped = Path(str(resources.files("vitalk"))) / "assets" / "voices"
    return {
        p.stem: p for folder in (user_data_path("vitalk") / "voices", shipped) for p in sorted(folder.glob("*.onnx"))
    }


def find_voice(name: str | Path | None = None) -> Path:
    """The file of a voice; without a name the first that ships with the package.

    Raises UserError where there is none of that name.
    """
    known = voices()
    if name is None:
        if not known:
            raise UserError("no voice is installed; give a voice file")
        return known.get("vitalk", next(iter(known.values())))
    if str(name) in known:
        return known[str(name)]
    if Path(name).is_file():
        return Path(name)
    raise UserError(
        f"there is no voice {name}; `vitalk voices` lists those there are.{nearest(str(name), list(known))}"
    )
