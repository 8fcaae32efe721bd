"""Sizes of TiC, registered with timm; the paper's are not public, these are ours."""

from typing import Any

from timm.models import generate_default_cfgs, register_model

from vitalk.vision.variants import build, default_cfg

from .model import TiC

CONVS = {"classifier": "head.fc", "first_conv": "stem.0"}
default_cfgs = generate_default_cfgs(
    {
        "tic_tiny": default_cfg(**CONVS),
        "tic_small": default_cfg(**CONVS),
        "tic_tiny_cifar": default_cfg(32, 10, crop_pct=1.0, **CONVS),
    }
)


def _create(name: str, pretrained: bool, size: dict[str, Any], kwargs: dict[str, Any]) -> TiC:
    arguments = {**size, **kwargs}
    stages = len(arguments.get("depths", (2, 2, 6, 2)))
    return build(TiC, name, pretrained, tuple(range(stages)), **arguments)


@register_model
def tic_tiny(pretrained: bool = False, **kwargs: Any) -> TiC:
    """TiC with 64 to 512 channels; a size of ours: 13.6 M parameters, 2.2 GMACs."""
    return _create("tic_tiny", pretrained, {}, kwargs)


@register_model
def tic_small(pretrained: bool = False, **kwargs: Any) -> TiC:
    """TiC with 96 to 768 channels; a size of ours: 30.2 M parameters, 4.9 GMACs."""
    return _create("tic_small", pretrained, {"widths": (96, 192, 384, 768)}, kwargs)


@register_model
def tic_tiny_cifar(pretrained: bool = False, **kwargs: Any) -> TiC:
    """TiC in three stages of 32, 16 and 8 rows for 32 pixels; a size of ours: 0.6 M parameters, 62 MMACs."""
    size = {"stem_stride": 1, "widths": (32, 64, 128), "depths": (1, 1, 2), "kernel_size": 3, "head_dim": 8}
    return _create("tic_tiny_cifar", pretrained, size, kwargs)
