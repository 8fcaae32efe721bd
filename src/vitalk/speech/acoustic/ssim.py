"""Structural similarity of spectrograms (Wang et al., 2004), a loss of PortaSpeech (arXiv 2109.15166, section 3.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitalk.errors import UserError
from vitalk.nn.precision import full_precision

C1, C2 = 0.01**2, 0.03**2  # for values that span 1, which the releases keep for log-mels too


def ssim(a: Tensor, b: Tensor, mask: Tensor | None = None, floor: float = 0.0, window: int = 11) -> Tensor:
    """Similarity of two spectrograms [batch, mels, frames] at each of their points, 1 where they are the same.

    mask [batch, frames]: zeros stand around the spectrograms and in their padding, so that an item gives the same alone
    and in a batch. floor: the least value, as log(1e-5); what is compared is how far values lie above it, since means
    must not be negative. window: width of the Gaussian, whose deviation is 1.5 bins or frames.
    """
    place = torch.arange(window, device=a.device, dtype=torch.float32) - window // 2
    weights = torch.exp(-place.square() / (2 * 1.5**2))
    weights = weights / weights.sum()

    def blur(x: Tensor) -> Tensor:  # the Gaussian of two dimensions is one of either, one after the other
        x = F.conv2d(x, weights.view(1, 1, -1, 1), padding=(window // 2, 0))
        return F.conv2d(x, weights.view(1, 1, 1, -1), padding=(0, window // 2))

    with full_precision(a):  # variances are small differences of squares
        a, b = (x.float()[:, None] - floor for x in (a, b))
        if mask is not None:
            a, b = (x.masked_fill(~mask[:, None, None], 0.0) for x in (a, b))
        moments = blur(torch.cat([a, b, a * a, b * b, a * b]))
        mean_a, mean_b, aa, bb, ab = moments.chunk(5)
        product, squares = mean_a * mean_b, mean_a.square() + mean_b.square()
        covariance, variances = ab - product, aa + bb - squares
        found = (2 * product + C1) * (2 * covariance + C2) / ((squares + C1) * (variances + C2))
    return found[:, 0]


def mean_ssim(a: Tensor, b: Tensor, mask: Tensor | None = None, window: int = 11) -> Tensor:
    """Mean structural similarity of a and b [batch, mels, frames], values in 0..1 -> [batch]; 1 where they are equal.

    mask: bool [batch, frames], the frames that count. Raises UserError for unequal shapes and for an even window.
    """
    if a.shape != b.shape or a.ndim != 3 or window % 2 == 0:
        raise UserError(
            f"spectrograms of shape {list(a.shape)} and {list(b.shape)}, window {window}: "
            "give two of [batch, mels, frames] alike and an odd window"
        )
    similar = ssim(a, b, mask, window=window)
    if mask is None:
        return similar.mean((1, 2))
    return similar.mean(1).masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)
