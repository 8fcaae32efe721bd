"""LGViT on the paper's three backbones and on two small ones, by names that timm knows."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
from timm.models import register_model
from torch import nn

from vitalk.errors import UserError

from .model import LGViT, lgvit

RELEASED = {"norm_layer": partial(nn.LayerNorm, eps=1e-12)}  # Hugging Face's ViT and DeiT, which the release trains


@register_model
def lgvit_vit_base(pretrained: bool = False, **kwargs: Any) -> LGViT:
    """LGViT on ViT-B/16: 12 layers, exits after 4 to 11. Arguments as in ``lgvit_on``."""
    return lgvit_on("vit_base_patch16_224", pretrained, **RELEASED | kwargs)


@register_model
def lgvit_deit_base(pretrained: bool = False, **kwargs: Any) -> LGViT:
    """LGViT on the distilled DeiT-B, the paper's main model: 12 layers, exits after 4 to 11."""
    return lgvit_on("deit_base_distilled_patch16_224", pretrained, **RELEASED | kwargs)


@register_model
def lgvit_swin_base(pretrained: bool = False, **kwargs: Any) -> LGViT:
    """LGViT on Swin-B: 24 layers, exits after 4, 7, 10, 13, 16, 19, 22 and 23; the release's threshold is 0.75."""
    return lgvit_on("swin_base_patch4_window7_224", pretrained, **{"threshold": 0.75} | kwargs)


@register_model
def lgvit_cifar(pretrained: bool = False, **kwargs: Any) -> LGViT:
    """A DeiT-Ti with exits for pictures of 32 pixels (ours): 12 layers of width 192, 64 patches and a class token."""
    if pretrained:
        raise UserError("lgvit_cifar has no trained weights; train it with vitalk train lgvit --preset cpu")
    model = lgvit_on("deit_tiny_patch16_224", **{"img_size": 32, "patch_size": 4, "num_classes": 10, **kwargs})
    size = model.vit.patch_embed.img_size
    model.vit.pretrained_cfg = model.vit.default_cfg = {
        **model.vit.pretrained_cfg, "input_size": (3, *size), "crop_pct": 1.0, "num_classes": model.num_classes,
        "mean": (0.491, 0.482, 0.447), "std": (0.247, 0.244, 0.262),
    }  # fmt: skip
    return model


@register_model
def lgvit_eye(pretrained: bool = False, **kwargs: Any) -> LGViT:
    """The embedded classifier's network with exits (ours): 4 layers, exits after 1, 2 and 3.

    ``init`` of a recipe, or ``lgvit(load_model("vitalk_eye").model)``, gives it the embedded weights.
    """
    return lgvit_on("vitalk_eye", pretrained, **kwargs)


def lgvit_on(
    name: str,
    pretrained: bool = False,
    exits: int | None = None,
    layers: Sequence[int | float] | None = None,
    heads: str | Sequence[str] = "lgvit",
    rule: str = "confidence",
    threshold: float | None = None,
    patience: int | None = None,
    **kwargs: Any,
) -> LGViT:
    """timm's model ``name`` with exits; ``pretrained`` loads its weights, the heads remain to be trained.

    exits, layers, heads, rule, threshold, patience: as in ``lgvit``. kwargs: timm's own, such as img_size.
    Raises UserError for feature extraction, which has no use for exits.
    """
    if kwargs.pop("features_only", False):
        raise UserError(f"LGViT classifies at its exits and gives no feature maps; use the plain {name}")
    vit = timm.create_model(name, pretrained=pretrained, **kwargs)
    return lgvit(vit, exits, layers, heads, rule, threshold, patience)
