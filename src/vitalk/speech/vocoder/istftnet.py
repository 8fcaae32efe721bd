"""iSTFTNet, and its multi-stream and multi-band forms: few upsampling stages, then small inverse Fourier transforms."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .hifigan import Upsampler
from .stft import inverse_stft

TAPS, BETA = 62, 9.0  # of the filter bank of MB-iSTFT-VITS: 63 coefficients
CUTOFF = 0.142  # of half the rate, as in Parallel WaveGAN's code; with the 0.15 of MB-iSTFT-VITS 19 dB are all one gets


class IstftNet(nn.Module):
    """Log-mel [batch, mels, frames] -> wave [batch, frames * product of rates * hop] (arXiv 2203.02395).

    As ``HifiGan`` up to ``rates`` (C8C8I by default), then magnitude exp(a) and phase ``phase_scale`` * sin(b) of an
    inverse Fourier transform of n_fft and hop samples, centred: a frame is reflected on the left to make up for the
    one that it trims. phase_scale: the paper has 1, which leaves two thirds of the circle out of reach; pi, as in
    MB-iSTFT-VITS, reaches all of it.
    """

    streams = 1

    def __init__(
        self,
        n_mels: int = 80,
        channels: int = 512,
        rates: Sequence[int] = (8, 8),
        kernels: Sequence[int] = (16, 16),
        resblock: Literal[1, 2] = 1,
        n_fft: int = 16,
        hop: int = 4,
        phase_scale: float = math.pi,
    ):
        super().__init__()
        self.n_fft, self.stft_hop, self.phase_scale = n_fft, hop, phase_scale
        self.hop = math.prod(rates) * hop * self.streams
        outputs = self.streams * 2 * (n_fft // 2 + 1)
        self.upsampler = Upsampler(n_mels, channels, rates, kernels, resblock, outputs, reflect=1)

    def polar(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel [batch, mels, frames] -> magnitude and phase, each [batch * streams, n_fft / 2 + 1, time]."""
        x = self.upsampler(mel).float()
        a, b = x.unflatten(1, (self.streams, -1)).flatten(0, 1).chunk(2, dim=1)
        return a.exp(), self.phase_scale * b.sin()

    def bands(self, mel: Tensor) -> Tensor:
        """Log-mel [batch, mels, frames] -> [batch, streams, samples / streams]."""
        spectrum = torch.polar(*self.polar(mel))
        wave = inverse_stft(spectrum, self.n_fft, self.stft_hop, "center")
        return wave.unflatten(0, (-1, self.streams))

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel [batch, mels, frames] -> wave [batch, samples]."""
        return self.bands(mel)[:, 0]


class MultiStreamIstft(IstftNet):
    """Four streams at a quarter of the rate, put together to wave [batch, samples] (arXiv 2210.15975, section 3).

    synthesis: "learned", a convolution over the streams (MS-iSTFT), or "pqmf", a fixed filter bank whose bands the
    streams then are (MB-iSTFT).
    """

    streams = 4

    def __init__(
        self,
        n_mels: int = 80,
        channels: int = 512,
        rates: Sequence[int] = (4, 4),
        kernels: Sequence[int] = (16, 16),
        resblock: Literal[1, 2] = 1,
        n_fft: int = 16,
        hop: int = 4,
        phase_scale: float = math.pi,
        synthesis: Literal["learned", "pqmf"] = "learned",
    ):
        super().__init__(n_mels, channels, rates, kernels, resblock, n_fft, hop, phase_scale)
        self.pqmf = PQMF(self.streams) if synthesis == "pqmf" else None
        if synthesis == "learned":
            self.mix = weight_norm(nn.Conv1d(self.streams, 1, TAPS + 1, padding=TAPS // 2, bias=False))

    def join(self, bands: Tensor) -> Tensor:
        """Streams [batch, streams, time] -> wave [batch, time * streams]."""
        return self.mix(stuffed(bands))[:, 0] if self.pqmf is None else self.pqmf.synthesis(bands)

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel [batch, mels, frames] -> wave [batch, samples]."""
        return self.join(self.bands(mel))


class PQMF(nn.Module):
    """A cosine-modulated filter bank: ``synthesis`` gives back what ``analysis`` took apart, but for -60 dB.

    Its prototype is a low-pass by a Kaiser window (arXiv 2210.15975, section 3.2). Neither filter delays the sound.
    """

    def __init__(self, bands: int = 4, taps: int = TAPS, cutoff: float = CUTOFF, beta: float = BETA):
        super().__init__()
        n, k = np.arange(taps + 1) - taps / 2, np.arange(bands)[:, None]
        low = cutoff * np.sinc(cutoff * n) * np.kaiser(taps + 1, beta)
        turn, shift = (2 * k + 1) * np.pi / (2 * bands) * n, (-1.0) ** k * np.pi / 4
        for name, filters in (("analyse", np.cos(turn + shift)), ("synthesise", np.cos(turn - shift))):
            self.register_buffer(name, torch.from_numpy(2 * low * filters).float(), persistent=False)
        self.bands, self.taps = bands, taps

    def analysis(self, wave: Tensor) -> Tensor:
        """wave [batch, samples] -> [batch, bands, samples / bands]."""
        return F.conv1d(wave[:, None], self.analyse[:, None], stride=self.bands, padding=self.taps // 2)

    def synthesis(self, bands: Tensor) -> Tensor:
        """[batch, bands, time] -> wave [batch, time * bands]."""
        return F.conv1d(stuffed(bands), self.synthesise[None], padding=self.taps // 2)[:, 0]


def stuffed(bands: Tensor) -> Tensor:
    """[batch, bands, time] -> [batch, bands, time * bands]: zeros between the samples, at the same mean level."""
    count = bands.shape[1]
    return F.pad(count * bands[..., None], (0, count - 1)).flatten(2)
