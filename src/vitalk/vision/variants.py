"""What the variants of a model share that timm registers: their default configuration, and how they are built."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg
from torch import nn


def default_cfg(side: int = 224, classes: int = 1000, **own: Any) -> dict[str, Any]:
    """timm's default configuration of a variant without weights, for pictures of side x side; ImageNet's but for own.

    own: entries of timm's ``PretrainedCfg`` that differ or come on top.
    """
    return {
        "url": "",
        "num_classes": classes,
        "input_size": (3, side, side),
        "fixed_input_size": False,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "classifier": "head",
        "first_conv": None,
        **own,
    }


def build(
    cls: type[nn.Module], name: str, pretrained: bool, out_indices: int | tuple[int, ...], /, **arguments: Any
) -> Any:
    """The model ``cls(**arguments)`` as the registered variant ``name``, with whatever timm adds.

    Its weights go through ``cls.checkpoint_filter_fn`` where there is one. out_indices: of the feature maps that
    ``features_only`` gives, taken from ``forward_intermediates``, a number for the last so many; unless the arguments
    have others.
    """
    features = {"out_indices": arguments.pop("out_indices", out_indices), "feature_cls": "getter"}
    convert = getattr(cls, "checkpoint_filter_fn", None)
    return build_model_with_cfg(
        cls, name, pretrained, pretrained_filter_fn=convert, feature_cfg=features, **arguments
    )  # fmt: skip
