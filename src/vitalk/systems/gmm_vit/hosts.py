"""The further hosts of arXiv 2309.05375 on timm's own networks: Swin, PiT and CaiT, small, with masks or without."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.models.cait import Cait, LayerScaleBlockClassAttn
from timm.models.pit import PoolingVisionTransformer
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from vitalk.vision.patches import Patches

from .attention import TalkingHeads, gmm_attention, resize_masks
from .checkpoint import cait_filter_fn, pit_filter_fn, swin_filter_fn
from .mask import MaskKind
from .model import constant_drop_path, xavier


class PositionedPatches(Patches):
    """A patch embedding that ends with a learnable position table, which timm's Swin has not."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        weight = self.proj.weight
        self.pos_embed = nn.Parameter(weight.new_empty(1, self.num_patches, weight.shape[0]))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """images [batch, channels, height, width] -> [batch, rows, columns, dim]."""
        x = super().forward(images)
        return x + self.pos_embed.unflatten(1, x.shape[1:3])


class GMMSwin(SwinTransformer):
    """Swin with masks inside its windows: timm's, with absolute positions.

    The mask multiplies the products of queries and keys before relative bias and shift mask are added. mask, kernels:
    see ``GMMViT``. Further arguments are timm's; weights start as torch's defaults, as the authors leave them.
    Raises UserError for pictures that patches do not tile, and for masks that there are not.
    """

    checkpoint_filter_fn = staticmethod(swin_filter_fn)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        patch_size: int = 2,
        depths: Sequence[int] = (2, 6, 4),
        num_heads: Sequence[int] = (3, 6, 12),
        window_size: int = 4,
        mlp_ratio: float = 2.0,
        drop_path_rate: float = 0.0,
        mask: MaskKind = "gaussian",
        kernels: int = 5,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
            embed_layer=PositionedPatches,
            weight_init="skip",
            **kwargs,
        )
        gmm_attention(self, mask, kernels)

    def no_weight_decay(self) -> set[str]:
        """The relative bias tables, as timm has it, and the positions."""
        return super().no_weight_decay() | {"patch_embed.pos_embed"}

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, **kwargs: Any) -> None:
        """Read pictures of another size, windows growing along unless ``window_size`` is given; masks follow them."""
        before = self.patch_embed.grid_size
        super().set_input_size(img_size, **kwargs)
        table = self.patch_embed.pos_embed.unflatten(1, before).permute(0, 3, 1, 2)
        table = nn.functional.interpolate(table, self.patch_embed.grid_size, mode="bicubic", antialias=True)
        self.patch_embed.pos_embed = nn.Parameter(table.flatten(2).transpose(1, 2).detach())
        resize_masks(self)


class ClassPosition(nn.Module):
    """Adds the position of the class token; stands where later stages of timm's PiT have their pooling."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn_like(like))

    def forward(self, x: Tensor, class_token: Tensor) -> tuple[Tensor, Tensor]:
        """The map [batch, dim, height, width] as it is, and class_token [batch, 1, dim] with its position."""
        return x, class_token + self.position


class GMMPiT(PoolingVisionTransformer):
    """PiT with masks, one grid a stage; the class token stays unmasked.

    From the last block the class token alone goes on, so that its mask changes nothing; it is kept for the
    checkpoints' sake.

    Differs from timm's in patches that do not overlap, a position for the class token, pointwise convolutions after
    the depthwise ones of the poolings, attention without qkv bias and norms of eps 1e-5. embed_dim: of the first
    stage, divided by heads[0] the width of every head. drop_path_rate: the same in all blocks. mask, kernels: see
    ``GMMViT``. Further arguments are timm's.
    Raises UserError for pictures that patches do not tile, and for masks that there are not.
    """

    checkpoint_filter_fn = staticmethod(pit_filter_fn)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        patch_size: int = 2,
        embed_dim: int = 96,
        depth: Sequence[int] = (2, 6, 4),
        heads: Sequence[int] = (2, 4, 8),
        mlp_ratio: float = 2.0,
        drop_path_rate: float = 0.0,
        mask: MaskKind = "gaussian",
        kernels: int = 5,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            stride=patch_size,
            base_dims=[embed_dim // heads[0]] * len(heads),
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            **kwargs,
        )
        dd = {"device": self.cls_token.device, "dtype": self.cls_token.dtype}
        self.patch_embed = Patches(img_size, patch_size, self.in_chans, embed_dim, output_fmt="NCHW", **dd)
        for stage in self.transformers:
            if stage.pool is None:
                stage.pool = ClassPosition(self.cls_token)
            else:
                width = stage.pool.conv.out_channels
                stage.pool.conv = nn.Sequential(stage.pool.conv, nn.Conv2d(width, width, 1, **dd))
            for block in stage.blocks:
                block.attn.qkv.bias = None
            constant_drop_path(stage.blocks, drop_path_rate)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-5
        xavier(self)
        for table in (self.pos_embed, self.cls_token):
            nn.init.normal_(table)
        gmm_attention(self, mask, kernels)

    def no_weight_decay(self) -> set[str]:
        """Class token and positions."""
        return super().no_weight_decay() | {"transformers.0.pool.position"}


class ClassBlock(LayerScaleBlockClassAttn):
    """timm's class-attention block, in which the class token looks at the patches alone, and these are not normed."""

    def forward(self, x: Tensor, x_cls: Tensor) -> Tensor:
        """x [batch, patches, dim], x_cls [batch, 1, dim] -> the class token anew."""
        x_cls = x_cls + self.drop_path(self.gamma_1 * self.attn(self.norm1(x_cls), x))
        return x_cls + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x_cls)))


class GMMCait(Cait):
    """CaiT with masks in its patch blocks, before the heads are mixed; the class blocks mix heads too, unmasked.

    head_dim: of each head, 64 whatever the width. mlp_dim: hidden units of the MLPs. The scale of the layers starts
    at 0.1, from block 19 on at 1e-5 and from block 25 on at 1e-6. mask, kernels: see ``GMMViT``. Further arguments
    are timm's.
    Raises UserError for pictures that patches do not tile, and for masks that there are not.
    """

    checkpoint_filter_fn = staticmethod(cait_filter_fn)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        patch_size: int = 4,
        embed_dim: int = 192,
        depth: int = 24,
        depth_token_only: int = 2,
        num_heads: int = 4,
        head_dim: int = 64,
        mlp_dim: int = 384,
        mask: MaskKind = "gaussian",
        kernels: int = 5,
        **kwargs: Any,
    ) -> None:
        attention = partial(TalkingHeads, head_dim=head_dim, bias=False)
        ratio = (mlp_dim + 0.5) / embed_dim  # timm cuts the product with embed_dim off
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            depth_token_only=depth_token_only,
            num_heads=num_heads,
            mlp_ratio=ratio,
            mlp_ratio_token_only=ratio,
            qkv_bias=False,
            norm_layer=nn.LayerNorm,
            patch_layer=Patches,
            attn_block=attention,
            attn_block_token_only=attention,
            block_layers_token=ClassBlock,
            **kwargs,
        )
        self._initialise()
        gmm_attention(self, mask, kernels)

    def _initialise(self) -> None:
        xavier(self)
        for table in (self.pos_embed, self.cls_token):
            nn.init.normal_(table)
        for blocks in (self.blocks, self.blocks_token_only):
            for index, block in enumerate(blocks):
                for scale in (block.gamma_1, block.gamma_2):
                    nn.init.constant_(scale, 0.1 if index < 18 else 1e-5 if index < 24 else 1e-6)
                for mix in (block.attn.proj_l, block.attn.proj_w):
                    nn.init.normal_(mix.weight)
