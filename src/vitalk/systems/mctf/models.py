"""MCTF on the three sizes of DeiT, by names that timm knows."""

from collections.abc import Sequence
from typing import Any

import timm
from timm.models import register_model

from vitalk.errors import UserError
from vitalk.vision.tokens import Trunk

from .matching import Temperatures
from .method import Mode, Pooling, mctf

FAST: dict[str, Any] = {"r": 0.35, "blocks": (3, 6, 9)}


@register_model
def mctf_deit_tiny(pretrained: bool = False, **kwargs: Any) -> Trunk:
    """MCTF on DeiT-Ti: 16 tokens fewer in each block but the first, 197 to 21; 5.7 M parameters, 0.7 GMACs."""
    return mctf_deit("deit_tiny_patch16_224", pretrained, **kwargs)


@register_model
def mctf_deit_small(pretrained: bool = False, **kwargs: Any) -> Trunk:
    """MCTF on DeiT-S, the paper's main model: 22.1 M parameters, 2.6 GMACs (4.6 without)."""
    return mctf_deit("deit_small_patch16_224", pretrained, **kwargs)


@register_model
def mctf_deit_base(pretrained: bool = False, **kwargs: Any) -> Trunk:
    """MCTF on DeiT-B: 86.6 M parameters, 10.0 GMACs (17.6 without)."""
    return mctf_deit("deit_base_patch16_224", pretrained, **kwargs)


@register_model
def mctf_fast_deit_tiny(pretrained: bool = False, **kwargs: Any) -> Trunk:
    """MCTF-Fast on DeiT-Ti: 35 % of the patches in blocks 3, 6 and 9, 197 to 129, 85 and 56 tokens; 0.8 GMACs."""
    return mctf_deit("deit_tiny_patch16_224", pretrained, **{**FAST, **kwargs})


@register_model
def mctf_fast_deit_small(pretrained: bool = False, **kwargs: Any) -> Trunk:
    """MCTF-Fast on DeiT-S: 22.1 M parameters, 2.8 GMACs."""
    return mctf_deit("deit_small_patch16_224", pretrained, **{**FAST, **kwargs})


@register_model
def mctf_fast_deit_base(pretrained: bool = False, **kwargs: Any) -> Trunk:
    """MCTF-Fast on DeiT-B: 86.6 M parameters, 10.6 GMACs."""
    return mctf_deit("deit_base_patch16_224", pretrained, **{**FAST, **kwargs})


def mctf_deit(
    name: str,
    pretrained: bool = False,
    r: float = 16,
    blocks: Sequence[int] | None = None,
    temperatures: Temperatures = (1, 20, 40),
    bidirectional: bool = True,
    pooling: Pooling = "informative",
    mode: Mode = "ahead",
    proportional: bool = True,
    **kwargs: Any,
) -> Trunk:
    """timm's model ``name`` with MCTF's fusion; ``pretrained`` loads DeiT's weights, which work off the shelf.

    r … proportional: as in ``mctf``. kwargs: timm's own, such as img_size. Official MCTF checkpoints are DeiT's in
    names and shapes and load through ``checkpoint_filter_fn``.
    Raises UserError for feature extraction: fused tokens no longer lie on the picture's grid.
    """
    if kwargs.pop("features_only", False):
        raise UserError("MCTF has no feature maps, its tokens leave the picture's grid; use the plain deit model")
    vit = timm.create_model(name, pretrained=pretrained, **kwargs)
    return mctf(vit, r, blocks, temperatures, bidirectional, pooling, mode, proportional)
