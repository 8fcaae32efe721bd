"""The T2T host of arXiv 2309.05375: masks in the token layers and in the trunk."""

from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.attention import MatMul, SiteAttention
from vitalk.nn.positions import sinusoid_table

from .attention import Grid
from .checkpoint import t2t_filter_fn
from .mask import MaskedProduct, MaskKind, make_mask

KERNEL, STRIDE, PADDING = 3, 2, 1


class TokenLayer(nn.Module):
    """One-head attention from wide tokens to narrow ones, masked; its values are the skip path.

    The scale is dim^-0.5, of the wide tokens. mask, kernels: see ``GMMViT``; grid: that of the tokens.
    """

    def __init__(self, dim: int, width: int, grid: Grid, mask: MaskKind, kernels: int, **dd: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = ValueSkipAttention(dim, num_heads=1, attn_head_dim=width, dim_out=width, **dd)
        self.attn.scale = dim**-0.5
        _put_mask(self.attn, mask, grid, kernels)
        self.norm2 = nn.LayerNorm(width, **dd)
        self.mlp = Mlp(width, width, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [batch, tokens, dim] -> [batch, tokens, width]."""
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ValueSkipAttention(SiteAttention):
    """One-head attention whose output is added to its values, since the input has another width."""

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, dim] -> [batch, tokens, width]."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scores = self.matmul1(self.scale * q[:, None], k[:, None].transpose(-2, -1))
        mixed = self.matmul2(scores.softmax(-1), v[:, None]).squeeze(1)
        return v + self.proj(mixed)


class SkipAttention(SiteAttention):
    """Attention that adds its input, which the block has normed, to its output.

    The block adds its own residual after that: a doubled skip, as the released code has it.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x [batch, tokens, dim] -> the same shape."""
        return x + super().forward(x, attn_mask, is_causal)


class SoftSplit(nn.Module):
    """Overlapping windows of 3 pixels every 2 as tokens, through ``layer``, laid out as a map of half the side."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The map [batch, channels, height, width] -> [batch, width of layer, height / 2, width / 2]."""
        grid = (x.shape[-2] // STRIDE, x.shape[-1] // STRIDE)
        tokens = F.unfold(x, KERNEL, padding=PADDING, stride=STRIDE).transpose(1, 2)
        return self.layer(tokens).transpose(1, 2).unflatten(2, grid)


class MaskedTokensToToken(nn.Module):
    """The patch embedding of the T2T host: soft splits with masked token layers between them.

    splits: how often the sides are halved. token_dim: the width between the splits.
    Raises UserError where a side is no multiple of 2^splits.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        splits: int,
        token_dim: int,
        mask: MaskKind,
        kernels: int,
        in_chans: int = 3,
        embed_dim: int = 256,
        device: Any = None,
        dtype: Any = None,
        **_: Any,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.reduction = STRIDE**splits
        if splits < 1 or len(self.img_size) != 2 or any(s < 1 or s % self.reduction for s in self.img_size):
            raise UserError(
                f"{splits} splits take sides that are multiples of {self.reduction} pixels, not"
                f" {' x '.join(map(str, self.img_size))}; resize the picture or change splits, 1 at least"
            )
        self.patch_size = (self.reduction, self.reduction)
        grid, wide, stages = self.img_size, in_chans * KERNEL**2, []
        for _index in range(splits - 1):
            grid = tuple(side // STRIDE for side in grid)
            stages.append(SoftSplit(TokenLayer(wide, token_dim, grid, mask, kernels, **dd)))
            wide = token_dim * KERNEL**2
        stages.append(SoftSplit(nn.Linear(wide, embed_dim, **dd)))
        self.stages = nn.Sequential(*stages)
        self.grid_size = tuple(side // STRIDE for side in grid)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels a token along each side."""
        return self.reduction if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: Grid) -> Grid:
        """The grid of tokens of a picture."""
        return img_size[0] // self.reduction, img_size[1] // self.reduction

    def forward(self, images: Tensor) -> Tensor:
        """images [batch, channels, height, width] -> [batch, tokens, embed_dim]."""
        if tuple(images.shape[-2:]) != self.img_size:
            (height, width), (rows, columns) = images.shape[-2:], self.img_size
            raise UserError(
                f"the picture has {height} x {width} pixels, the model reads {rows} x {columns}; resize the picture,"
                f" or build the model with img_size={(height, width)}"
            )
        return self.stages(images).flatten(2).transpose(1, 2)


class GMMT2T(VisionTransformer):
    """T2T-ViT with softmax token layers and masks everywhere; the mean of the tokens is classified, masked or not.

    splits: 2 for pictures of 32 pixels, 3 for 64. Positions are a fixed sinusoidal table. The trunk has the doubled
    skip of ``SkipAttention``, so that a ``Trunk`` does not take it. mask, kernels: see ``GMMViT``. Further arguments
    are timm's; the picture size is fixed.
    Raises UserError for sides that are no multiple of 2^splits, and for masks that there are not.
    """

    checkpoint_filter_fn = staticmethod(t2t_filter_fn)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        splits: int = 2,
        token_dim: int = 64,
        embed_dim: int = 256,
        depth: int = 12,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        mask: MaskKind = "gaussian",
        kernels: int = 5,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("dynamic_img_size"):
            raise UserError("the T2T host reads pictures of one size; leave dynamic_img_size out and fix img_size")
        super().__init__(
            img_size=img_size,
            patch_size=STRIDE**splits,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=False,
            class_token=False,
            global_pool="avg",
            fc_norm=False,
            pos_embed="none",
            norm_layer=nn.LayerNorm,
            attn_layer=SkipAttention,
            embed_layer=partial(MaskedTokensToToken, splits=splits, token_dim=token_dim, mask=mask, kernels=kernels),
            **kwargs,
        )
        del self.pos_embed
        table = sinusoid_table(self.patch_embed.num_patches, embed_dim)[None]
        self.register_buffer("pos_embed", table.to(self.norm.weight), persistent=False)
        for block in self.blocks:
            _put_mask(block.attn, mask, self.patch_embed.grid_size, kernels)

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: Any = None) -> None:
        """Raises UserError: the grids of all token layers follow from the picture size."""
        raise UserError(f"the T2T host is built for one picture size; build it anew with img_size={img_size}")


def _put_mask(attn: SiteAttention, mask: MaskKind, grid: Grid, kernels: int) -> None:
    if mask != "none":
        fresh = make_mask(mask, grid, attn.num_heads, kernels, 0, like=attn.proj.weight)
        attn.matmul1 = MaskedProduct(MatMul(), fresh)
