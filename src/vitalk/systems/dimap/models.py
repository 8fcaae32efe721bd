"""Networks that timm does not know: a Swin for small pictures, and whatever was slimmed."""

from collections.abc import Sequence
from typing import Any

import timm
from timm.models import register_model
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from vitalk.errors import UserError

from .slim import resize


@register_model
def dimap_swin_cifar(pretrained: bool = False, **kwargs: Any) -> SwinTransformer:
    """A Swin for pictures of 32 pixels (ours): widths 48, 96 and 192, two blocks each, windows of 4; 1.3 M parameters.

    kwargs: timm's own; as the model is built anew, ``pretrained`` is refused.
    """
    if pretrained:
        raise UserError("dimap_swin_cifar has no published weights; train it with vitalk train dimap --preset cpu")
    defaults = {
        "img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 48, "depths": (2, 2, 2),
        "num_heads": (2, 4, 8), "drop_path_rate": 0.0, "num_classes": 10,
    }  # fmt: skip
    kwargs.pop("pretrained_cfg", None), kwargs.pop("pretrained_cfg_overlay", None), kwargs.pop("cache_dir", None)
    model = SwinTransformer(**{**defaults, **kwargs})
    model.pretrained_cfg = model.default_cfg = {
        "input_size": (3, 32, 32), "crop_pct": 1.0, "interpolation": "bicubic", "crop_mode": "center",
        "mean": (0.491, 0.482, 0.447), "std": (0.247, 0.244, 0.262), "num_classes": model.num_classes,
        "classifier": "head.fc", "first_conv": "patch_embed.proj", "architecture": "dimap_swin_cifar",
    }  # fmt: skip
    return model


@register_model
def dimap_slim(
    pretrained: bool = False, trunk: str = "", heads: Sequence[int] = (), hidden: Sequence[int] = (), **kwargs: Any
) -> nn.Module:
    """The timm model ``trunk`` in the shape that ``slim`` gave it, for the weights that were saved then.

    heads, hidden: of ``slim.shape``. kwargs: timm's own, for the trunk.
    Raises UserError where trunk and numbers do not fit, and for ``pretrained``: whole weights have another shape.
    """
    if pretrained:
        raise UserError("dimap_slim has no published weights; slim a trained model, or load a file of yours")
    if not timm.is_model(trunk):
        raise UserError(f"dimap_slim needs the timm name of the model that was slimmed, got trunk={trunk!r}")
    return resize(timm.create_model(trunk, **kwargs), heads, hidden)
