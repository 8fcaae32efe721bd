"""Whose voice it is: Resemblyzer's embeddings (a GE2E LSTM, arXiv 1710.10467) and their cosine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitalk.errors import UserError
from vitalk.speech.audio import Audio

from .need import need

RATE = 16_000  # Hz


class SpeakerEncoder:
    """Voices as vectors. The weights in Resemblyzer's wheel are loaded with the first voice.

    device: where the LSTM runs, "cpu" or "cuda". Similarities are comparable among themselves only, not with those
    of other encoders (seed-tts-eval's WavLM).
    """

    def __init__(self, device: str = "cpu"):
        self.device, self._net = device, None

    def embed(self, audio: Audio) -> np.ndarray:
        """The voice of ``audio`` as float32 [256] of length 1, no component below 0.

        As Resemblyzer does: 16 kHz, raised to -30 dB where it is quieter, long silences cut by WebRTC's detector,
        windows of 1.6 s averaged. Raises UserError for sound in which the detector finds no voice.
        """
        net = self._loaded()
        wave = np.clip(audio.resampled(RATE).samples, -1, 1)
        resemblyzer = need("resemblyzer")
        window = RATE * resemblyzer.hparams.vad_window_length // 1000
        if len(wave) < window or not wave.any():
            raise UserError("there is no voice in the sound: it is silent or too short")
        wave = resemblyzer.normalize_volume(wave, resemblyzer.hparams.audio_norm_target_dBFS, increase_only=True)
        # Raising the level may push peaks past what the detector's 16 bits hold.
        voiced = resemblyzer.trim_long_silences(np.clip(wave, -1, 1))
        if not len(voiced):
            raise UserError("there is no voice in the sound: the voice detector hears silence or noise only")
        return np.asarray(net.embed_utterance(voiced), np.float32)

    def embed_speaker(self, audios: Sequence[Audio]) -> np.ndarray:
        """The mean voice of several recordings of one speaker, float32 [256] of length 1."""
        mean = np.mean([self.embed(audio) for audio in audios], axis=0)
        return mean / np.linalg.norm(mean)

    def similarity(self, a: Audio | np.ndarray, b: Audio | np.ndarray) -> float:
        """Cosine of two voices, sound or embeddings [256]: 1 for the same, and never below 0."""
        return similarity(*(self.embed(x) if isinstance(x, Audio) else x for x in (a, b)))

    def _loaded(self) -> Any:
        if self._net is None:
            self._net = _network(self.device)
        return self._net


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two embeddings [dim]."""
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def _network(device: str) -> Any:
    torch, encoder = need("torch"), need("resemblyzer.voice_encoder")

    class Safe(encoder.VoiceEncoder):  # its own __init__ leaves it to torch's default what may be unpickled
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.lstm = torch.nn.LSTM(
                encoder.mel_n_channels, encoder.model_hidden_size, encoder.model_num_layers, batch_first=True
            )
            self.linear = torch.nn.Linear(encoder.model_hidden_size, encoder.model_embedding_size)
            self.relu = torch.nn.ReLU()
            self.device = torch.device(device)

    path = Path(encoder.__file__).with_name("pretrained.pt")
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    net = Safe()
    # The file also holds the scale and offset of the training loss.
    net.load_state_dict({name: value for name, value in state.items() if not name.startswith("similarity_")})
    return net.to(net.device).eval()
