"""Pitch as acoustic models use it: F0 at the frames of the mel, averages by symbol, log-spaced bins."""

import math
import warnings
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vitalk.errors import UserError, nearest

from .audio import Audio

METHODS = ("dio", "harvest")


def f0(
    audio: Audio,
    hop: int,
    center: bool = False,
    fmin: float = 60.0,
    fmax: float = 800.0,
    method: Literal["dio", "harvest"] = "dio",
) -> np.ndarray:
    """Fundamental frequency in Hz, float64 [frames], 0 where there is no voice, by WORLD.

    hop, center: those of the ``MelSpec``, hop in samples: frames are as many as ``spec.frames(samples)`` and lie
    where the mel's lie, in the middle of their hop without ``center``.
    fmin, fmax: Hz; voiced frames lie between. method: "dio" with StoneMask (FastSpeech 2, arXiv 2006.04558, section
    2.3), or "harvest", slower and with fewer unvoiced frames.
    Raises UserError for an unknown method and for limits that leave no range.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pyworld

    if method not in METHODS:
        raise UserError(
            f"there is no pitch method {method}; choose one of {', '.join(METHODS)}.{nearest(method, list(METHODS))}"
        )
    if not 0 < fmin < fmax < audio.rate / 2:
        raise UserError(
            f"pitch cannot be sought from {fmin:g} to {fmax:g} Hz in sound of {audio.rate} Hz; "
            "fmin must be positive, below fmax, and fmax below half the rate"
        )
    frames = len(audio.samples) // hop + center
    # WORLD's frames lie on multiples of the hop: half a hop in front moves them into the middle of the mel's.
    lead, first = (0, 0) if center else (hop - hop // 2, 1)
    wave = np.pad(audio.samples.astype(np.float64), (lead, 2 * hop))
    period = 1000 * hop / audio.rate
    if method == "dio":
        rough, times = pyworld.dio(wave, audio.rate, f0_floor=fmin, f0_ceil=fmax, frame_period=period)
        found = pyworld.stonemask(wave, rough, times, audio.rate)
    else:
        found, _ = pyworld.harvest(wave, audio.rate, f0_floor=fmin, f0_ceil=fmax, frame_period=period)
    found = found[first : first + frames]
    return np.where(found > 0, np.clip(found, fmin, fmax), 0.0)


def continuous(f0: np.ndarray) -> np.ndarray:
    """Natural log of F0 [frames], float64, without gaps: interpolated linearly in Hz, the ends held.

    Raises UserError where no frame is voiced (above 0), since there is nothing to interpolate.
    """
    voiced = np.flatnonzero(f0 > 0)
    if not len(voiced):
        raise UserError("the pitch curve has no voiced frame; leave the utterance out or widen fmin and fmax")
    return np.log(np.interp(np.arange(len(f0)), voiced, np.asarray(f0, np.float64)[voiced]))


def average_by_duration(values: Tensor, durations: Tensor, voiced: Tensor | None = None) -> Tensor:
    """Mean of the frames of each symbol: values [batch, frames], durations int64 [batch, text] -> [batch, text].

    voiced: bool [batch, frames], the frames that count; all where it is None. Symbols without such a frame get 0.
    Raises UserError where durations reach beyond the frames.
    """
    longest = int(durations.sum(1).max())
    if longest > values.shape[1]:
        raise UserError(f"durations of {longest} frames do not fit {values.shape[1]} values; align with the same mel")
    counted = torch.ones_like(values, dtype=torch.bool) if voiced is None else voiced
    ends = durations.cumsum(1)
    # In float64, as a difference of long sums loses the digits that it is about.
    sums = _between(torch.where(counted, values, 0).double(), ends - durations, ends)
    counts = _between(counted.double(), ends - durations, ends)
    return (sums / counts.clamp(min=1)).to(values.dtype)


def _between(values: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    summed = torch.nn.functional.pad(values.cumsum(1), (1, 0))
    return summed.gather(1, ends) - summed.gather(1, starts)


def bins(fmin: float = 60.0, fmax: float = 800.0, n_bins: int = 256) -> Tensor:
    """Edges in Hz between ``n_bins`` bins, evenly spaced on the log scale, [n_bins - 1] from fmin to fmax.

    Raises UserError where the limits cannot be on a log scale.
    """
    if not 0 < fmin < fmax:
        raise UserError(f"pitch bins from {fmin:g} to {fmax:g} cannot be on a log scale; give Hz, not normalised pitch")
    return torch.linspace(math.log(fmin), math.log(fmax), n_bins - 1, dtype=torch.float64).exp().float()


def bucketize(f0: Tensor, edges: Tensor) -> Tensor:
    """Bin of each F0 in Hz, any shape, int64 from 0 to len(edges) (FastSpeech 2, section 2.3).

    Bin 0 is for unvoiced frames (0 Hz) alone, which is ours: voiced ones below the first edge go to bin 1.
    """
    return torch.where(f0 > 0, torch.bucketize(f0.clamp(min=edges[0]), edges.to(f0.device), right=True), 0)
