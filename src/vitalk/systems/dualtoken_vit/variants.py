"""The sizes, registered with timm. FLOPs and accuracies are published; widths and depths are ours."""

from typing import Any

from timm.models import generate_default_cfgs, register_model

from vitalk.vision.variants import build, default_cfg

from .model import DualTokenViT

IMAGENET = default_cfg(first_conv="stem.convs.0", license="apache-2.0")
default_cfgs = generate_default_cfgs(
    {
        "dualtoken_vit_tiny_mix": IMAGENET,
        "dualtoken_vit_small_mix": IMAGENET,
        "dualtoken_vit_small": IMAGENET,
        "dualtoken_vit_cifar": {**IMAGENET, "num_classes": 10, "input_size": (3, 32, 32), "crop_pct": 1.0},
    }
)
SMALL = {"embed_dims": (64, 128, 256), "depths": (2, 6, 3)}


def _create(name: str, pretrained: bool, size: dict[str, Any], kwargs: dict[str, Any]) -> DualTokenViT:
    arguments = {"img_size": default_cfgs[name].default.input_size[-1], **size, **kwargs}
    return build(DualTokenViT, name, pretrained, (0, 1, 2), **arguments)


@register_model
def dualtoken_vit_tiny_mix(pretrained: bool = False, **kwargs: Any) -> DualTokenViT:
    """DualToken-ViT-T (mix): 6.4 M parameters, 0.50 GMACs; 75.4 % on ImageNet-1k is published."""
    size = {"embed_dims": (32, 96, 192), "depths": (2, 6, 3), "global_mlp": "mix"}
    return _create("dualtoken_vit_tiny_mix", pretrained, size, kwargs)


@register_model
def dualtoken_vit_small_mix(pretrained: bool = False, **kwargs: Any) -> DualTokenViT:
    """DualToken-ViT-S (mix): 10.4 M parameters, 0.98 GMACs; 79.4 % on ImageNet-1k is published."""
    return _create("dualtoken_vit_small_mix", pretrained, {**SMALL, "global_mlp": "mix"}, kwargs)


@register_model
def dualtoken_vit_small(pretrained: bool = False, **kwargs: Any) -> DualTokenViT:
    """DualToken-ViT-S: 10.9 M parameters, 0.99 GMACs; 79.5 % on ImageNet-1k is published."""
    return _create("dualtoken_vit_small", pretrained, SMALL, kwargs)


@register_model
def dualtoken_vit_cifar(pretrained: bool = False, **kwargs: Any) -> DualTokenViT:
    """A size of ours for 32 pixels: maps of 16, 8 and 4 tokens a side, 4 x 4 global tokens; 1.4 M, 0.04 GMACs."""
    size = {"embed_dims": (32, 64, 128), "depths": (1, 2, 2), "mlp_ratios": (4, 4, 4), "neck_dim": 256}
    return _create("dualtoken_vit_cifar", pretrained, {"stem_stride": 2, "grid": 4, **size}, kwargs)
