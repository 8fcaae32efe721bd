"""Trained networks that speak as they are, in torch: behind the interface of a ``Voice``, without export."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.errors import UserError

from .mel import MelSpec, mel_spec
from .vocoder.griffin_lim import griffin_lim
from .voice import Voice


def torch_voice(
    say: nn.Module, about: dict[str, Any], name: str, device: str = "cpu", rate: int | None = None
) -> Voice:
    """A ``Voice``, which is a ``Synthesizer``, of a network that says whole sentences.

    say: (ids [1, text], speed, pitch, energy, each [1], speaker [1] where there are several) -> waveform [1, samples].
    about: what is known about it, {"mel": its preset, "lang", "speakers", "symbols"}. device: of torch. rate: of the
    waveform in Hz, None for the mel's.
    """
    spec, many = mel_spec(about["mel"]), len(about["speakers"]) > 1
    if rate not in (None, spec.rate):
        sizes = {name: getattr(spec, name) * rate // spec.rate for name in ("n_fft", "hop", "win")}
        spec = replace(spec, rate=rate, **sizes)
    told = {"name": name, "rate": spec.rate, "n_fft": spec.n_fft, "hop": spec.hop}
    about = {**about, **told, "speakers": about["speakers"] if many else []}
    return Voice(TorchSession(say.to(device).eval(), spec, many, torch.device(device)), about)


class Chained(nn.Module):
    """An acoustic model and a vocoder as voices ask them.

    acoustic: maps (ids [1, text], speaker [1] or None, speed, pitch, energy, each [1]) to a log-mel [1, mels, frames]
    and durations [1, text]. vocoder: maps that log-mel to a waveform [1, samples].
    """

    def __init__(self, acoustic: Callable[..., tuple[Tensor, Tensor]], vocoder: Callable[[Tensor], Tensor]):
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

    def get_outputs(self) -> list[Any]:
        """The outputs, which have names."""
        return [SimpleNamespace(name=name) for name in ("real", "imag")]

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


class GriffinLim(nn.Module):
    """``griffin_lim`` as a vocoder: what is heard where none was trained. Log-mel -> waveform [1, samples]."""

    def __init__(self, spec: MelSpec):
        super().__init__()
        self.spec = spec

    def forward(self, mel: Tensor) -> Tensor:
        """mel: [1, mels, frames]."""
        return griffin_lim(mel, self.spec)


def vocoder_for(mel: str, vocoder: str | Path | None, model: str | Path) -> tuple[nn.Module, int]:
    """(what makes waveforms of a model's log-mels, their rate in Hz).

    mel: preset of the model's mels. vocoder: model.safetensors of one trained on it, None for Griffin-Lim. model: its
    name in the sentence that refuses a vocoder of another preset.
    """
    from .vocoder.generators import load_vocoder, output_rate

    spec = mel_spec(mel)
    if vocoder is None:
        return GriffinLim(spec), spec.rate
    generator, heard = load_vocoder(vocoder)
    if heard != mel:
        raise UserError(f"{vocoder} hears mels of preset {heard}, {model} makes {mel}; train one to match")
    return generator, output_rate(generator, spec)
