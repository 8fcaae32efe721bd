"""T2T-ViT: the tokens-to-token embedding on timm's own deep and narrow vision transformer."""

from functools import partial
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitalk.nn.positions import sinusoid_table

from .checkpoint import checkpoint_filter_fn
from .tokens import SPLITS, Splits, Tokenizer, TokensToToken, reduction


class QueryScale(nn.Module):
    """Queries times a constant, in the place of timm's query norm, which every attention path goes through."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, q: Tensor) -> Tensor:
        """q [batch, heads, tokens, head_dim] -> the same shape."""
        return q * self.factor


class T2TViT(VisionTransformer):
    """Tokens-to-token vision transformer (arXiv 2101.11986): a timm ``VisionTransformer`` in all but its embedding.

    Blocks are timm's ``Block`` without qkv bias, norms have eps 1e-5, positions are a fixed sinusoidal table.
    tokenizer, token_dim, splits: see ``TokensToToken``; pictures of 32 pixels take ``[(3, 2, 1), (3, 2, 1)]``.
    qk_scale: of the attention logits in the blocks, head_dim^-0.5 where None. The checkpoints that the authors
    released were trained at embed_dim^-0.5 and need that here.
    Further arguments are timm's (drop_path_rate, proj_drop_rate, global_pool, dynamic_img_size …).
    Raises UserError for pictures that are not square or do not divide into the splits.
    """

    checkpoint_filter_fn = staticmethod(checkpoint_filter_fn)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        embed_dim: int = 384,
        depth: int = 14,
        num_heads: int = 6,
        mlp_ratio: float = 3.0,
        tokenizer: Tokenizer = "performer",
        token_dim: int = 64,
        splits: Splits = SPLITS,
        qk_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            img_size=img_size,
            patch_size=reduction(splits),
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=False,
            pos_embed="none",
            norm_layer=nn.LayerNorm,
            embed_layer=partial(TokensToToken, tokenizer=tokenizer, token_dim=token_dim, splits=splits),
            **kwargs,
        )
        del self.pos_embed
        table = self._sinusoid().to(device=kwargs.get("device"), dtype=kwargs.get("dtype"))
        self.register_buffer("pos_embed", table)
        if qk_scale is not None:
            self.scale_attention(qk_scale)

    def scale_attention(self, qk_scale: float) -> None:
        """Let the attention logits of all blocks be ``qk_scale`` times the products of queries and keys."""
        for block in self.blocks:
            if hasattr(block, "attn"):
                block.attn.q_norm = QueryScale(qk_scale * block.attn.head_dim**0.5)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise as timm does in ``mode``, the class token with deviation 0.02 and the table as it was."""
        super().init_weights(mode, needs_reset)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        if self.pos_embed is not None:
            with torch.no_grad():
                self.pos_embed.copy_(self._sinusoid())

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: Any = None) -> None:
        """Read pictures of another size; the position table is resized bicubically, as the authors did for 384."""
        before = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size, patch_size)
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        self.pos_embed = resample_abs_pos_embed(
            self.pos_embed, list(self.patch_embed.grid_size), list(before), num_prefix_tokens=prefix, antialias=False
        )
        super().set_input_size(self.patch_embed.img_size)

    def _sinusoid(self) -> Tensor:
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        return sinusoid_table(self.patch_embed.num_patches + prefix, self.patch_embed.embed_dim)[None]
