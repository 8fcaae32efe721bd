"""Structural similarity of spectrograms (Wang et al., 2004): what L1 does not see of their texture."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitalk.errors import UserError

SIGMA = 1.5  # deviation of the Gaussian window, in bins and frames
C1, C2 = 0.01**2, 0.03**2  # for values in 0..1


def ssim(a: Tensor, b: Tensor, mask: Tensor | None = None, window: int = 11) -> Tensor:
    """Mean structural similarity of a and b [batch, mels, frames], values in 0..1 -> [batch]; 1 where they are equal.

    mask: bool [batch, frames], the frames that count; what lies outside has no influence, so an item gives the same
    alone and in a batch. window: size of the Gaussian window, odd, in bins and frames; zeros surround the picture.
    Computed in single precision, differentiable. Raises UserError for unequal shapes and for an even window.
    """
    if a.shape != b.shape or a.ndim != 3 or window % 2 == 0:
        raise UserError(
            f"spectrograms of shape {list(a.shape)} and {list(b.shape)}, window {window}: "
            "give two of [batch, mels, frames] alike and an odd window"
        )
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.float(), b.float()
        if mask is not None:
            a, b = (x.masked_fill(~mask[:, None], 0.0) for x in (a, b))
        pictures = _blurred(torch.stack([a, b, a * a, b * b, a * b], 1), window)
        mean_a, mean_b, square_a, square_b, product = pictures.unbind(1)
        variance = square_a + square_b - mean_a.square() - mean_b.square()
        covariance = product - mean_a * mean_b
        similar = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
        similar = similar / ((mean_a.square() + mean_b.square() + C1) * (variance + C2))
        if mask is None:
            return similar.mean((1, 2))
        inside = similar.mean(1).masked_fill(~mask, 0.0)
        return inside.sum(1) / mask.sum(1).clamp(min=1)


def _blurred(x: Tensor, window: int) -> Tensor:
    """Gaussian blur of x [batch, pictures, rows, columns], zeros around."""
    offset = torch.arange(window, device=x.device) - window // 2
    weights = (-0.5 * (offset / SIGMA).square()).softmax(0)
    flat = x.flatten(0, 1)[:, None]
    flat = F.conv2d(flat, weights.view(1, 1, -1, 1), padding=(window // 2, 0))
    return F.conv2d(flat, weights.view(1, 1, 1, -1), padding=(0, window // 2)).view_as(x)
