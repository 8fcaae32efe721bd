"""MOSF: rules by which a fold chooses the common scale of channels, so that outliers do not drag it away.

Each is for ``vitalk.nn.quant.fold(common=...)``: (channel scales, zero points), both [channels] -> the same two and
the common scale and zero point. ``mean_scale`` there is RepQ-ViT's. The versions of arXiv 2408.03291 differ: the first
takes the median, the third is guided by the mean absolute deviation (MAD), which the median minimises.
"""

import torch
from torch import Tensor

SPREAD = 1.4826  # standard deviations in a median absolute deviation of normal numbers
FAR = 3.0  # standard deviations beyond which a channel is dropped (ours)

Chosen = tuple[Tensor, Tensor, Tensor, Tensor]


def median_scale(scale: Tensor, zero_point: Tensor) -> Chosen:
    """The medians of scales and zero points, the lower of two middle ones: those of a channel, so whole if they are."""
    return scale, zero_point, scale.median(), zero_point.median()


def deviation_scale(scale: Tensor, zero_point: Tensor) -> Chosen:
    """The channel's scale of least mean absolute deviation to all channels' scales; the zero point likewise.

    A median, for no number is nearer on average: the first and the third version of the paper coincide here. Whether
    the third weighs channels is unconfirmed; ``trimmed_scale`` is the form in which they would differ.
    """
    return scale, zero_point, least_deviation(scale), least_deviation(zero_point)


def trimmed_scale(scale: Tensor, zero_point: Tensor) -> Chosen:
    """The means of scales and zero points over the channels whose scale is no outlier (ours).

    Dropped are those farther from the median than three times 1.4826 median (not mean) absolute deviations.
    """
    off = (scale - scale.median()).abs()
    kept = off <= FAR * SPREAD * off.median()
    return scale, zero_point, scale[kept].mean(), zero_point[kept].mean()


def least_deviation(values: Tensor) -> Tensor:
    """The one of ``values`` [count] whose mean absolute deviation to them all is least."""
    return values[mean_absolute_deviation(values).argmin()]


def mean_absolute_deviation(values: Tensor) -> Tensor:
    """Of each of ``values`` to all of them, [count] -> [count]."""
    return torch.cdist(values[:, None], values[:, None], p=1).mean(1)
