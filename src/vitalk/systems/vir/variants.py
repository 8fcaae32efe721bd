"""The sizes of ViR and of its hybrid, registered with timm under the release's names where it has one."""

from typing import Any

from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import generate_default_cfgs, register_model

from vitalk.vision.variants import build, default_cfg

from .hybrid import HybridRetention
from .model import VisionRetention

VIR = default_cfg(
    fixed_input_size=True, mean=IMAGENET_INCEPTION_MEAN, std=IMAGENET_INCEPTION_STD, first_conv="patch_embed.proj"
)
HYBRID = default_cfg(first_conv="stem.0.conv")
# No weights of either version are public.
default_cfgs = generate_default_cfgs(
    {
        "vir_tiny_patch16_224": VIR,
        "vir_small_patch16_224": VIR,
        "vir_base_patch16_224": VIR,
        "vir_large_patch16_224": VIR,
        "vir_large_patch14_224": VIR,
        "hvir_tiny": HYBRID,
        "hvir_small": HYBRID,
        "hvir_base": HYBRID,
    }
)

TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}
LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}


def _create(name: str, pretrained: bool, size: dict[str, Any], kwargs: dict[str, Any]) -> VisionRetention:
    return build(VisionRetention, name, pretrained, 3, **{**size, **kwargs})


@register_model
def vir_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionRetention:
    """ViR-T/16, the reimplementation's size: 5.7 M parameters."""
    return _create("vir_tiny_patch16_224", pretrained, TINY, kwargs)


@register_model
def vir_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionRetention:
    """ViR-S/16: 22.1 M parameters."""
    return _create("vir_small_patch16_224", pretrained, SMALL, kwargs)


@register_model
def vir_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionRetention:
    """ViR-B/16: 86.6 M parameters."""
    return _create("vir_base_patch16_224", pretrained, BASE, kwargs)


@register_model
def vir_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionRetention:
    """ViR-L/16: 304.4 M parameters."""
    return _create("vir_large_patch16_224", pretrained, LARGE, kwargs)


@register_model
def vir_large_patch14_224(pretrained: bool = False, **kwargs: Any) -> VisionRetention:
    """ViR-L/14: 304.3 M parameters."""
    return _create("vir_large_patch14_224", pretrained, {**LARGE, "patch_size": 14}, kwargs)


def _create_hybrid(name: str, pretrained: bool, size: dict[str, Any], kwargs: dict[str, Any]) -> HybridRetention:
    return build(HybridRetention, name, pretrained, (0, 1, 2, 3), **{**size, **kwargs})


@register_model
def hvir_tiny(pretrained: bool = False, **kwargs: Any) -> HybridRetention:
    """HViR-T; the size is ours."""
    return _create_hybrid("hvir_tiny", pretrained, {"dims": (64, 128, 256, 512), "depths": (2, 3, 6, 5)}, kwargs)


@register_model
def hvir_small(pretrained: bool = False, **kwargs: Any) -> HybridRetention:
    """HViR-S; the size is ours."""
    return _create_hybrid("hvir_small", pretrained, {"dims": (96, 192, 384, 768), "depths": (3, 3, 7, 5)}, kwargs)


@register_model
def hvir_base(pretrained: bool = False, **kwargs: Any) -> HybridRetention:
    """HViR-B; the size is ours."""
    return _create_hybrid("hvir_base", pretrained, {"dims": (128, 256, 512, 1024), "depths": (3, 3, 10, 5)}, kwargs)
