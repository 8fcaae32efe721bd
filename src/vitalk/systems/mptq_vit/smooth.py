"""SQ-b: channels are centred and scaled before they share one symmetric quantizer, and the network absorbs it."""

from typing import Any, Literal

import torch
from timm.layers import Attention
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from vitalk.nn.attention import SiteAttention, SiteWindowAttention
from vitalk.nn.quant import QuantLinear, absorb, find_pairs, switched_off
from vitalk.nn.quant.quantizers import SMALLEST_SCALE, extremes
from vitalk.nn.quant.reparam import DEAD

Smooth = Literal["sq-b", "sq", "none"]


@torch.no_grad()
def smooth(
    model: nn.Module,
    images: Tensor,
    how: Smooth = "sq-b",
    alpha: float = 0.5,
    percentile: float = 1.0,
    values: bool = False,
) -> None:
    """Make the channels of an exposed ``model`` alike, in place; what it computes in float stays the same.

    Inputs of linear layers become (x - b) / s, channel by channel (arXiv 2401.14895): LayerNorms in front put that out,
    and the layers' weights and biases undo it.
    images: [pictures, channels, height, width], which b and s are found on. how: "sq-b"; "sq" has b = 0 (SmoothQuant,
    arXiv 2211.10438). alpha: see ``centre_and_scale``. percentile: p near 1; channels reach from the quantile 1 - p to
    p, so that outliers do not move the centre (ours; the paper takes the extremes).
    values: the projection behind the attention has no LayerNorm in front, but softmax rows sum to one: there the value
    rows of qkv absorb it (ours). Rounded rows do not sum to one, though: where the probabilities have few bits the
    shift may cost more than it gains, so this is off by default.
    """
    if how == "none":
        return
    pairs = find_pairs(model, images[:1])
    attentions = attentions_that_average(model) if values else []
    reach = channel_ranges(
        model, [linears[0] for _, linears in pairs] + [a.proj for a in attentions], images, percentile
    )
    for attention in attentions:
        if (found := reach.get(attention.proj)) is not None:
            absorb_into_values(attention, *centre_and_scale(*found, attention.proj.weight, alpha, how == "sq-b"))
    for norm, linears in pairs:
        weight = torch.cat([linear.weight for linear in linears])
        centre, scale = centre_and_scale(*reach[linears[0]], weight, alpha, how == "sq-b")
        absorb(norm, linears, scale, centre / scale)


def centre_and_scale(
    low: Tensor, high: Tensor, weight: Tensor, alpha: float = 0.5, centred: bool = True
) -> tuple[Tensor, Tensor]:
    """(b, s), each [channels]: the middle of each channel's range, and max|x - b|**alpha / max|weight|**(1 - alpha).

    low, high: [channels]. weight: [out, channels]. centred: off, b is 0.
    Channels or weights with hardly any range are taken for 0.001 of the mean one (ours): dividing by s must be safe.
    """
    centre = (low + high) / 2 if centred else torch.zeros_like(low)
    largest = torch.maximum((low - centre).abs(), (high - centre).abs())
    return centre, _lifted(largest) ** alpha / _lifted(weight.abs().amax(0)) ** (1 - alpha)


def _lifted(sizes: Tensor) -> Tensor:
    return sizes.clamp_min(DEAD * sizes.mean()).clamp_min(SMALLEST_SCALE)


@torch.no_grad()
def channel_ranges(
    model: nn.Module, linears: list[QuantLinear], images: Tensor, percentile: float = 1.0
) -> dict[QuantLinear, tuple[Tensor, Tensor]]:
    """(lowest, highest) of every channel of what goes into each of ``linears``, each [channels], in float.

    One pass over ``images`` [pictures, channels, height, width]; layers that it does not reach are left out.
    """
    found: dict[QuantLinear, tuple[Tensor, Tensor]] = {}

    def look(linear: QuantLinear, args: tuple[Any, ...]) -> None:
        low, high = (side[0] for side in extremes(args[0].flatten(0, -2).T, (percentile,)))
        before = found.get(linear, (low, high))
        found[linear] = torch.minimum(low, before[0]), torch.maximum(high, before[1])

    handles = [linear.register_forward_pre_hook(look) for linear in linears]
    try:
        with switched_off(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def attentions_that_average(model: nn.Module) -> list[nn.Module]:
    """Attention whose projection gets averages of the values, and nothing but those: no norm or gate stands between."""
    kinds = (Attention, SiteAttention, WindowAttention, SiteWindowAttention)
    return [
        module
        for module in model.modules()
        if type(module) in kinds
        and isinstance(getattr(module, "norm", None), nn.Identity | None)
        and getattr(module, "gate", None) is None
        and isinstance(module.proj, QuantLinear)
    ]


@torch.no_grad()
def absorb_into_values(attention: nn.Module, centre: Tensor, scale: Tensor) -> None:
    """Make the values (v - centre) / scale and the projection undo it; what ``attention`` computes stays the same.

    centre, scale: [channels] of the values. A bias is created where there was none.
    """
    qkv, proj = attention.qkv, attention.proj
    count = len(centre)
    if qkv.bias is None:
        qkv.bias = nn.Parameter(qkv.weight.new_zeros(len(qkv.weight)))
    qkv.weight[-count:].div_(scale[:, None])
    qkv.bias[-count:].sub_(centre).div_(scale)
    moved = proj.weight @ centre
    proj.bias = nn.Parameter(moved if proj.bias is None else proj.bias + moved)
    proj.weight.mul_(scale)
