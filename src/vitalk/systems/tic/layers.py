"""The layers: MSA-Conv with its projections, the official layer with its tail, and what the network stacks."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, Mlp, to_2tuple
from torch import Tensor, nn

from vitalk.errors import UserError

from .operator import msa_conv
from .window import Padding, Window

DIRECTIONS = ((1, 1), (-1, -1), (1, -1), (-1, 1))  # rows and columns; the four diagonals are ours


class MSAConv(nn.Module):
    """Attention of every position to the window around it (arXiv 2310.04134): steps one to four of the official layer.

    A 1 x 1 convolution gives queries, keys and values; nothing is added to the result and nothing projects it.
    kernel_size, dilation, padding: see ``Window``. num_heads: 1 as in the official code, in whose place the paper has
    several; ``dim`` is the depth-wise form. attn_drop: dropout of the attention weights.

    The paper's two devices are described without numbers, so that their detail is ours:
    shift: multi-directional cyclic shift. The heads, in up to four groups, see the map rolled diagonally by so many
    rows and columns, each group in a direction of its own, so that windows at a border reach the opposite side. The
    first group goes in the direction numbered ``direction``. 0 is none.
    pool: inter-pooling. Queries, keys and values also attend at half the resolution, averages of 2 x 2, and the
    result, enlarged again, is added. It has no parameters and costs a quarter.
    Raises UserError where num_heads does not divide dim, and as ``Window`` does.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int | tuple[int, int] = 3,
        dilation: int | tuple[int, int] = 1,
        num_heads: int = 1,
        padding: Padding = "zeros",
        attn_drop: float = 0.0,
        shift: int = 0,
        direction: int = 0,
        pool: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise UserError(f"{dim} channels do not divide into {num_heads} heads; change one of them")
        self.window = Window(kernel_size, dilation, padding)
        self.num_heads, self.attn_drop, self.shift, self.pool = num_heads, attn_drop, shift, pool
        groups = min(len(DIRECTIONS), num_heads)
        self.groups = [dim // num_heads * len(range(i, num_heads, groups)) for i in range(groups)]  # channels of each
        self.directions = [DIRECTIONS[(direction + i) % len(DIRECTIONS)] for i in range(groups)]
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, device=device, dtype=dtype)

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.window}, num_heads={self.num_heads}, shift={self.shift}, pool={self.pool}"

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, dim, height, width] of any size -> the same shape."""
        qkv = self.qkv(x).chunk(3, 1)
        out = self._attend(*qkv)
        if self.pool:
            # A border of odd length makes a window of its own, the mean of what it holds.
            halves = [F.avg_pool2d(part, 2, ceil_mode=True, count_include_pad=False) for part in qkv]
            out = out + F.interpolate(self._attend(*halves), size=x.shape[-2:], mode="nearest")
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.shift:
            q, k, v = (self._rolled(part, self.shift) for part in (q, k, v))
        out = msa_conv(q, k, v, self.window, self.num_heads, dropout=self.attn_drop if self.training else 0.0)
        return self._rolled(out, -self.shift) if self.shift else out

    def _rolled(self, x: Tensor, steps: int) -> Tensor:
        parts = zip(x.split(self.groups, 1), self.directions, strict=True)
        return torch.cat([part.roll((steps * row, steps * column), (2, 3)) for part, (row, column) in parts], 1)


class MSAConvLayer(nn.Module):
    """The official layer (arXiv 2310.04134): MSA-Conv, a residual, a convolution of the same kernel and a ReLU.

    dim, out_dim: channels before and after. stride, bias: of the tail convolution, which is never dilated.
    tail_padding: kernel_size // 2 where None, which keeps the size of the map at stride 1; the official code always
    pads by 1, whatever the kernel. Further arguments are those of ``MSAConv``; attn_drop 0.1 is the official one.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        tail_padding: int | tuple[int, int] | None = None,
        bias: bool = False,
        attn_drop: float = 0.1,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.attn = MSAConv(dim, kernel_size, attn_drop=attn_drop, **kwargs, **dd)
        kernel = self.attn.window.kernel
        padding = tuple(k // 2 for k in kernel) if tail_padding is None else to_2tuple(tail_padding)
        self.tail = nn.Conv2d(dim, out_dim, kernel, stride, padding, bias=bias, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, dim, height, width] -> [batch, out_dim, rows, columns], at stride s and padding p
        (height + 2 p - kernel) // s + 1 rows.

        Raises UserError for a map that the padded tail has no room on.
        """
        (rows, columns), (down, across) = self.tail.kernel_size, self.tail.padding
        if x.shape[2] + 2 * down < rows or x.shape[3] + 2 * across < columns:
            raise UserError(
                f"a map of {x.shape[2]} x {x.shape[3]} padded by {down} x {across} is smaller than the kernel of"
                f" {rows} x {columns}; leave out tail_padding"
            )
        return F.relu(self.tail(self.attn(x) + x))


class Bottleneck(nn.Sequential):
    """A convolution in the place of MSA-Conv and its projection, for the ablation; ours.

    Of the same kernel and dilation, and so narrow between its two 1 x 1 convolutions that it has as many parameters,
    but for the rounding. [batch, dim, height, width] -> the same shape.
    """

    def __init__(self, dim: int, window: Window, **dd: Any) -> None:
        taps = window.kernel[0] * window.kernel[1]
        # taps m² + 2 dim m = 4 dim², where the right side is what the projections of attention hold.
        width = max(1, round(dim * ((1 + 4 * taps) ** 0.5 - 1) / taps))
        super().__init__(
            nn.Conv2d(dim, width, 1, **dd),
            nn.Conv2d(width, width, window.kernel, padding=window.reach, dilation=window.dilation, **dd),
            nn.GELU(),
            nn.Conv2d(width, dim, 1, **dd),
        )


class Block(nn.Module):
    """Norm, mixer, residual; norm, MLP, residual; all on maps. The order is that of a transformer; ours.

    mixer: [batch, dim, height, width] -> the same shape.
    """

    def __init__(
        self, dim: int, mixer: nn.Module, mlp_ratio: float = 4.0, drop: float = 0.0, drop_path: float = 0.0, **dd: Any
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(dim, **dd)
        self.mixer = mixer
        self.norm2 = LayerNorm2d(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop, use_conv=True, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, dim, height, width] -> the same shape."""
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))
