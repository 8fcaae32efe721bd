"""Where a hybrid passes from feature maps to tokens and back: found by running it, not by lists of indices."""

from itertools import pairwise
from typing import Literal

import torch
from timm.models.efficientformer_v2 import Attention2d, Attention2dDownsample
from timm.models.mobilevit import LinearTransformerBlock
from torch import Tensor, nn

from vitalk.nn.quant import QuantConv2d, QuantLinear, QuantMatMul, sites, switched_off

ON_TOKENS = LinearTransformerBlock  # made of 1x1 convolutions, but on patches that were unfolded
ON_BOTH = Attention2d | Attention2dDownsample  # map to tokens and back within one module

Bridge = tuple[str, ...]  # names of sites, in the order they run
Kind = Literal["map", "tokens"]


@torch.no_grad()
def order_and_bridges(model: nn.Module, image: Tensor) -> tuple[list[str], list[Bridge]]:
    """The names of the sites of ``model`` in the order that they run, and those among them that are bridges.

    image: [1, channels, height, width], which is run once in float. Convolutions work on maps; products, linear layers
    on [batch, tokens, dim] and what is in MobileViTv2's transformer blocks work on tokens. Where one kind follows the
    other, the last site of the one and the first of the other are a bridge: in MobileViT the 1x1 convolution in front
    of the unfolding and the first qkv, the last fc2 and the projection behind the folding; in EfficientFormer the last
    site on maps and the first qkv. The first half of these is what the released lists of indices name for MobileViT
    (arXiv 2303.12557 describes both halves). EfficientFormerV2's attention is a bridge as a whole.
    A patch embedding, which takes the pictures themselves, is none: ViTs and Swin have no bridges.
    """
    kinds: dict[str, Kind | None] = {}

    def note(name: str, site: nn.Module, args: tuple[Tensor, ...]) -> None:
        kinds.setdefault(name, _kind(name, site, args[0], within))

    within = {name for name, module in model.named_modules() if isinstance(module, ON_TOKENS)}
    handles = [
        site.register_forward_pre_hook(lambda site, args, name=name: note(name, site, args))
        for name, site in sites(model).items()
    ]
    try:
        with switched_off(model):
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    order = list(kinds)
    return order, sorted(_crossings(kinds) + _whole(model, order), key=lambda bridge: order.index(bridge[0]))


def _kind(name: str, site: nn.Module, x: Tensor, within: set[str]) -> Kind | None:
    if isinstance(site, QuantMatMul) or (isinstance(site, QuantLinear) and x.dim() == 3):
        return "tokens"
    if not isinstance(site, QuantConv2d):
        return None  # a head on pooled features, a linear layer on a map with channels last
    return "tokens" if any(name.startswith(f"{block}.") for block in within) else "map"


def _crossings(kinds: dict[str, Kind | None]) -> list[Bridge]:
    known = [(name, kind) for name, kind in kinds.items() if kind is not None]
    first = next(iter(kinds), None)
    return [(a, b) for (a, before), (b, after) in pairwise(known) if before != after and a != first]


def _whole(model: nn.Module, order: list[str]) -> list[Bridge]:
    blocks = [name for name, module in model.named_modules() if isinstance(module, ON_BOTH)]
    return [tuple(site for site in order if site.startswith(f"{block}.")) for block in blocks]
