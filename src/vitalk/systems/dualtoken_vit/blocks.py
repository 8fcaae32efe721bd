"""The blocks of DualToken-ViT, and what a stage makes of them."""

from collections.abc import Sequence
from typing import Literal

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .layers import ConvEncoder, CrossAttention, FeedForward, MergePatch, WindowEncoder, tokens_of
from .tokens import Downsample, NormalTokens, PositionTokens, token_mlp


class DualTokenBlock(nn.Module):
    """One block (arXiv 2309.12424, section 3.1): local and global information, added up, then the feed-forward.

    local: [batch, height, width, dim] -> what is added to it. tokens: (map with local information, global tokens) ->
    new global tokens, which are broadcast to the map by cross attention; None for a block without global branch.
    global_ffn: the new tokens go through the feed-forward as well, before the map's, as in LightViT, and then count
    in the means of its gates; else they are handed on as they are. The paper leaves this open.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        local: nn.Module,
        tokens: nn.Module | None,
        mlp_ratio: float = 4.0,
        global_ffn: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.local, self.tokens = local, tokens
        self.broadcast = None if tokens is None else CrossAttention(dim, num_heads, attn_drop, proj_drop)
        self.ffn = FeedForward(dim, mlp_ratio, proj_drop)
        self.global_ffn = global_ffn and tokens is not None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, g: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x [batch, height, width, dim], g [batch, tokens, dim] or None -> both, of the same shapes."""
        size, update = x.shape[1:3], self.local(x)
        if self.tokens is not None:
            seen = x + update
            g = self.tokens(seen, g)
            update = update + self.broadcast(seen.flatten(1, 2), g).unflatten(1, size)
        x = x + self.drop_path(update)
        sequence = tokens_of(x, g if self.global_ffn else None)
        sequence = sequence + self.drop_path(self.ffn(sequence))
        if self.global_ffn:
            g, sequence = sequence.split([g.shape[1], sequence.shape[1] - g.shape[1]], dim=1)
        return sequence.unflatten(1, size), g


class Stage(nn.Module):
    """Patch merging, except before the first stage, and blocks."""

    def __init__(self, merge: MergePatch | None, blocks: Sequence[DualTokenBlock]) -> None:
        super().__init__()
        self.merge, self.blocks = merge, nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor, g: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x [batch, height, width, dim], g [batch, tokens, dim] or None -> both, smaller and wider where it merges."""
        if self.merge is not None:
            x, g = self.merge(x, g)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x, g = checkpoint(block, x, g, use_reentrant=False)
            else:
                x, g = block(x, g)
        return x, g


def make_block(
    dim: int,
    side: int,
    mlp_ratio: float,
    drop_path: float,
    head_dim: int,
    grid: int,
    local: Literal["conv", "window"],
    tokens: Literal["position", "normal", "none"],
    num_tokens: int,
    one_step: bool,
    global_mlp: Literal["mlp", "mix"],
    alpha: float,
    learn_alpha: bool,
    global_ffn: bool,
    attn_drop: float,
    proj_drop: float,
) -> DualTokenBlock:
    """The block of a design for maps of ``side`` x ``side``; the options are those of ``DualTokenViT``."""
    heads, drops = dim // head_dim, {"attn_drop": attn_drop, "proj_drop": proj_drop}
    encoder: nn.Module = ConvEncoder(dim, proj_drop=proj_drop)
    if local == "window":
        encoder = WindowEncoder(dim, heads, grid, **drops)
    module: nn.Module | None = None
    if tokens == "position":
        pooling, mlp = Downsample(dim, side, grid, one_step), token_mlp(global_mlp, dim, grid**2, proj_drop)
        module = PositionTokens(dim, heads, pooling, mlp, alpha, learn_alpha, **drops)
    elif tokens == "normal":
        module = NormalTokens(dim, heads, token_mlp(global_mlp, dim, num_tokens, proj_drop), **drops)
    return DualTokenBlock(dim, heads, encoder, module, mlp_ratio, global_ffn, drop_path=drop_path, **drops)
