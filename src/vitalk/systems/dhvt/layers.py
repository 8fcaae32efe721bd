"""What DHVT puts in the place of a ViT's patch embedding, attention and MLP."""

from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, to_2tuple
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.vision.patches import Patches

# A convolution of stride 2 for each entry, whose width is embed_dim divided by it; by patch size.
STAGES = {2: (1,), 4: (2, 1), 16: (8, 4, 2, 1)}


class Affine(nn.Module):
    """Scale and shift of each channel, which start as the identity: [batch, dim, height, width] -> the same shape."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, dim, 1, 1, **dd))
        self.beta = nn.Parameter(torch.zeros(1, dim, 1, 1, **dd))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, dim, height, width] -> the same shape."""
        return x * self.alpha + self.beta


class SOPE(Patches):
    """Sequential overlapping patch embedding (arXiv 2210.05958): 3 x 3 convolutions between two affines.

    Every convolution halves the grid; zero padding tells the tokens where they are. It reads pictures of all sizes
    that the patch divides, interpolating nothing, unless ``strict_img_size`` forbids it.
    Raises UserError for patches other than 2, 4 and 16 pixels.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 192,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        side = to_2tuple(patch_size)[0]
        if side not in STAGES or to_2tuple(patch_size) != (side, side):
            raise UserError(f"SOPE has patches of 2, 4 or 16 pixels, not {patch_size}; pass one of them or sope=False")
        dd = {"device": device, "dtype": dtype}
        super().__init__(img_size, patch_size, in_chans=in_chans, embed_dim=embed_dim, **kwargs, **dd)
        widths = [in_chans, *(embed_dim // divisor for divisor in STAGES[side])]
        convs: list[nn.Module] = []
        for before, after in pairwise(widths):
            conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False, **dd)
            convs += [nn.Sequential(conv, nn.BatchNorm2d(after, **dd)), nn.GELU()]
        if side != 2:  # whose only convolution keeps its activation
            convs.pop()
        stages = {"pre_affine": Affine(in_chans, **dd), "convs": nn.Sequential(*convs)}
        self.proj = nn.Sequential(OrderedDict(stages, post_affine=Affine(embed_dim, **dd)))


class HeadTokenAttention(nn.Module):
    """Head-interacted self-attention, HI-MHSA (arXiv 2210.05958).

    Each head's slice of the channels, averaged over all tokens, becomes one more token. These head tokens are made
    anew in every layer, attend and are attended to like the others, and end as an average that is added to the class
    token. Arguments are those of timm's ``Attention``, which ``mhsa`` is; dropout ``proj_drop`` comes last.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.mhsa = Attention(dim, num_heads, **kwargs, **dd)
        self.ht_proj = nn.Linear(dim // num_heads, dim, **dd)
        self.ht_norm = nn.LayerNorm(dim // num_heads, **dd)  # eps 1e-5, unlike the trunk's
        self.act = nn.GELU()
        self.pos_embed = nn.Parameter(torch.empty(1, num_heads, dim, **dd))
        self.proj_drop = nn.Dropout(proj_drop)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the table that tells the head tokens apart; timm initialises the linear layers."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def head_tokens(self, x: Tensor) -> Tensor:
        """x [batch, tokens, dim] -> one token for each head, [batch, heads, dim]."""
        slices = self.ht_proj(x.mean(1).unflatten(-1, (self.num_heads, -1)))
        return self.act(self.ht_norm(slices.unflatten(-1, (self.num_heads, -1)))).flatten(-2) + self.pos_embed

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x [batch, 1 + patches, dim] -> the same shape.

        attn_mask: [..., tokens, tokens], boolean or additive, as in timm; nothing is masked from or for head tokens.
        """
        count, heads = x.shape[1], self.num_heads
        if attn_mask is not None:
            attn_mask = F.pad(attn_mask, (0, heads, 0, heads), value=attn_mask.dtype == torch.bool)
        x = self.mhsa(torch.cat([x, self.head_tokens(x)], dim=1), attn_mask, is_causal)
        cls, patches, heads_out = x.split([1, count - 1, heads], dim=1)
        return self.proj_drop(torch.cat([cls + heads_out.mean(1, keepdim=True), patches], dim=1))


class DAFF(nn.Module):
    """Dynamic aggregation feed-forward (arXiv 2210.05958).

    The patches go through a 1 x 1, a depth-wise 3 x 3 and a 1 x 1 convolution on their grid, all followed by batch
    norm; the class token has no MLP of its own, but is multiplied by a gate, not a sigmoid, of what the patches
    became on average. Arguments are those of timm's MLP layers; there is no dropout inside, as in the official code.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        act_layer: type[nn.Module] = nn.GELU,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}

        def conv(before: int, after: int, kernel: int = 1, groups: int = 1) -> nn.Sequential:
            layer = nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups, **dd)
            return nn.Sequential(layer, nn.BatchNorm2d(after, **dd))

        self.expand = conv(in_features, hidden_features)
        self.depthwise = conv(hidden_features, hidden_features, 3, hidden_features)
        self.project = conv(hidden_features, in_features)
        self.compress = nn.Linear(in_features, in_features // 4, **dd)
        self.excitation = nn.Linear(in_features // 4, in_features, **dd)
        self.act = act_layer()

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """x [batch, 1 + rows * columns, dim], the class token first; grid: rows, columns -> the same shape."""
        cls, patches = x[:, 0], x[:, 1:].transpose(1, 2).unflatten(2, grid)
        hidden = self.act(self.expand(patches))
        patches = self.project(hidden + self.act(self.depthwise(hidden)))
        gate = self.excitation(self.act(self.compress(patches.mean((2, 3)))))
        return torch.cat([(cls * gate).unsqueeze(1), patches.flatten(2).transpose(1, 2)], dim=1)


class GridBlock(Block):
    """timm's pre-norm block around a feed-forward that knows the grid of the patches."""

    def forward(
        self, x: Tensor, grid: tuple[int, int], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """x [batch, 1 + rows * columns, dim], grid: rows, columns -> the same shape."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x), grid)))
