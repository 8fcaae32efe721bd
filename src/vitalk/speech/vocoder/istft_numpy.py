"""The inverse short-time Fourier transform without torch: what is left to do after the network of an ONNX file."""

from typing import Literal

import numpy as np

from vitalk.errors import UserError


def overlap_add(spectrum: np.ndarray, n_fft: int, hop: int, padding: Literal["same", "center"] = "same") -> np.ndarray:
    """Complex spectrum [..., n_fft / 2 + 1, frames] -> samples [..., frames * hop].

    As ``stft.inverse_stft``, where the paddings are told: "center" gives (frames - 1) * hop samples. n_fft, hop: in
    samples; the window is Hann's. Raises UserError where hop is longer than n_fft or the bins do not fit n_fft.
    """
    if not 0 < hop <= n_fft or spectrum.shape[-2] != n_fft // 2 + 1:
        raise UserError(f"{spectrum.shape[-2]} bins do not fit n_fft {n_fft} and hop {hop}; give those of the network")
    count = spectrum.shape[-1]
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(spectrum.real.dtype)
    frames = np.fft.irfft(np.swapaxes(spectrum, -1, -2), n_fft).astype(window.dtype) * window
    summed = _add(frames, hop)
    envelope = _add(np.broadcast_to(window**2, (count, n_fft)), hop)
    start, length = (n_fft // 2, (count - 1) * hop) if padding == "center" else ((n_fft - hop) // 2, count * hop)
    kept = slice(start, start + length)
    return summed[..., kept] / np.maximum(envelope[kept], 1e-11)


def _add(frames: np.ndarray, hop: int) -> np.ndarray:
    """[..., frames, size] -> [..., (frames - 1) * hop + size, rounded up to whole hops]."""
    count, size = frames.shape[-2:]
    parts = -(-size // hop)
    padded = np.zeros((*frames.shape[:-1], parts * hop), frames.dtype)
    padded[..., :size] = frames
    pieces = padded.reshape(*frames.shape[:-1], parts, hop)
    out = np.zeros((*frames.shape[:-2], count + parts - 1, hop), frames.dtype)
    for i in range(parts):
        out[..., i : i + count, :] += pieces[..., i, :]
    return out.reshape(*out.shape[:-2], -1)
