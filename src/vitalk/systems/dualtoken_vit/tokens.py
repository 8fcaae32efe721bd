"""Global tokens: how a block brings them up to date with the picture (arXiv 2309.12424, section 3)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from timm.models.mlp_mixer import MixerBlock
from torch import Tensor, nn

from .layers import CrossAttention, LayerNorm, conv_bn_gelu

# Hidden units over channels of the MLPs on global tokens; ours. The mixing one is the smaller, as in the paper.
MLP_RATIO = 2.0
MIX_RATIOS = (0.5, 1.0)  # over tokens, over channels


class Downsample(nn.Module):
    """A map pooled to ``grid`` x ``grid`` step by step, so that little is lost on the way.

    The first step averages 2 x 2 cells; every further one has a 3 x 3 convolution, batch norm and GELU before.
    ``steps`` holds these M repeats, as many as maps of ``side`` x ``side`` need: one for 28 to 7, none for 14 and 7.
    What the steps are made of is ours, the paper gives their outline; that they cost it 0.1 M parameters speaks for
    full convolutions rather than depth-wise ones.

    Maps of other sizes are read as well: no step goes below the grid, and what is left after the last one is pooled
    adaptively. one_step: the ablation, a single adaptive pooling.
    """

    def __init__(self, dim: int, side: int, grid: int = 7, one_step: bool = False) -> None:
        super().__init__()
        self.grid = grid
        repeats = 0 if one_step or side < grid else int(math.log2(side / grid)) - 1
        self.steps = nn.ModuleList(nn.Sequential(*conv_bn_gelu(dim, dim)) for _ in range(repeats))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, height, width, dim] -> [batch, grid * grid, dim]."""
        x = x.permute(0, 3, 1, 2)
        if self.steps:
            x = self._halve(x)
        for step in self.steps:
            x = self._halve(step(x))
        return self._pool(x, (self.grid, self.grid)).flatten(2).transpose(1, 2)

    def _halve(self, x: Tensor) -> Tensor:
        height, width = (max(side // 2, self.grid) for side in x.shape[2:])
        return self._pool(x, (height, width))

    def _pool(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)


class TokenMlp(nn.Module):
    """Pre-norm MLP with its shortcut, each token by itself."""

    def __init__(self, dim: int, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * MLP_RATIO), drop=proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, dim] -> the same shape."""
        return x + self.mlp(self.norm(x))


def token_mlp(kind: Literal["mlp", "mix"], dim: int, count: int, proj_drop: float = 0.0) -> nn.Module:
    """The MLP on ``count`` global tokens with its shortcuts; "mix" is MixMLP, a block of MLP-Mixer (timm's)."""
    return MixerBlock(dim, count, MIX_RATIOS, drop=proj_drop) if kind == "mix" else TokenMlp(dim, proj_drop)


class PositionTokens(nn.Module):
    """The position-aware token module: global tokens that each stand for one cell of the map.

    The map is pooled to the grid of the tokens and attends to itself there; what comes out is mixed with the tokens
    one to one, alpha * picture + (1 - alpha) * tokens, and goes through ``mlp``. The paper has a weighted sum; its
    form is our reading. With alpha 0 the tokens do not see the picture, with 1 the picture alone remains.

    alpha: the weight of the picture, at the start where ``learn_alpha`` makes it a parameter of the block.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        downsample: Downsample,
        mlp: nn.Module,
        alpha: float = 0.5,
        learn_alpha: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.norm = LayerNorm(dim)
        self.attn = Attention(dim, num_heads, qkv_bias=True, attn_drop=attn_drop, proj_drop=proj_drop)
        self.alpha = nn.Parameter(torch.tensor(alpha)) if learn_alpha else alpha
        self.mlp = mlp

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """x [batch, height, width, dim], g [batch, grid * grid, dim] -> the new g."""
        aggregated = self.attn(self.norm(self.downsample(x)))
        return self.mlp(self.alpha * aggregated + (1 - self.alpha) * g)


class NormalTokens(nn.Module):
    """Global tokens without a place, as in LightViT, for the ablation: they attend to the whole map."""

    def __init__(
        self, dim: int, num_heads: int, mlp: nn.Module, attn_drop: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        self.attn = CrossAttention(dim, num_heads, attn_drop, proj_drop)
        self.mlp = mlp

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """x [batch, height, width, dim], g [batch, tokens, dim] -> the new g."""
        return self.mlp(g + self.attn(g, x.flatten(1, 2)))
