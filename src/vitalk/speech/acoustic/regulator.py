"""From symbols to frames: durations made whole, states repeated."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitalk.errors import UserError

Rounding = Literal["each", "total"]
LONGEST = 400.0  # frames that a symbol is ever predicted to last; an untrained model would ask for millions


def whole_frames(durations: Tensor, rounding: Rounding = "each") -> Tensor:
    """Frames as real numbers [batch, text] -> whole ones, int64, halves rounded up.

    rounding: "each" rounds every duration for itself, as FastSpeech does (arXiv 1905.09263, section 3.2). "total"
    rounds the ends of the symbols on the time axis, so that the sum is off by half a frame at most however many
    symbols there are (ours).
    """
    if rounding == "each":
        return (durations + 0.5).floor().long()
    if rounding != "total":
        raise UserError(f'durations cannot be rounded by "{rounding}"; choose each or total')
    ends = (durations.cumsum(1) + 0.5).floor().long()
    return ends - F.pad(ends, (1, 0))[:, :-1]  # no shorter tensor, so that exported graphs take texts of two symbols


def frames_from_logs(
    logs: Tensor, mask: Tensor | None = None, speed: float | Tensor = 1.0, rounding: Rounding = "each"
) -> Tensor:
    """Predicted log(frames + 1) [batch, text] -> whole frames, int64, 0 outside the mask.

    speed: 2 halves every duration; a number or a tensor that fits [batch, text]. Nobody lasts longer than
    ``LONGEST`` frames before that, and nothing is shorter than one frame in all.
    """
    frames = logs.float().exp().clamp(1.0, LONGEST + 1) - 1
    return timed(frames, mask, speed, rounding)


def timed(
    frames: Tensor, mask: Tensor | None = None, speed: float | Tensor = 1.0, rounding: Rounding = "each"
) -> Tensor:
    """Durations [batch, text] in frames at another speed, whole, 0 outside the mask.

    The first symbol gets one frame where there would be none at all: an empty spectrogram helps nobody.
    """
    frames = frames.float() / speed
    if mask is not None:
        frames = frames.masked_fill(~mask, 0.0)
    frames = whole_frames(frames, rounding)
    missing = (frames.sum(1, keepdim=True) == 0).long()
    return torch.cat([frames[:, :1] + missing, frames[:, 1:]], 1)


def frame_index(durations: Tensor, frames: int | None = None) -> tuple[Tensor, Tensor]:
    """Whole durations [batch, text] -> which symbol each frame belongs to, int64 [batch, frames], and the mask.

    frames: width of the result, by default that of the longest item. Behind an item's end stands the last symbol.
    The work grows with text + frames, not with their product. Raises ValueError where there is no frame at all.
    """
    ends = durations.long().cumsum(1)
    if frames is None:
        frames = ends[:, -1].max().item()
        # Also tells an exported graph that this number, which it learns as it runs, is no edge case.
        torch._check_value(frames >= 1, lambda: "durations without a frame make no sound; align again")
    # Frame t belongs to the symbol before which as many symbols end as have ended by t.
    marks = ends.new_zeros(len(ends), frames + 1)
    marks = marks.scatter_add(1, ends.clamp(max=frames), torch.ones_like(ends))
    index = marks.cumsum(1)[:, :frames].clamp(max=durations.shape[1] - 1)
    return index, torch.arange(frames, device=ends.device) < ends[:, -1:]


def regulate(hidden: Tensor, durations: Tensor, frames: int | None = None) -> tuple[Tensor, Tensor]:
    """The length regulator: hidden [batch, text, dim], whole durations [batch, text] -> [batch, frames, dim], mask.

    Every state stands as often as its duration says; zeros fill up to the longest item, or to ``frames``, which
    also cuts. Mask: bool [batch, frames]. Gradients flow into ``hidden``.
    Source: FastSpeech, arXiv 1905.09263, section 3.2.
    """
    index, mask = frame_index(durations, frames)
    expanded = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[2]))
    return expanded * mask[..., None].to(expanded.dtype), mask
