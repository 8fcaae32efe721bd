"""DHVT: a timm ViT with another patch embedding, attention and feed-forward, each of which can be switched off."""

from functools import partial
from typing import Any, Literal

import torch
from timm.layers import Attention
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitalk.errors import UserError
from vitalk.vision.patches import Patches

from .checkpoint import checkpoint_filter_fn
from .layers import DAFF, SOPE, GridBlock, HeadTokenAttention


class DHVTWithMlp(VisionTransformer):
    """DHVT with timm's MLP in the place of DAFF, for the ablation (arXiv 2210.05958).

    The tokens remain a plain sequence, and the model is a timm ``VisionTransformer`` in all but its parts.
    sope: False cuts the picture into patches with one convolution, as ViTs do.
    head_tokens: False is plain self-attention. pos_embed: "learn" adds a table of absolute positions.
    With all three as in a ViT (False, False, "learn") it is the paper's baseline, DeiT, and a ``Trunk`` takes the model
    wherever it has no head tokens.
    Further arguments are timm's (depth, mlp_ratio, drop_path_rate, global_pool, dynamic_img_size …). Without a
    position table pictures of all sizes are read that the patch divides, square or not.
    Raises UserError for such that it does not divide, and for prefix tokens other than one class token.
    """

    checkpoint_filter_fn = staticmethod(checkpoint_filter_fn)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        embed_dim: int = 192,
        num_heads: int = 3,
        sope: bool = True,
        head_tokens: bool = True,
        pos_embed: Literal["none", "learn"] = "none",
        **kwargs: Any,
    ) -> None:
        if kwargs.get("reg_tokens") or not kwargs.get("class_token", True):
            raise UserError("DHVT has one class token and no registers; leave out reg_tokens and class_token")
        if num_heads < 1 or embed_dim % num_heads:
            raise UserError(f"embed_dim {embed_dim} does not divide into {num_heads} heads; change one of them")
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            num_heads=num_heads,
            pos_embed=pos_embed,
            embed_layer=partial(SOPE if sope else Patches, strict_img_size=pos_embed == "learn"),
            attn_layer=HeadTokenAttention if head_tokens else Attention,
            **kwargs,
        )

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise as timm does in ``mode``, the class token with deviation 0.02."""
        super().init_weights(mode, needs_reset)
        nn.init.trunc_normal_(self.cls_token, std=0.02)


class DHVT(DHVTWithMlp):
    """Dynamic hybrid vision transformer (arXiv 2210.05958): all arguments are those of ``DHVTWithMlp``.

    The grid of the patches goes along from block to block, since DAFF convolves on it.
    Raises UserError also for ``patch_drop_rate``, which would tear holes into the grid.
    """

    def __init__(self, **kwargs: Any) -> None:
        if kwargs.get("patch_drop_rate"):
            raise UserError("DAFF needs all patches of the grid; leave out patch_drop_rate or pass daff=False")
        super().__init__(block_fn=GridBlock, mlp_layer=DAFF, **kwargs)

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """images [batch, channels, height, width] -> normalised features [batch, 1 + patches, dim]."""
        x, grid = self._embed(x)
        for block in self.blocks:
            x = self._through(block, x, grid, attn_mask, is_causal)
        return self.norm(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Features and what the blocks ``indices`` put out: arguments and results are those of timm's ViT."""
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt must be NCHW or NLC, got {output_fmt}")
        wanted, last = feature_take_indices(len(self.blocks), indices)
        x, grid = self._embed(x)
        kept = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = self._through(block, x, grid, attn_mask, is_causal)
            if i in wanted:
                kept.append(self.norm(x) if norm else x)
        prefix, patches = [y[:, :1] for y in kept], [y[:, 1:] for y in kept]
        if output_fmt == "NCHW":
            patches = [y.transpose(1, 2).unflatten(2, grid).contiguous() for y in patches]
        if output_dict:
            found = {"image_intermediates": patches}
            found |= {"image_intermediates_prefix": prefix} if return_prefix_tokens else {}
            return found if intermediates_only else {**found, "image_features": self.norm(x)}
        both = list(zip(patches, prefix, strict=True)) if return_prefix_tokens else patches
        return both if intermediates_only else (self.norm(x), both)

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.norm_pre(self._pos_embed(self.patch_embed(images)))
        return x, self.patch_embed.dynamic_feat_size(tuple(images.shape[-2:]))

    def _through(self, block: nn.Module, *inputs: Any) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)
