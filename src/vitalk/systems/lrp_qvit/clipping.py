"""Channel scales behind a LayerNorm without their outliers, and how much of an activation that saturates."""

from typing import Any

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.quant import find_pairs, sites
from vitalk.nn.quant.reparam import Common

Percentiles = tuple[float, float]


def clipped(percentiles: Percentiles) -> Common:
    """What ``fold`` takes as ``common``: the means of channel scales and zero points clipped to their percentiles.

    A channel whose scale is clipped saturates instead of widening the scale of all (the percentiles are ours). Zero
    points stay whole numbers. (0, 100) clips nothing, which is RepQ-ViT's rule.
    Raises UserError unless they are two rising numbers in 0 to 100.
    """
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise UserError(f"clip must be two rising percentiles from 0 to 100, such as (1, 99), got {percentiles}")

    def common(scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        at = torch.tensor([low / 100, high / 100], dtype=scale.dtype, device=scale.device)
        scale = scale.clamp(*scale.quantile(at))
        zero_point = zero_point.clamp(*zero_point.quantile(at).round())
        return scale, zero_point, scale.mean(), zero_point.mean()

    return common


@torch.no_grad()
def saturation(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Share of each channel's values that saturate in front of the layers behind LayerNorms, by site, [channels].

    model: quantized and folded. images: [pictures, channels, height, width]. Only few channels should saturate much.
    """
    found: dict[str, Tensor] = {}

    def look(name: str, site: Any, args: tuple[Tensor, ...]) -> None:
        quantizer = site.input_quantizer
        codes = (args[0] / quantizer.scale).round() + quantizer.zero_point
        beyond = (codes < quantizer.low) | (codes > quantizer.high)
        found[name] = beyond.flatten(0, -2).float().mean(0)

    with torch.inference_mode(False):
        pairs = find_pairs(model, images[:1])
    behind = [linear for _, linears in pairs for linear in linears]
    handles = [
        site.register_forward_pre_hook(lambda site, args, name=name: look(name, site, args))
        for name, site in sites(model).items()
        if any(site is linear for linear in behind)
    ]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found
