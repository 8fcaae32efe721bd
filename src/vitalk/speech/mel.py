"""Spectrograms: the front end that acoustic models and vocoders must agree on."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.errors import UserError, nearest


@dataclass(frozen=True)
class MelSpec:
    """Everything that fixes a log-mel spectrogram.

    rate: Hz. n_fft, win, hop: samples. fmin, fmax: Hz, fmax None for half the rate. scale, norm: of librosa's mel
    basis. power_floor: added to the power before the root. floor: least magnitude whose logarithm is taken.
    center: frames are centred on multiples of the hop, one more than time / hop of them; without it they lie
    inside, exactly time / hop.
    """

    rate: int
    n_fft: int
    hop: int
    win: int
    n_mels: int
    fmin: float = 0.0
    fmax: float | None = None
    scale: Literal["slaney", "htk"] = "slaney"
    norm: Literal["slaney"] | None = "slaney"
    power_floor: float = 1e-9
    floor: float = 1e-5
    center: bool = False

    @cached_property
    def basis(self) -> Tensor:
        """The mel basis, [mels, n_fft / 2 + 1]."""
        import librosa

        basis = librosa.filters.mel(
            sr=self.rate, n_fft=self.n_fft, n_mels=self.n_mels, fmin=self.fmin, fmax=self.fmax,
            htk=self.scale == "htk", norm=self.norm,
        )  # fmt: skip
        with torch.inference_mode(False):  # it is kept, and may be made for inference first and trained with later
            return torch.from_numpy(basis)

    def frames(self, samples: int) -> int:
        """Frames that ``samples`` samples give."""
        return samples // self.hop + self.center


PRESETS = {
    "vitalk": MelSpec(24_000, 1200, 300, 1200, 80),
    "hifigan": MelSpec(22_050, 1024, 256, 1024, 80, 0.0, 8_000.0),
    "tacotron2": MelSpec(22_050, 1024, 256, 1024, 80, 0.0, 8_000.0, power_floor=0.0, center=True),
    "16k": MelSpec(16_000, 1024, 200, 800, 80),
    "vocos": MelSpec(24_000, 1024, 256, 1024, 100, scale="htk", norm=None, power_floor=0.0, floor=1e-7, center=True),
}


def mel_spec(name: str) -> MelSpec:
    """The preset ``name``.

    "vitalk" (the embedded voice), "hifigan", "tacotron2", "vocos" (their official settings), "16k" (50 ms every
    12.5 ms, as AdaSpeech, arXiv 2103.00993, and DelightfulTTS).
    """
    if name not in PRESETS:
        raise UserError(
            f"there is no mel preset {name}; choose one of {', '.join(PRESETS)}.{nearest(name, list(PRESETS))}"
        )
    return PRESETS[name]


def magnitudes(wave: Tensor, spec: MelSpec) -> Tensor:
    """Linear magnitudes of wave [batch, time] -> [batch, n_fft / 2 + 1, frames]; Hann window, reflected ends."""
    whole = spec.n_fft if spec.center else spec.n_fft - spec.hop
    wave = F.pad(wave[:, None], (whole // 2, whole - whole // 2), mode="reflect")[:, 0]
    window = torch.hann_window(spec.win, device=wave.device, dtype=wave.dtype)
    spectrum = torch.stft(wave, spec.n_fft, spec.hop, spec.win, window, center=False, return_complex=True)
    if not spec.power_floor:
        return spectrum.abs()
    real, imag = torch.view_as_real(spectrum).unbind(-1)
    return (real.square() + imag.square() + spec.power_floor).sqrt()


def log_mel(wave: Tensor, spec: MelSpec) -> Tensor:
    """Natural-log mel spectrogram of wave [batch, time] -> [batch, mels, frames].

    Raises UserError where there is less sound than the reflection at the ends needs.
    """
    return compress(magnitudes(_long_enough(wave, spec), spec), spec)


def compress(magnitude: Tensor, spec: MelSpec) -> Tensor:
    """Magnitudes [batch, n_fft / 2 + 1, frames] -> log-mel [batch, mels, frames]."""
    return (spec.basis.to(magnitude) @ magnitude).clamp(min=spec.floor).log()


def energy(magnitude: Tensor) -> Tensor:
    """L2 norm of each frame of magnitudes [batch, bins, frames] -> [batch, frames] (FastSpeech 2, section 2.3)."""
    return magnitude.norm(dim=1)


class LogMel(nn.Module):
    """``log_mel`` as a module: wave [batch, time] -> [batch, mels, frames]."""

    def __init__(self, spec: MelSpec):
        super().__init__()
        self.spec = spec

    def forward(self, wave: Tensor) -> Tensor:
        """See ``log_mel``."""
        return log_mel(wave, self.spec)


def _long_enough(wave: Tensor, spec: MelSpec) -> Tensor:
    if wave.shape[-1] <= spec.n_fft // 2:
        raise UserError(f"{wave.shape[-1]} samples are too few for a spectrogram; {spec.n_fft // 2 + 1} are needed")
    return wave
