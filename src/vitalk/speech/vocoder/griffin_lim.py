"""Griffin-Lim: the vocoder that needs no training, and the baseline of those that do."""

import torch
from torch import Tensor

from ..mel import MelSpec
from .stft import inverse_stft, stft

MOMENTUM = 0.99


@torch.no_grad()
def griffin_lim(mel: Tensor, spec: MelSpec, iterations: int = 32, seed: int = 0) -> Tensor:
    """Log-mel [batch, mels, frames] -> wave [batch, frames * hop], (frames - 1) * hop for centred frames.

    Linear magnitudes by non-negative least squares, then the accelerated Griffin-Lim algorithm from random phases
    (Perraudin, Balazs and Sondergaard, 2013; momentum 0.99). seed: of the phases.
    """
    padding = "center" if spec.center else "same"
    magnitude = linear_magnitudes(mel, spec)
    generator = torch.Generator().manual_seed(seed)
    turns = 2 * torch.pi * torch.rand(magnitude.shape, generator=generator).to(magnitude)
    spectrum, before = torch.polar(magnitude, turns), torch.zeros((), device=mel.device)
    for _ in range(iterations):
        wave = inverse_stft(spectrum, spec.n_fft, spec.hop, padding, spec.win)
        found = stft(wave, spec.n_fft, spec.hop, padding, spec.win)
        ahead = found + MOMENTUM * (found - before)
        spectrum, before = magnitude * ahead / ahead.abs().clamp(min=1e-12), found
    return inverse_stft(spectrum, spec.n_fft, spec.hop, padding, spec.win)


def linear_magnitudes(mel: Tensor, spec: MelSpec, iterations: int = 100) -> Tensor:
    """Log-mel [batch, mels, frames] -> the magnitudes [batch, n_fft / 2 + 1, frames] >= 0 that give it, nearly.

    Multiplicative updates of Lee and Seung (2001), from the transposed basis: bins that no band hears stay at 0.
    """
    basis = spec.basis.to(mel)
    wanted = mel.exp()
    back = basis.T @ wanted
    found = back / basis.sum(0)[:, None].clamp(min=1e-12) / basis.sum(1).mean().clamp(min=1e-12)
    for _ in range(iterations):
        found = found * back / (basis.T @ (basis @ found)).clamp(min=1e-12)
    return found
