"""What a decoder's attention tells about time: focus rates, durations, and the diagonal that it should follow.

The teacher's part of FastSpeech (arXiv 1905.09263, section 3.3), without loops over frames, symbols or heads.
"""

import torch
from torch import Tensor

from vitalk.speech.acoustic.fft_block import length_mask

WIDTH = 0.4  # of the diagonal, as a share of the whole


def focus_rates(maps: Tensor, steps: Tensor) -> Tensor:
    """The mean over steps of the largest weight: maps [batch, layers, heads, steps, text] -> [batch, layers, heads].

    steps: of each item, [batch]. Between 1 / text and 1, which only attention to one symbol a step reaches.
    """
    inside = length_mask(steps, maps.shape[3])[:, None, None]
    return (maps.amax(-1) * inside).sum(-1) / steps[:, None, None].clamp(min=1)


def durations_from(maps: Tensor, steps: Tensor, frames: Tensor, frames_per_step: int = 1) -> tuple[Tensor, Tensor]:
    """Durations of the most focused head of each utterance, int64 [batch, text], and its focus rate [batch].

    A symbol lasts as many frames as there are steps that look at it most; the sum is that of the frames, always.
    maps: [batch, layers, heads, steps, text]. steps, frames: of each item, [batch].
    """
    rates, best = focus_rates(maps, steps).flatten(1).max(1)
    chosen = maps.flatten(1, 2)[torch.arange(len(maps), device=maps.device), best]
    symbol = chosen.argmax(-1).repeat_interleave(frames_per_step, 1)
    inside = length_mask(frames, symbol.shape[1]).long()
    return inside.new_zeros(len(maps), maps.shape[4]).scatter_add(1, symbol, inside), rates


def guided_attention_loss(maps: Tensor, steps: Tensor, text: Tensor, width: float = WIDTH) -> Tensor:
    """How far attention [batch, ..., steps, text] is from the diagonal: 0 on it, nearly 1 in the corners.

    The mean over the steps of sum_t (1 - exp(-(s / S - t / T)^2 / (2 width^2))) A[s, t] (arXiv 1710.08969, section
    4.2). steps, text: lengths of each item, [batch].
    """
    s = torch.arange(maps.shape[-2], device=maps.device)[None] / steps[:, None]
    t = torch.arange(maps.shape[-1], device=maps.device)[None] / text[:, None]
    off = 1 - (-(s[:, :, None] - t[:, None]).square() / (2 * width**2)).exp()
    inside = length_mask(steps, maps.shape[-2])[:, :, None]
    off = (off * inside).view(len(maps), *[1] * (maps.ndim - 3), *off.shape[1:])
    heads = maps[0, ..., 0, 0].numel()
    return (maps * off).sum() / (heads * steps.sum())
