"""Losses of vocoders: adversarial ones, feature matching, and distances of spectrograms."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.errors import UserError

from ..mel import MelSpec, log_mel

Kind = Literal["lsgan", "hinge"]
Reduction = Literal["sum", "mean"]
SETS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # n_fft, hop, window in samples (Parallel WaveGAN)
SUB_BAND_SETS = ((384, 30, 150), (683, 60, 300), (171, 10, 60))  # MB-iSTFT-VITS
POWER_FLOOR = 1e-7


def discriminator_loss(real: list[Tensor], fake: list[Tensor], kind: Kind, reduction: Reduction) -> Tensor:
    """What the discriminators minimise, from the scores [batch, time] of their parts for real and generated waves.

    "lsgan": (1 - real)^2 + fake^2 (HiFi-GAN, arXiv 2010.05646, eq. 1, which has the "sum" over the parts);
    "hinge": max(0, 1 - real) + max(0, 1 + fake) (Vocos, arXiv 2306.00814, section 3.3, which has the "mean").
    """
    if kind == "lsgan":
        losses = [(1 - r).square().mean() + f.square().mean() for r, f in zip(real, fake, strict=True)]
    else:
        losses = [(1 - r).relu().mean() + (1 + f).relu().mean() for r, f in zip(real, fake, strict=True)]
    return _reduced(losses, reduction)


def generator_loss(fake: list[Tensor], kind: Kind, reduction: Reduction) -> Tensor:
    """What the generator minimises: "lsgan" (1 - fake)^2, "hinge" max(0, 1 - fake); see ``discriminator_loss``."""
    losses = [((1 - f).square() if kind == "lsgan" else (1 - f).relu()).mean() for f in fake]
    return _reduced(losses, reduction)


def feature_matching(real: list[list[Tensor]], fake: list[list[Tensor]], reduction: Reduction) -> Tensor:
    """Mean absolute difference of the feature maps, summed over the layers of a part (HiFi-GAN, eq. 4).

    The factor 2 that the official HiFi-GAN has inside belongs to the weight here.
    """
    pairs = (zip(r, f, strict=True) for r, f in zip(real, fake, strict=True))
    return _reduced([torch.stack([F.l1_loss(f, r.detach()) for r, f in part]).sum() for part in pairs], reduction)


class MelLoss(nn.Module):
    """Mean absolute difference of log-mel spectrograms (HiFi-GAN, eq. 3), in natural logarithms."""

    def __init__(self, spec: MelSpec):
        super().__init__()
        self.spec = spec

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """fake [batch, samples]; real: waves [batch, samples], or their log-mel [batch, mels, frames] -> scalar."""
        if real.ndim == 2:
            with torch.no_grad():
                real = log_mel(real, self.spec)
        return F.l1_loss(log_mel(fake, self.spec), real)


class MultiResolutionSTFTLoss(nn.Module):
    """Spectral convergence and mean log-magnitude distance, averaged over sets (arXiv 1910.11480, eq. 2 to 4).

    sets: n_fft, hop and window in samples. Raises UserError for waves too short for the longest window.
    """

    def __init__(self, sets: Sequence[tuple[int, int, int]] = SETS):
        super().__init__()
        self.sets = [tuple(row) for row in sets]

    def magnitudes(self, wave: Tensor) -> list[Tensor]:
        """wave [batch, samples] -> one [batch, n_fft / 2 + 1, frames] a set."""
        longest = max(n_fft for n_fft, _, _ in self.sets)
        if wave.shape[1] <= longest // 2:
            raise UserError(f"segments of {wave.shape[1]} samples are too short; give more than {longest // 2}")
        return [_magnitude(wave, *row) for row in self.sets]

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """fake, real: waves [batch, samples] -> scalar."""
        with torch.no_grad():
            targets = self.magnitudes(real)
        pairs = zip(self.magnitudes(fake), targets, strict=True)
        losses = [(f - r).norm() / r.norm() + F.l1_loss(f.log(), r.log()) for f, r in pairs]
        return torch.stack(losses).mean()


def _magnitude(wave: Tensor, n_fft: int, hop: int, win: int) -> Tensor:
    window = torch.hann_window(win, device=wave.device, dtype=wave.dtype)
    # The floor of the power, put on its root: clamping the power itself costs a third more time.
    return torch.stft(wave, n_fft, hop, win, window, return_complex=True).abs().clamp(min=POWER_FLOOR**0.5)


def _reduced(losses: list[Tensor], reduction: Reduction) -> Tensor:
    total = torch.stack(losses)
    return total.sum() if reduction == "sum" else total.mean()
