"""Sizes of TiC, registered with timm; the paper's are not public, these are ours."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from .checkpoint import checkpoint_filter_fn
from .model import TiC


def _cfg(classes: int, side: int, crop_pct: float, first_conv: str = "stem.0") -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": classes,
        "input_size": (3, side, side),
        "fixed_input_size": False,
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "classifier": "head.fc",
        "first_conv": first_conv,
    }


default_cfgs = generate_default_cfgs(
    {"tic_tiny": _cfg(1000, 224, 0.875), "tic_small": _cfg(1000, 224, 0.875), "tic_tiny_cifar": _cfg(10, 32, 1.0)}
)


def _create(name: str, pretrained: bool, size: dict[str, Any], kwargs: dict[str, Any]) -> TiC:
    arguments = {**size, **kwargs}
    stages = len(arguments.get("depths", (2, 2, 6, 2)))
    features = {"out_indices": arguments.pop("out_indices", tuple(range(stages))), "feature_cls": "getter"}
    return build_model_with_cfg(
        TiC, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, feature_cfg=features, **arguments
    )


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
