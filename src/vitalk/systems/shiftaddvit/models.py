"""ShiftAddViT's networks by names that timm knows."""

from typing import Any

import timm
from timm.models import register_model
from timm.models.pvt_v2 import OverlapPatchEmbed
from torch import nn

from vitalk.errors import UserError

from .convert import shiftadd

OWN = (
    "attention", "linears", "statistics", "hash_bits", "anchors", "sparse", "shift_bits", "alpha", "weighted",
)  # fmt: skip
PVT_EPS = 1e-5  # of the norms after PVTv2's patch embeddings, officially; timm has 1e-6


@register_model
def shiftadd_pvt_v2_b0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PVTv2-B0: dims 32, 64, 160, 256; 3.7 M parameters with its own attention. Arguments as in ``build``."""
    return build("pvt_v2_b0", pretrained, kwargs)


@register_model
def shiftadd_pvt_v2_b1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PVTv2-B1: dims 64, 128, 320, 512; two blocks a stage."""
    return build("pvt_v2_b1", pretrained, kwargs)


@register_model
def shiftadd_pvt_v2_b2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PVTv2-B2: dims 64, 128, 320, 512; blocks 3, 4, 6, 3."""
    return build("pvt_v2_b2", pretrained, kwargs)


@register_model
def shiftadd_deit_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DeiT-Ti: width 192, 12 blocks, 3 heads."""
    return build("deit_tiny_patch16_224", pretrained, kwargs)


def build(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """timm's model ``name``, converted; ``pretrained`` loads the dense weights, which the conversion starts from.

    kwargs: attention, linears and the other options of ``shiftadd``; the rest is timm's. The defaults are the
    release's net: hashing attention and mixtures everywhere.
    Raises UserError for feature extraction.
    """
    if kwargs.pop("features_only", False):
        raise UserError(f"shiftadd_{name} gives no feature maps; extract them from timm's {name}")
    own = {"attention": "hash", **{key: kwargs.pop(key) for key in OWN if key in kwargs}}
    model = timm.create_model(name, pretrained=pretrained, **kwargs)
    for module in model.modules():
        if isinstance(module, OverlapPatchEmbed):
            module.norm.eps = PVT_EPS
    return shiftadd(model, **own)
