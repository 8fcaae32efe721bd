"""Trained networks that speak as they are, in torch: a FastSpeech 2s, or a FastSpeech 2 with a vocoder."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.mel import MelSpec, mel_spec
from vitalk.speech.vocoder.generators import load_vocoder
from vitalk.speech.voice import Voice

from .training import load_for_voice, read_trained
from .training2s import FastSpeech2sTraining, load_trained2s


def trained_voice(model: str | Path, vocoder: str | Path | None = None, device: str = "cpu") -> Voice:
    """A ``Voice``, which is a ``Synthesizer``, of the model.safetensors of a training, without export.

    model: of FastSpeech 2s, or of FastSpeech 2 and then with the model.safetensors of a vocoder. device: of torch.

        trained_voice("runs/fastspeech2-2s-cpu/model.safetensors").speak("Hello.").save("hello.wav")

    Raises UserError for files that are none of these and for a vocoder that is missing, does not fit or is not needed.
    """
    whole = read_trained(model)[0].get("format") == FastSpeech2sTraining.FORMAT
    if whole and vocoder is not None:
        raise UserError(f"{model} makes waveforms itself; leave the vocoder {vocoder} out")
    if whole:
        net, about = load_trained2s(model)
        say: nn.Module = Whole(net)
    else:
        acoustic, about = load_for_voice(model)
        if vocoder is None:
            raise UserError(f"{model} makes spectrograms; give the model.safetensors of a vocoder with it")
        generator, mel = load_vocoder(vocoder)
        if mel != about["mel"]:
            raise UserError(
                f"{vocoder} hears mels of preset {mel}, {model} makes {about['mel']}; train one for the other"
            )
        say = Chained(acoustic, generator)
    spec, many = mel_spec(about["mel"]), len(about["speakers"]) > 1
    told = {"name": Path(model).parent.name or "trained", "rate": spec.rate, "n_fft": spec.n_fft, "hop": spec.hop}
    about = {**about, **told, "speakers": about["speakers"] if many else []}
    return Voice(TorchSession(say.to(device).eval(), spec, many, torch.device(device)), about)


class Whole(nn.Module):
    """FastSpeech 2s as voices ask it: (ids, speaker, speed, pitch, energy) -> waveform [1, samples]."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(
        self, ids: Tensor, speed: Tensor, pitch: Tensor, energy: Tensor, speaker: Tensor | None = None
    ) -> Tensor:
        """ids [1, text], the others [1]; the mel decoder does not run."""
        told = {} if speaker is None else {"speaker": speaker}
        return self.net(ids, speed=speed, pitch_factor=pitch, energy_factor=energy, **told).wave


class Chained(nn.Module):
    """FastSpeech 2 and a vocoder as voices ask them; see ``Whole``."""

    def __init__(self, acoustic: Callable[..., tuple[Tensor, Tensor]], vocoder: nn.Module):
        super().__init__()
        self.acoustic, self.vocoder = acoustic, vocoder

    def forward(
        self, ids: Tensor, speed: Tensor, pitch: Tensor, energy: Tensor, speaker: Tensor | None = None
    ) -> Tensor:
        """ids [1, text], the others [1]."""
        return self.vocoder(self.acoustic(ids, speaker, speed, pitch, energy)[0])


class TorchSession:
    """What a ``Voice`` asks of onnxruntime, answered by torch: symbols in, the spectrum of their waveform out.

    say: makes the waveform [1, samples]. spec: of the spectrum, whose frames are those of a mel without ``center``,
    with silence around the waveform; the voice's inverse transform gives the waveform back. many: several speakers.
    """

    def __init__(self, say: nn.Module, spec: MelSpec, many: bool, device: torch.device):
        self.say, self.spec, self.device = say, spec, device
        self.names = ("ids", "speed", "pitch", "energy", *(("speaker",) if many else ()))

    def get_inputs(self) -> list[Any]:
        """The inputs, which have names."""
        return [SimpleNamespace(name=name) for name in self.names]

    @torch.inference_mode()
    def run(self, _: list[str], fed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Real and imaginary part, [1, bins, frames] each."""
        wave = self.say(**{name: torch.from_numpy(value).to(self.device) for name, value in fed.items()}).float()
        s = self.spec
        around = (s.n_fft - s.hop) // 2
        window = torch.hann_window(s.n_fft, device=wave.device)
        spectrum = torch.stft(
            F.pad(wave, (around, around)), s.n_fft, s.hop, window=window, center=False, return_complex=True
        )
        return [spectrum.real.cpu().numpy(), spectrum.imag.cpu().numpy()]
