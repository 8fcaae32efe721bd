"""Designs of convolutional networks carried over to T2T-ViT (arXiv 2101.11986, section 3.3 and table 6)."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .model import T2TViT


class SqueezeExcite(nn.Module):
    """Channels weighed by a gate that sees their mean over the tokens; [batch, tokens, dim] -> the same shape."""

    def __init__(self, dim: int, ratio: int = 16) -> None:
        super().__init__()
        self.reduce = nn.Linear(dim, dim // ratio, bias=False)
        self.expand = nn.Linear(dim // ratio, dim, bias=False)
        for layer in (self.reduce, self.expand):
            nn.init.trunc_normal_(layer.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, dim] -> the same shape."""
        return x * self.expand(self.reduce(x.mean(1, keepdim=True)).relu()).sigmoid()


class T2TViTSE(T2TViT):
    """T2T-ViT with squeeze-excite (arXiv 1709.01507) after every attention.

    The gate takes the place of the block's layer scale, and the blocks stay plain timm blocks. It so comes after the
    projection's dropout, in the official code before it, which differs where proj_drop_rate is not 0.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for block in self.blocks:
            block.ls1 = SqueezeExcite(self.embed_dim).to(block.attn.proj.weight)


class GhostProjection(nn.Module):
    """Queries, keys and values, half of each computed and the other half a multiple of the first, channel by channel.

    [batch, tokens, dim] -> [batch, tokens, 3 * dim], laid out as a plain qkv projection gives it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_features, self.out_features = dim, 3 * dim
        self.primary = nn.Linear(dim, 3 * (dim // 2), bias=False)
        self.cheap = nn.Parameter(torch.empty(3, dim // 2).uniform_(-1, 1))
        nn.init.trunc_normal_(self.primary.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, dim] -> [batch, tokens, 3 * dim]."""
        half = self.primary(x).unflatten(-1, self.cheap.shape)
        return torch.cat([half, half * self.cheap], dim=-1).flatten(-2)


class GhostMlp(nn.Module):
    """An MLP that computes ``in_features`` hidden units; the others are activated multiples of them.

    Arguments are those of timm's MLP layers. Raises ValueError where hidden_features is no multiple of in_features.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        act_layer: type[nn.Module] = nn.GELU,
        drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        if hidden_features % in_features:
            raise ValueError(f"ghost blocks need a whole mlp_ratio, got {hidden_features / in_features}")
        dd = {"device": device, "dtype": dtype}
        self.fc1 = nn.Linear(in_features, in_features, **dd)
        self.act, self.drop = act_layer(), nn.Dropout(drop)
        self.cheap = nn.Parameter(torch.empty(hidden_features // in_features - 1, in_features, **dd).uniform_(-1, 1))
        self.fc2 = nn.Linear(hidden_features, in_features, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, dim] -> the same shape."""
        first = self.act(self.fc1(x))
        ghosts = self.act(first.unsqueeze(-2) * self.cheap).flatten(-2)
        return self.drop(self.fc2(self.drop(torch.cat([first, ghosts], dim=-1))))


class T2TViTGhost(T2TViT):
    """T2T-ViT whose projections and MLPs are half ghosts (arXiv 1911.11907)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(mlp_layer=GhostMlp, **kwargs)
        for block in self.blocks:
            block.attn.qkv = GhostProjection(self.embed_dim).to(block.attn.proj.weight)


class DenseBlock(Block):
    """A block whose output, narrowed to ``growth_rate`` channels, is appended to its input."""

    def __init__(self, dim: int, growth_rate: int, **kwargs: Any) -> None:
        super().__init__(dim, **kwargs)
        self.dense_linear = nn.Linear(dim, growth_rate)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x [batch, tokens, dim] -> [batch, tokens, dim + growth_rate]."""
        return torch.cat([x, self.dense_linear(super().forward(x, attn_mask, is_causal))], dim=-1)


class Transition(nn.Module):
    """Between two groups of dense blocks: half the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim // 2)
        self.act = nn.GELU()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x [batch, tokens, dim] -> [batch, tokens, dim / 2]; the mask is the attention's and unused."""
        return self.act(self.linear(x))


class T2TViTDense(T2TViT):
    """T2T-ViT with dense connections (arXiv 1608.06993): groups of dense blocks, transitions between them.

    growth_rate: channels that a block adds. block_config: blocks a group. embed_dim: the width of the first block.
    Drop path rises linearly over the blocks (the official code gives all blocks of a group the same rate).
    The blocks are not of one width, so that a ``Trunk`` does not take this model.
    """

    def __init__(
        self,
        growth_rate: int = 64,
        block_config: Sequence[int] = (3, 6, 6, 4),
        embed_dim: int = 128,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        qk_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, depth=0, **kwargs)
        rates = iter(calculate_drop_path_rates(drop_path_rate, sum(block_config)))
        width, layers = embed_dim, []
        for group, count in enumerate(block_config):
            if group:
                layers.append(Transition(width))
                width //= 2
            for _ in range(count):
                options = {"proj_drop": proj_drop_rate, "attn_drop": attn_drop_rate, "drop_path": next(rates)}
                options |= {"num_heads": num_heads, "mlp_ratio": mlp_ratio, "norm_layer": nn.LayerNorm}
                layers.append(DenseBlock(width, growth_rate, **options))
                width += growth_rate
        self._grow(layers, width)
        if qk_scale is not None:
            self.scale_attention(qk_scale)

    def _grow(self, layers: list[nn.Module], width: int) -> None:
        like = self.cls_token
        self.blocks = nn.Sequential(*layers).to(like)
        self.num_features = self.head_hidden_size = self.embed_dim = width
        self.norm = type(self.norm)(width).to(like) if not isinstance(self.norm, nn.Identity) else self.norm
        self.fc_norm = type(self.fc_norm)(width).to(like) if not isinstance(self.fc_norm, nn.Identity) else self.fc_norm
        self.reset_classifier(self.num_classes)
        widths = [
            layer.linear.out_features
            if isinstance(layer, Transition)
            else layer.norm1.normalized_shape[0] + layer.dense_linear.out_features
            for layer in layers
        ]
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": channels, "reduction": self.patch_embed.reduction}
            for i, channels in enumerate(widths)
        ]
        self.init_weights(needs_reset=False)
