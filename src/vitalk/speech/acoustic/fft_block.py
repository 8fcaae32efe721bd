"""Feed-forward Transformer blocks (FastSpeech, arXiv 1905.09263, section 3.1): self-attention and a convolution."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.attention import attend, split_heads

Norm = Callable[[int], nn.Module]


def length_mask(lengths: Tensor, steps: int) -> Tensor:
    """lengths [batch] -> bool [batch, steps], True within the length."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def symbol_mask(ids: Tensor, lengths: Tensor | None) -> Tensor | None:
    """The mask of symbols ids [batch, text] whose lengths are [batch]; None where nothing is padding.

    Raises UserError for empty text and other shapes.
    """
    if ids.ndim != 2 or not ids.shape[1]:
        raise UserError(f"text of shape {list(ids.shape)} cannot be spoken; give one symbol or more, [batch, text]")
    return None if lengths is None else length_mask(lengths, ids.shape[1])


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """x [batch, time, dim] with zeros where the mask [batch, time] is False; without a mask as it is."""
    return x if mask is None else x.masked_fill(~mask[..., None], 0.0)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where the mask, which broadcasts against it, is True; what padding holds, NaN too, has no say."""
    mask = mask.expand_as(x)
    return x.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def fitting(name: str, given: Tensor, x: Tensor) -> Tensor:
    """``given``, which must be [batch, time] for x [batch, time, ...]. Raises UserError naming it where it is not."""
    if given.shape != x.shape[:2]:
        raise UserError(f"{name} of shape {list(given.shape)} does not fit {list(x.shape[:2])} (batch, time)")
    return given


class SinusoidalPositions(nn.Module):
    """Adds the Transformer's sinusoids (arXiv 1706.03762, section 3.5) to x [batch, time, dim], whatever its length.

    They are computed as they are needed: no table limits the length, and an exported graph takes any.
    """

    def __init__(self, dim: int, base: float = 10_000.0):
        super().__init__()
        column = torch.arange(dim, dtype=torch.float64)
        turn = base ** (-2 * torch.div(column, 2, rounding_mode="floor") / dim)
        self.register_buffer("turn", turn.float(), persistent=False)
        self.register_buffer("even", column % 2 == 0, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, time, dim] -> the same shape."""
        angle = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)[:, None] * self.turn
        return x + torch.where(self.even, angle.sin(), angle.cos()).to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with the fused kernel: x [batch, time, dim] -> the same shape."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise UserError(f"a width of {dim} cannot be split among {heads} heads; choose a multiple")
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, time]: the keys that may be looked at."""
        keys = None if mask is None else mask[:, None, None]
        x = attend(*split_heads(self.qkv(x), self.heads), keys)
        return self.proj(x.transpose(1, 2).flatten(2))


class ConvFeedForward(nn.Module):
    """Two convolutions over time with a ReLU between: x [batch, time, dim] -> the same shape.

    What the first spills into the padding is removed where the second would read it. dropout: between the two.
    """

    def __init__(self, dim: int, hidden: int, kernels: tuple[int, int], dropout: float = 0.0):
        super().__init__()
        if any(kernel % 2 == 0 for kernel in kernels):
            raise UserError(f"kernels of {kernels[0]} and {kernels[1]} frames have no centre; choose odd ones")
        self.conv1 = nn.Conv1d(dim, hidden, kernels[0], padding=kernels[0] // 2)
        self.conv2 = nn.Conv1d(hidden, dim, kernels[1], padding=kernels[1] // 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, time]; x is expected to be zero outside."""
        x = self.dropout(self.conv1(x.transpose(1, 2)).relu())
        if mask is not None and self.conv2.kernel_size[0] > 1:
            x = x.masked_fill(~mask[:, None], 0.0)
        return self.conv2(x).transpose(1, 2)


class FFTBlock(nn.Module):
    """One feed-forward Transformer block, normalised after each residual sum.

    dim, heads: of the attention. hidden, kernels: of the two convolutions, kernels in frames. dropout: on both
    branches. norm: makes the normalisation for a width; a conditional one takes the condition as second argument
    (AdaSpeech, arXiv 2103.00993, section 2.2).
    """

    def __init__(
        self,
        dim: int = 256,
        heads: int = 2,
        hidden: int = 1024,
        kernels: tuple[int, int] = (9, 1),
        dropout: float = 0.1,
        norm: Norm = nn.LayerNorm,
    ):
        super().__init__()
        self.attn, self.norm1 = SelfAttention(dim, heads), norm(dim)
        self.ffn, self.norm2 = ConvFeedForward(dim, hidden, kernels), norm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """x [batch, time, dim], mask [batch, time] -> [batch, time, dim], zero outside the mask.

        condition: handed to the norms, whatever they take.
        """
        extra = () if condition is None else (condition,)
        x = masked(self.norm1(x + self.dropout(self.attn(x, mask)), *extra), mask)
        return masked(self.norm2(x + self.dropout(self.ffn(x, mask)), *extra), mask)


class FFTStack(nn.Module):
    """Positions and ``depth`` blocks: x [batch, time, dim] -> the same shape, any length.

    final_norm: one more norm at the end. The other arguments are those of ``FFTBlock``.
    """

    def __init__(
        self,
        depth: int = 4,
        dim: int = 256,
        heads: int = 2,
        hidden: int = 1024,
        kernels: tuple[int, int] = (9, 1),
        dropout: float = 0.1,
        norm: Norm = nn.LayerNorm,
        final_norm: bool = False,
    ):
        super().__init__()
        self.positions = SinusoidalPositions(dim)
        self.blocks = nn.ModuleList(FFTBlock(dim, heads, hidden, kernels, dropout, norm) for _ in range(depth))
        self.norm = norm(dim) if final_norm else None

    def forward(self, x: Tensor, mask: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """mask [batch, time]: True where there is something. condition: for the norms, as in ``FFTBlock``."""
        x = masked(self.positions(x), mask)
        for block in self.blocks:
            x = block(x, mask, condition)
        if self.norm is None:
            return x
        return masked(self.norm(x) if condition is None else self.norm(x, condition), mask)
