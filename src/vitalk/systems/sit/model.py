"""LV-ViT, the backbone of SiT: a timm VisionTransformer behind a stem of convolutions, its residual branches damped."""

import math
from collections import OrderedDict
from functools import partial
from typing import Any, Literal

from timm.layers import to_2tuple
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.vision.patches import Patches

from .checkpoint import lvvit_filter

# (share of the width, stride) of each 3 x 3 convolution; together they make one token of 16 x 16 pixels.
STEMS = {
    "4c": ((8, 2), (4, 2), (2, 2), (1, 2)),
    "6c": ((8, 2), (8, 1), (8, 1), (4, 2), (2, 2), (1, 2)),
}


class ConvStem(Patches):
    """LV-ViT's patch embedding: 3 x 3 convolutions, each with a batch norm, GELU after all but the last.

    layout: "4c" or "6c", see ``STEMS``. patch_size: 16 as published, or a smaller power of two, for which the first
    strides of two become one (ours). The other arguments, and the results, are those of timm's ``PatchEmbed``.
    Raises UserError for other patch sizes and for widths that do not divide by eight.
    """

    def __init__(self, *args: Any, layout: Literal["4c", "6c"] = "4c", **kwargs: Any) -> None:
        if layout not in STEMS:
            raise UserError(f"there is no stem {layout}; choose {', '.join(STEMS)}")
        super().__init__(*args, **kwargs)
        self.proj = _convolutions(layout, self.patch_size, self.proj, kwargs)


def _convolutions(layout: str, patch: tuple[int, int], plain: nn.Conv2d, options: dict[str, Any]) -> nn.Sequential:
    """The convolutions that take the place of ``plain``, under the official names."""
    halvings, width, channels = int(math.log2(patch[0])), plain.out_channels, plain.in_channels
    if patch not in [(2**i, 2**i) for i in range(1, 5)]:
        raise UserError(f"LV-ViT's stem makes tokens of 2, 4, 8 or 16 pixels, not {patch[0]} x {patch[1]}")
    if width % 8:
        raise UserError(f"LV-ViT's stem begins with an eighth of embed_dim, which must divide by 8; got {width}")
    placed = {"device": options.get("device"), "dtype": options.get("dtype")}
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    left = 4
    for i, (share, stride) in enumerate(STEMS[layout], 1):
        if stride == 2:
            stride, left = (1 if left > halvings else 2), left - 1
        if i > 1:
            layers[f"act{i - 1}"] = nn.GELU()
        layers[f"conv{i}"] = nn.Conv2d(channels, width // share, 3, stride, 1, bias=False, **placed)
        layers[f"bn{i}"] = nn.BatchNorm2d(width // share, **placed)
        channels = width // share
    return nn.Sequential(layers)


class ResidualScale(nn.Module):
    """A residual branch divided by a constant, in the place of timm's layer scale."""

    def __init__(self, divisor: float) -> None:
        super().__init__()
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        """x / divisor, any shape."""
        return x / self.divisor

    def extra_repr(self) -> str:
        """What the printed module shows."""
        return f"divisor={self.divisor:g}"


class LVViT(VisionTransformer):
    """LV-ViT as SiT's authors train it (arXiv 2111.12624; the net: 2104.10858): timm's in all but stem and residuals.

    Blocks are timm's plain ``Block`` without qkv bias and with norms of eps 1e-5, so that a ``Trunk`` and any reducer
    run on it. The auxiliary head for token labels, which classifies nothing here, is left out.
    stem: "4c" or "6c" convolutions. skip_lam: by which the branches are divided before they are added.
    Further arguments are timm's (img_size, drop_path_rate, global_pool, dynamic_img_size …).
    Raises UserError for a stem that cannot be built, and for pictures of another size.
    """

    checkpoint_filter_fn = staticmethod(lvvit_filter)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        embed_dim: int = 384,
        depth: int = 16,
        num_heads: int = 6,
        mlp_ratio: float = 3.0,
        stem: Literal["4c", "6c"] = "4c",
        skip_lam: float = 2.0,
        **kwargs: Any,
    ) -> None:
        if not skip_lam > 0:
            raise UserError(f"skip_lam divides the residual branches and must be positive, got {skip_lam}")
        super().__init__(
            img_size=img_size,
            patch_size=to_2tuple(patch_size),
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=False,
            norm_layer=partial(nn.LayerNorm, eps=1e-5),
            embed_layer=partial(ConvStem, layout=stem),
            **kwargs,
        )
        for block in self.blocks:
            block.ls1, block.ls2 = ResidualScale(skip_lam), ResidualScale(skip_lam)


class LVViTDistilled(LVViT, VisionTransformerDistilled):
    """LV-ViT with a distillation token and its head, for a convolutional teacher; both heads are averaged in eval."""
