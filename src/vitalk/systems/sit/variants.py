"""LV-ViT and SiT in the published sizes, and SiT on any other ViT, by names that timm knows."""

from collections.abc import Sequence
from typing import Any

import timm
from timm.models import generate_default_cfgs, register_model

from vitalk.errors import UserError
from vitalk.vision.variants import build, default_cfg

from .model import LVViT, LVViTDistilled
from .slimming import SiT, sit

SIZES: dict[str, dict[str, Any]] = {
    "lvvit_tiny": {"embed_dim": 320, "depth": 14, "num_heads": 5},
    "lvvit_small": {"embed_dim": 384, "depth": 16, "num_heads": 6},
    "lvvit_medium": {"embed_dim": 512, "depth": 20, "num_heads": 8},
    "lvvit_large": {"embed_dim": 768, "depth": 24, "num_heads": 12, "stem": "6c", "skip_lam": 3.0, "img_size": 288},
}
default_cfgs = generate_default_cfgs(  # the authors evaluate at 256 / 224
    {
        name: default_cfg(size.get("img_size", 224), fixed_input_size=True, first_conv="patch_embed.proj.conv1")
        for name, size in SIZES.items()
    }
)


def _lvvit(name: str, pretrained: bool, kwargs: dict[str, Any]) -> LVViT:
    """distilled: with a distillation token and its head. The other arguments are the ``LVViT``'s."""
    cls = LVViTDistilled if kwargs.pop("distilled", False) else LVViT
    return build(cls, name, pretrained, 3, **{**SIZES[name], **kwargs})


@register_model
def lvvit_tiny(pretrained: bool = False, **kwargs: Any) -> LVViT:
    """LV-ViT-T, the teacher of SiT-T: width 320, 14 blocks, 15.4 M parameters, 3.5 GMACs."""
    return _lvvit("lvvit_tiny", pretrained, kwargs)


@register_model
def lvvit_small(pretrained: bool = False, **kwargs: Any) -> LVViT:
    """LV-ViT-S, the teacher of SiT-XS and SiT-S: width 384, 16 blocks, 25 M parameters, 5.5 GMACs."""
    return _lvvit("lvvit_small", pretrained, kwargs)


@register_model
def lvvit_medium(pretrained: bool = False, **kwargs: Any) -> LVViT:
    """LV-ViT-M, the teacher of SiT-M: width 512, 20 blocks, 55 M parameters, 11.9 GMACs."""
    return _lvvit("lvvit_medium", pretrained, kwargs)


@register_model
def lvvit_large(pretrained: bool = False, **kwargs: Any) -> LVViT:
    """LV-ViT-L at 288 pixels, the teacher of SiT-L: width 768, 24 blocks, 147 M parameters, 56.1 GMACs."""
    return _lvvit("lvvit_large", pretrained, kwargs)


@register_model
def sit_tiny(pretrained: bool = False, **kwargs: Any) -> SiT:
    """SiT-T: LV-ViT-T with 1, 1, 1 and 11 blocks a stage, 1.0 GMACs. Arguments as in ``sit_vit``."""
    return sit_vit(pretrained, **{"vit": "lvvit_tiny", "stage_blocks": (1, 1, 1, 11), **kwargs})


@register_model
def sit_xs(pretrained: bool = False, **kwargs: Any) -> SiT:
    """SiT-XS: LV-ViT-S with 1, 1, 1 and 13 blocks a stage, 1.5 GMACs."""
    return sit_vit(pretrained, **{"vit": "lvvit_small", "stage_blocks": (1, 1, 1, 13), **kwargs})


@register_model
def sit_small(pretrained: bool = False, **kwargs: Any) -> SiT:
    """SiT-S: LV-ViT-S with 9, 3, 2 and 2 blocks a stage, 4.0 GMACs."""
    return sit_vit(pretrained, **{"vit": "lvvit_small", "stage_blocks": (9, 3, 2, 2), **kwargs})


@register_model
def sit_medium(pretrained: bool = False, **kwargs: Any) -> SiT:
    """SiT-M: LV-ViT-M with 10, 4, 3 and 3 blocks a stage, 8.1 GMACs."""
    return sit_vit(pretrained, **{"vit": "lvvit_medium", "stage_blocks": (10, 4, 3, 3), **kwargs})


@register_model
def sit_large(pretrained: bool = False, **kwargs: Any) -> SiT:
    """SiT-L at 288 pixels: LV-ViT-L with 10, 4, 3 and 7 blocks a stage, 34.4 GMACs."""
    return sit_vit(pretrained, **{"vit": "lvvit_large", "stage_blocks": (10, 4, 3, 7), **kwargs})


@register_model
def sit_vit(
    pretrained: bool = False,
    vit: str = "deit_small_patch16_224",
    keep: float = 0.5,
    stage_blocks: Sequence[int] | None = None,
    **kwargs: Any,
) -> SiT:
    """Any timm ViT slimmed, DeiT-S unless ``vit`` names another; ``pretrained`` loads that one's weights.

    keep, stage_blocks: see ``sit``. kwargs: the un-slimmed model's own, such as img_size or drop_path_rate.
    Raises UserError for feature extraction: slimmed tokens no longer lie on the picture's grid.
    """
    if kwargs.pop("features_only", False):
        raise UserError(f"SiT has no feature maps, its tokens leave the picture's grid; use the plain {vit}")
    return sit(timm.create_model(vit, pretrained=pretrained, **kwargs), keep, stage_blocks)
