"""Pitch as a pitch spectrogram: its continuous wavelet transform, and back (FastSpeech 2, arXiv 2006.04558 v8).

Functions take a numpy array or a tensor and return the same. Curves are [..., frames], spectrograms
[..., frames, 10], from the fastest movement to the slowest.
"""

import math
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)

N_SCALES = 10
FIRST = 0.01  # seconds


def _either(function: Any) -> Any:
    """Let a function of tensors take and return numpy arrays as well."""

    @wraps(function)
    def either(first: Any, *args: Any, **options: Any) -> Any:
        if isinstance(first, Tensor):
            return function(first, *args, **options)
        given = [torch.as_tensor(v) if isinstance(v, np.ndarray) else v for v in (first, *args)]
        named = {k: torch.as_tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        return _as_numpy(function(*given, **named))

    return either


def _as_numpy(value: Any) -> Any:
    return tuple(map(_as_numpy, value)) if isinstance(value, tuple) else value.numpy()


def scales(first: float = FIRST) -> np.ndarray:
    """The ten scales in seconds, each twice the one before, [10].

    first: 10 ms, as the release of the paper's first author has it; the formula of the paper, 2^(i+1) times 5 ms for
    i from 1, begins at 20 ms.
    """
    return first * 2.0 ** np.arange(N_SCALES)


@_either
def standardise(x: Array, dim: int = -1, mask: Array | None = None) -> Array:
    """x at mean 0 and population deviation 1 along ``dim``.

    mask: bool, True for what counts, in a shape that broadcasts with x; the rest becomes 0. What does not move (a
    deviation below 1e-8, or below rounding) becomes 0, never NaN.
    """
    return _standardise(x, dim, mask)[0]


@_either
def transform(z: Array, dt: float = 0.005, first: float = FIRST, normalised: bool = False) -> Array:
    """Continuous wavelet transform of a standardised pitch curve z [..., frames] -> [..., frames, 10].

    The wavelet is the Mexican hat, its energy the same at each scale (Torrence and Compo 1998, eq. 4 to 6): the
    integral of the paper divided by the root of dt. By FFT, zeros behind the curve up to a power of two.
    dt: seconds between frames, hop / rate; first: see ``scales``. normalised: every scale is standardised over time,
    as the release trains on; a scale that is all but zero, as the slow ones of short curves are, stays zero.
    Computed in float64 and returned in the type of z. A batch must hold curves of one length.
    """
    frames = z.shape[-1]
    padded = 1 << max(frames - 1, 0).bit_length()
    scale = torch.from_numpy(scales(first)).to(z.device)
    omega = 2 * math.pi * torch.fft.fftfreq(padded, dt, dtype=torch.float64, device=z.device)
    x = scale[:, None] * omega
    hat = (2 * math.pi * scale / dt).sqrt()[:, None] / math.sqrt(math.gamma(2.5)) * x.square() * (-x.square() / 2).exp()
    spectrum = torch.fft.fft(z.double(), padded)[..., None, :]
    found = torch.fft.ifft(spectrum * hat).real[..., :frames].transpose(-1, -2)
    return (_standardise(found, -2, None)[0] if normalised else found).to(z.dtype)


@_either
def inverse(w: Array, mask: Array | None = None) -> Array:
    """Pitch spectrogram [..., frames, 10] -> standardised pitch curve [..., frames]; differentiable.

    The sum of the scales weighted by (i + 2.5)^-2.5 for i = 1 .. 10, standardised: an approximation, since ten scales
    do not hold everything. The weight is applied here alone, as in the release, whereas the paper has it in the
    transform as well. mask: bool [..., frames], frames that are no padding. A flat result is 0, never NaN.
    """
    return _standardise(_summed(w), -1, mask)[0]


@_either
def pitch_spectrogram(log_f0: Array, dt: float = 0.005, first: float = FIRST) -> tuple[Array, Array, Array]:
    """What FastSpeech 2 predicts: continuous log F0 [..., frames] -> (spectrogram, mean, deviation).

    The spectrogram [..., frames, 10] is the normalised transform; mean and deviation, [...], are those of log F0.
    """
    z, mean, deviation = _standardise(log_f0, -1, None)
    return transform(z, dt, first, normalised=True), mean.squeeze(-1), deviation.squeeze(-1)


@_either
def f0_from_spectrogram(w: Array, mean: Array, deviation: Array, mask: Array | None = None) -> Array:
    """F0 in Hz [..., frames] from a spectrogram [..., frames, 10] and the mean and deviation of log F0, [...]."""
    z = _standardise(_summed(w), -1, mask)[0]
    mean, deviation = (torch.as_tensor(v, dtype=z.dtype, device=z.device)[..., None] for v in (mean, deviation))
    return (z * deviation + mean).exp()


def _summed(w: Tensor) -> Tensor:
    w = w.to(torch.promote_types(w.dtype, torch.float32))
    weight = (torch.arange(N_SCALES, device=w.device, dtype=w.dtype) + 3.5) ** -2.5
    return (w * weight).sum(-1)


def _standardise(x: Tensor, dim: int, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(standardised, mean, deviation), the latter two with ``dim`` kept at size 1."""
    inside = torch.ones_like(x) if mask is None else mask.to(x).expand_as(x)
    x = x if mask is None else torch.where(mask, x, 0)
    count = inside.sum(dim, keepdim=True).clamp(min=1)
    mean = x.sum(dim, keepdim=True) / count
    centred = (x - mean) * inside
    variance = centred.square().sum(dim, keepdim=True) / count
    rounding = 4 * torch.finfo(x.dtype).eps * x.detach().abs().amax(dim, keepdim=True)
    moves = variance > rounding.clamp(min=1e-8).square()
    # The root of what does not move is never taken: its gradient would be infinite.
    deviation = torch.where(moves, variance, 1).sqrt()
    return torch.where(moves, centred / deviation, 0), mean, torch.where(moves, deviation, 0)
