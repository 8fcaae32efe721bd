"""What surrounds the global tokens of DualToken-ViT: stem, local branch, broadcast, feed-forward and merging.

Image tokens are maps [batch, height, width, dim]: linear layers take them as they are, and convolutions see them as
channels-last pictures without a copy.
"""

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import Mlp, use_fused_attn
from timm.models.swin_transformer import WindowAttention, window_partition, window_reverse
from torch import Tensor, nn

from vitalk.errors import UserError

LayerNorm = partial(nn.LayerNorm, eps=1e-6)  # of the blocks; stem, gates, merging and neck have torch's 1e-5
STRIDES = {8: (2, 2, 2), 4: (1, 2, 2), 2: (1, 1, 2)}  # of the stem's first, last depth-wise and last convolution


def conv_bn_gelu(before: int, after: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A 3 x 3 convolution without bias, batch norm and GELU."""
    conv = nn.Conv2d(before, after, 3, stride, padding=1, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(after), nn.GELU()]


class Stem(nn.Module):
    """The convolutional stem of LightViT (arXiv 2207.05557): a token for every ``stride`` x ``stride`` pixels.

    stride: 8, as there; at 4 and 2, which are ours and meant for small pictures, the first convolutions keep the size.
    """

    def __init__(self, in_chans: int, dim: int, stride: int = 8) -> None:
        super().__init__()
        width, (first, third, last) = dim // 2, STRIDES[stride]
        layers = conv_bn_gelu(in_chans, width, first)
        for step in (1, 1, third):
            layers += conv_bn_gelu(width, width, step, groups=width)
        self.convs = nn.Sequential(*layers)
        self.proj = nn.Conv2d(width, dim, 3, last, padding=1)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """images [batch, channels, height, width] -> map [batch, height / stride, width / stride, dim]."""
        return self.norm(self.proj(self.convs(x)).permute(0, 2, 3, 1))


class ConvEncoder(nn.Module):
    """A ConvNeXt block without its shortcut: local information by a depth-wise 7 x 7 convolution and an MLP.

    It returns what is to be added to its input. Kernel and ``mlp_ratio`` are ConvNeXt's; the paper says no more than
    that the structure is the same.
    """

    def __init__(self, dim: int, mlp_ratio: float = 4.0, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, height, width, dim] -> the update, of the same shape."""
        return self.mlp(self.norm(self.conv_dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))


class WindowEncoder(nn.Module):
    """Self-attention in windows in the place of ``ConvEncoder``, for the ablation; timm's, with relative positions.

    Maps that the window does not divide are padded with zeros at the right and at the bottom, as in Swin.
    """

    def __init__(
        self, dim: int, num_heads: int, window: int = 7, attn_drop: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        self.window = window
        self.norm = LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size=window, attn_drop=attn_drop, proj_drop=proj_drop)
        self.attn.fused_attn = use_fused_attn()  # timm leaves it off by default

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, height, width, dim] -> the update, of the same shape."""
        (height, width), side = x.shape[1:3], self.window
        padded = F.pad(self.norm(x), (0, 0, 0, -width % side, 0, -height % side)).contiguous()
        tokens = self.attn(window_partition(padded, (side, side)).flatten(1, 2))
        whole = window_reverse(tokens.unflatten(1, (side, side)), (side, side), *padded.shape[1:3])
        return whole[:, :height, :width]


class CrossAttention(nn.Module):
    """Attention of tokens over other tokens. Both are normalised first, which is our reading of "pre-norm"."""

    def __init__(self, dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.fused_attn = use_fused_attn()
        self.norm, self.norm_kv = LayerNorm(dim), LayerNorm(dim)
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x [batch, queries, dim], seen [batch, tokens, dim] -> [batch, queries, dim]; queries x tokens scores."""
        parts = (self.q(self.norm(x)), *self.kv(self.norm_kv(seen)).chunk(2, -1))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        else:
            x = self.attn_drop((q * self.scale @ k.transpose(-2, -1)).softmax(-1)) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class BiDimAttention(nn.Module):
    """LightViT's bi-dimensional attention (arXiv 2207.05557): a gate for each channel and one for each token.

    Both gates are sigmoids, so that no value grows. The spatial gate is a linear layer of a token's own features and
    of the mean over all tokens side by side, written as the sum of two.
    """

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.global_reduce, self.local_reduce = nn.Linear(dim, dim // ratio), nn.Linear(dim, dim // ratio)
        self.act = nn.GELU()
        self.channel_select = nn.Linear(dim // ratio, dim)
        self.spatial_select = nn.Linear(dim // ratio, 1)
        self.spatial_select_global = nn.Linear(dim // ratio, 1, bias=False)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [batch, tokens, dim] -> gates of the channels [batch, 1, dim] and of the tokens [batch, tokens, 1]."""
        x = self.norm(x)
        whole = self.act(self.global_reduce(x.mean(1, keepdim=True)))
        spatial = self.spatial_select(self.act(self.local_reduce(x))) + self.spatial_select_global(whole)
        return self.channel_select(whole).sigmoid(), spatial.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, dim] -> the same shape."""
        channels, tokens = self.gates(x)
        return x * channels * tokens


class FeedForward(nn.Module):
    """LayerNorm, an MLP and ``BiDimAttention``: [batch, tokens, dim] -> the update, of the same shape."""

    def __init__(self, dim: int, mlp_ratio: float, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.bidim = BiDimAttention(dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, dim] -> the same shape."""
        return self.bidim(self.mlp(self.norm(x)))


class MergePatch(nn.Module):
    """LightViT's residual patch merging: half the sides, ``out_dim`` channels; global tokens change their width only.

    The pixels of a 2 x 2 cell are laid side by side in the order (0, 0), (1, 0), (0, 1), (1, 1), row first.
    Raises UserError for maps with an odd side.
    """

    def __init__(self, dim: int, out_dim: int, global_tokens: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)
        self.shortcut = nn.Linear(dim, out_dim, bias=False)
        self.norm_tokens = nn.LayerNorm(dim) if global_tokens else None
        self.proj_tokens = nn.Linear(dim, out_dim, bias=False) if global_tokens else None

    def forward(self, x: Tensor, g: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x [batch, height, width, dim], g [batch, tokens, dim] or None -> both, with ``out_dim`` channels."""
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            raise UserError(f"patches of a map of {height} x {width} cannot be merged by twos; pad it to even sides")
        cells = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        strongest = F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        x = self.reduction(self.norm(cells)) + self.shortcut(strongest)
        return x, None if g is None or self.proj_tokens is None else self.proj_tokens(self.norm_tokens(g))


def tokens_of(x: Tensor, g: Tensor | None) -> Tensor:
    """x [batch, height, width, dim], g [batch, tokens, dim] or None -> one sequence, global tokens first."""
    x = x.flatten(1, 2)
    return x if g is None else torch.cat([g, x], dim=1)
