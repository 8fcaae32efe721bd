"""The inverse short-time Fourier transform of neural vocoders, and the transform that it undoes."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitalk.errors import UserError

Padding = Literal["same", "center"]


def stft(wave: Tensor, n_fft: int, hop: int, padding: Padding = "same", win: int | None = None) -> Tensor:
    """wave [batch, samples] -> complex spectrum [batch, n_fft / 2 + 1, frames]; Hann window, reflected ends.

    padding: "same" makes samples / hop frames that lie inside after (n_fft - hop) / 2 samples of reflection each side;
    "center" one more, centred on multiples of the hop. win: length of the window in samples, None for n_fft.
    """
    whole = n_fft if padding == "center" else n_fft - hop
    wave = F.pad(wave[:, None], (whole // 2, whole - whole // 2), mode="reflect")[:, 0]
    window = _window(n_fft, win, wave)
    return torch.stft(wave, n_fft, hop, n_fft, window, center=False, return_complex=True)


def inverse_stft(spectrum: Tensor, n_fft: int, hop: int, padding: Padding = "same", win: int | None = None) -> Tensor:
    """Complex spectrum [batch, n_fft / 2 + 1, frames] -> wave [batch, samples] (Vocos, arXiv 2306.00814, section 3.2).

    Windowed frames are overlapped, added and divided by the sum of the squared windows. padding "same": exactly
    frames * hop samples, which ``torch.istft`` refuses, as the Hann window is 0 at the ends. "center": (frames - 1) *
    hop samples, as ``torch.istft``. Differentiable. Raises UserError where hop is longer than n_fft.
    """
    if not 0 < hop <= n_fft or spectrum.shape[1] != n_fft // 2 + 1:
        raise UserError(f"{spectrum.shape[1]} bins do not fit n_fft {n_fft} and hop {hop}; give those of the mel")
    count = spectrum.shape[2]
    window = _window(n_fft, win, spectrum.real)
    frames = torch.fft.irfft(spectrum.transpose(1, 2), n_fft) * window
    envelope = overlap_add(window.square().expand(1, count, n_fft), hop)
    start, length = (n_fft // 2, (count - 1) * hop) if padding == "center" else ((n_fft - hop) // 2, count * hop)
    kept = slice(start, start + length)
    return overlap_add(frames, hop)[:, kept] / envelope[:, kept].clamp(min=1e-11)


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """frames [batch, frames, size] -> [batch, samples], each ``hop`` samples after the one before.

    Samples are rounded up to whole hops. Each of the size / hop pieces of a frame is added once: shifts of whole
    hops need no gathering as ``F.fold`` does.
    """
    size = frames.shape[2]
    parts = -(-size // hop)
    pieces = F.pad(frames, (0, parts * hop - size)).unflatten(2, (parts, hop))
    shifted = [F.pad(pieces[:, :, i], (0, 0, i, parts - 1 - i)) for i in range(parts)]
    return sum(shifted[1:], shifted[0]).flatten(1)


def _window(n_fft: int, win: int | None, like: Tensor) -> Tensor:
    window = torch.hann_window(win or n_fft, device=like.device, dtype=like.dtype)
    spare = n_fft - len(window)
    return F.pad(window, (spare // 2, spare - spare // 2))
