"""EViT on the three sizes of DeiT, by names that timm knows."""

from collections.abc import Sequence
from typing import Any

import timm
from timm.models import register_model

from vitalk.errors import UserError
from vitalk.vision.tokens import Trunk

from .method import evit


@register_model
def evit_deit_tiny(pretrained: bool = False, **kwargs: Any) -> Trunk:
    """EViT-DeiT-Ti: width 192, 12 blocks, 3 heads, 5.7 M parameters. Arguments as in ``evit_deit``."""
    return evit_deit("deit_tiny_patch16_224", pretrained, **kwargs)


@register_model
def evit_deit_small(pretrained: bool = False, **kwargs: Any) -> Trunk:
    """EViT-DeiT-S, the paper's main model: width 384, 12 blocks, 6 heads, 22.1 M parameters."""
    return evit_deit("deit_small_patch16_224", pretrained, **kwargs)


@register_model
def evit_deit_base(pretrained: bool = False, **kwargs: Any) -> Trunk:
    """EViT-DeiT-B: width 768, 12 blocks, 12 heads, 86.6 M parameters."""
    return evit_deit("deit_base_patch16_224", pretrained, **kwargs)


def evit_deit(
    name: str,
    pretrained: bool = False,
    keep_rate: float = 0.7,
    drop_loc: Sequence[int] = (3, 6, 9),
    fuse: bool = True,
    tokens: int | Sequence[int] | None = None,
    **kwargs: Any,
) -> Trunk:
    """timm's model ``name`` with EViT's reduction; ``pretrained`` loads DeiT's weights, which work off the shelf.

    keep_rate, drop_loc, fuse, tokens: keep_rate, blocks, fuse and tokens of ``evit``. kwargs: timm's own, such as
    img_size; ``dynamic_img_size=True`` resizes the position embedding in the forward pass, as the paper does.
    Raises UserError for feature extraction: reduced tokens no longer lie on the picture's grid.
    """
    if kwargs.pop("features_only", False):
        raise UserError("EViT has no feature maps, its tokens leave the picture's grid; use the plain deit model")
    return evit(timm.create_model(name, pretrained=pretrained, **kwargs), keep_rate, drop_loc, fuse, tokens)
