"""Transformer blocks that know how far symbols are apart: learned keys and values of short distances.

Shaw et al., arXiv 1803.02155, as the text encoders of Glow-TTS (arXiv 2005.11129, appendix A), VITS (arXiv 2106.06103)
and PortaSpeech (arXiv 2109.15166, section 3.1) have them. No table of positions ends, so text of any length fits.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.attention import split_heads

from .fft_block import ConvFeedForward, Norm, masked


class RelativeAttention(nn.Module):
    """Multi-head self-attention with keys and values of distances up to ``window``, shared by the heads.

    score_ij = q_i (k_j + a_(j - i)) / sqrt(d), output_i = sum_j softmax(score)_ij (v_j + b_(j - i)); beyond the window
    a and b are zero. The products are multiplied out: the values of distances ask for the map, which no fused kernel
    gives. dropout: of the map.
    """

    def __init__(self, dim: int, heads: int = 2, window: int = 4, dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            raise UserError(f"a width of {dim} cannot be split among {heads} heads; choose a multiple")
        self.heads, self.window = heads, window
        self.qkv, self.proj, self.dropout = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Dropout(dropout)
        size = dim // heads
        self.keys, self.values = (nn.Parameter(torch.randn(2 * window + 1, size) * size**-0.5) for _ in range(2))
        for weight in self.qkv.weight.chunk(3):  # each projection for itself, as the releases do
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [batch, time, dim], mask [batch, time]: the keys that may be looked at -> the shape of x."""
        q, k, v = split_heads(self.qkv(x), self.heads)
        q = q * q.shape[-1] ** -0.5
        place = torch.arange(x.shape[1], device=x.device)
        distance = place[None] - place[:, None]  # [query, key]: j - i
        near = distance.abs() <= self.window
        column = (distance + self.window).clamp(0, 2 * self.window)
        known = (q @ self.keys.to(q.dtype).t()).gather(-1, column.expand(*q.shape[:2], -1, -1))
        scores = q @ k.transpose(-2, -1) + known.masked_fill(~near, 0.0)
        if mask is not None:  # a finite number, so that an item without a symbol stays finite
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        attn = self.dropout(scores.softmax(-1).to(v.dtype))
        x = attn @ v + self._around(attn) @ self.values.to(v.dtype)
        return self.proj(x.transpose(1, 2).flatten(2))

    def _around(self, attn: Tensor) -> Tensor:
        """The map [batch, heads, time, time] by distance: [batch, heads, time, 2 * window + 1]."""
        time = attn.shape[-1]
        place = torch.arange(time, device=attn.device)[:, None]
        key = place + torch.arange(-self.window, self.window + 1, device=attn.device)
        found = attn.gather(-1, key.clamp(0, time - 1).expand(*attn.shape[:2], -1, -1))
        return found.masked_fill((key < 0) | (key >= time), 0.0)


class RelativeBlock(nn.Module):
    """One block: relative attention and two convolutions, each added to what it was given.

    pre_norm: the norms stand before the two branches, else behind the sums. The other arguments are those of
    ``RelativeStack``.
    """

    def __init__(
        self, dim: int, heads: int, hidden: int, kernels: tuple[int, int], window: int, dropout: float, norm: Norm,
        pre_norm: bool, inner_dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.attn, self.norm1 = RelativeAttention(dim, heads, window, dropout), norm(dim)
        self.ffn, self.norm2 = ConvFeedForward(dim, hidden, kernels, inner_dropout), norm(dim)
        self.dropout, self.pre_norm = nn.Dropout(dropout), pre_norm

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [batch, time, dim], mask [batch, time] -> [batch, time, dim], zero outside the mask."""
        if self.pre_norm:
            x = x + self.dropout(self.attn(self.norm1(x), mask))
            return masked(x + self.dropout(self.ffn(masked(self.norm2(x), mask), mask)), mask)
        x = masked(self.norm1(x + self.dropout(self.attn(x, mask))), mask)
        return masked(self.norm2(x + self.dropout(self.ffn(x, mask))), mask)


class ConvPrenet(nn.Module):
    """x [batch, time, dim] and what [convolution, norm, ReLU, dropout] x layers add to it, at first nothing."""

    def __init__(
        self, dim: int, layers: int = 3, kernel: int = 5, dropout: float = 0.0, norm: Norm = nn.LayerNorm
    ):  # fmt: skip
        super().__init__()
        if kernel % 2 == 0:
            raise UserError(f"a kernel of {kernel} symbols has no centre; choose an odd one")
        widths = [dim] * (layers + 1)
        self.convs = nn.ModuleList(nn.Conv1d(a, b, kernel, padding=kernel // 2) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(norm(dim) for _ in range(layers))
        self.dropout, self.proj = nn.Dropout(dropout), nn.Linear(dim, dim)
        nn.init.zeros_(self.proj.weight), nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, time]: padding is zeroed before every convolution and last."""
        h = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = conv(masked(h, mask).transpose(1, 2)).transpose(1, 2)
            h = self.dropout(norm(h).relu())
        return masked(x + self.proj(h), mask)


class RelativeStack(nn.Module):
    """A pre-net and ``depth`` blocks: x [batch, time, dim] -> the same shape, any length.

    heads, window: of the attention. hidden, kernels: of the two convolutions. dropout: of both branches and of the
    map. norm: makes the normalisation for a width. pre_norm: see ``RelativeBlock``; one more norm then stands last.
    prenet: three convolutions first, as in Glow-TTS. inner_dropout: between the two convolutions, as in VITS.
    """

    def __init__(
        self,
        depth: int = 4,
        dim: int = 192,
        heads: int = 2,
        hidden: int = 768,
        kernels: tuple[int, int] = (5, 1),
        window: int = 4,
        dropout: float = 0.0,
        norm: Norm = nn.LayerNorm,
        pre_norm: bool = False,
        prenet: bool = True,
        inner_dropout: float = 0.0,
    ):
        super().__init__()
        self.prenet = ConvPrenet(dim, dropout=dropout, norm=norm) if prenet else None
        self.blocks = nn.ModuleList(
            RelativeBlock(dim, heads, hidden, kernels, window, dropout, norm, pre_norm, inner_dropout)
            for _ in range(depth)
        )
        self.norm = norm(dim) if pre_norm else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, time]: True where there is something; the output is zero elsewhere."""
        x = masked(x, mask) if self.prenet is None else self.prenet(x, mask)
        for block in self.blocks:
            x = block(x, mask)
        return x if self.norm is None else masked(self.norm(x), mask)
