"""Improved Conformer blocks (DelightfulTTS, arXiv 2110.12612): local context before attention, ReLU, conv feed-forward.

Everything here gives an utterance the same alone and in a padded batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import SelfAttention, SinusoidalPositions, masked

from .attention import RelativeAttention

SLOPE = 0.3  # of the leaky ReLU of the reimplementations
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "swish": nn.SiLU, "leaky": partial(nn.LeakyReLU, SLOPE),
}  # fmt: skip
ORDERS = {
    "conv": ("feed1", "conv1", "attn", "feed2"),
    "attention": ("feed1", "attn", "conv1", "feed2"),
    "voicesmith": ("feed1", "conv1", "attn", "conv2"),
    "voicesmith-slim": ("conv1", "attn", "conv2"),
}
CLOSED = ("conv", "attention")  # blocks that end with a norm, as in the Conformer (arXiv 2005.08100, eq. 1)
POSITIONS = ("relative", "absolute", "wrapped")


@dataclass(frozen=True)
class Blocks:
    """Sizes and design of a stack of blocks.

    kernel: frames of the depthwise convolution; feed_kernel: of the feed-forward's first; expansion: its width and,
    halved, the convolution module's, in widths of the model.
    order: "conv", the paper's, with the convolution before attention; "attention", that of the Conformer, for
    comparison; "voicesmith" and, without feed-forward, "voicesmith-slim", those of dunky11/voicesmith.
    activation: "relu" (paper), "swish" (Conformer) or "leaky" (voicesmith, whose gates are leaky as well).
    norm: of the convolution module, over "channels", or over "time" and channels together as in voicesmith.
    positions: "relative" (arXiv 1901.02860), "absolute", added before the first block, or "wrapped", see
    ``RelativeAttention``.
    """

    depth: int = 6
    heads: int = 8
    kernel: int = 7
    feed_kernel: int = 3
    expansion: int = 4
    dropout: float = 0.1
    order: Literal["conv", "attention", "voicesmith", "voicesmith-slim"] = "conv"
    activation: Literal["relu", "swish", "leaky"] = "relu"
    norm: Literal["channels", "time"] = "channels"
    positions: Literal["relative", "absolute", "wrapped"] = "relative"

    def __post_init__(self) -> None:
        chosen = {"order": ORDERS, "activation": ACTIVATIONS, "norm": NORMS, "positions": POSITIONS}
        for name, known in chosen.items():
            if getattr(self, name) not in known:
                raise UserError(f'there is no {name} "{getattr(self, name)}"; choose one of {", ".join(known)}')
        if self.kernel % 2 == 0 or self.feed_kernel % 2 == 0:
            raise UserError(f"kernels of {self.kernel} and {self.feed_kernel} frames have no centre; choose odd ones")


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of x [batch, channels, time]."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class TimeNorm(nn.Module):
    """Normalises x [batch, channels, time] over time, all channels together (GroupNorm of 1) or each (InstanceNorm).

    Statistics are those of the frames inside the mask [batch, time]. each: every channel for itself.
    """

    def __init__(self, channels: int, each: bool = False):
        super().__init__()
        self.groups = channels if each else 1
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        if mask is None:
            return F.group_norm(x, self.groups, self.weight, self.bias)
        inside = mask[:, None, None].float()
        grouped = x.float().unflatten(1, (self.groups, -1))
        count = (inside.sum(3, keepdim=True) * grouped.shape[2]).clamp(min=1)
        centred = (grouped - (grouped * inside).sum((2, 3), keepdim=True) / count) * inside
        variance = centred.square().sum((2, 3), keepdim=True) / count
        normal = (centred * (variance + 1e-5).rsqrt()).flatten(1, 2)
        return (normal * self.weight[:, None] + self.bias[:, None]).to(x.dtype)


NORMS: dict[str, Callable[[int], nn.Module]] = {"channels": ChannelNorm, "time": TimeNorm}


class FeedForward(nn.Module):
    """Half a feed-forward whose first layer is a convolution: x [batch, time, dim] -> what is added to it."""

    def __init__(self, dim: int, sizes: Blocks):
        super().__init__()
        hidden = dim * sizes.expansion
        self.norm, self.act = nn.LayerNorm(dim), ACTIVATIONS[sizes.activation]()
        self.conv1 = nn.Conv1d(dim, hidden, sizes.feed_kernel, padding=sizes.feed_kernel // 2)
        self.conv2, self.dropout = nn.Conv1d(hidden, dim, 1), nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, time]: True where there is something; the result is not masked."""
        x = masked(self.norm(x), mask).transpose(1, 2)
        x = self.conv2(self.dropout(self.act(self.conv1(x))))
        return 0.5 * self.dropout(x.transpose(1, 2))


class ConvModule(nn.Module):
    """Gated expansion, depthwise convolution and norm: x [batch, time, dim] -> what is added to it.

    The gate is a sigmoid, as in the Conformer, or the leaky ReLU of voicesmith.
    """

    def __init__(self, dim: int, sizes: Blocks):
        super().__init__()
        inner = dim * sizes.expansion // 2
        self.norm1, self.expand = nn.LayerNorm(dim), nn.Conv1d(dim, 2 * inner, 1)
        self.gate = ACTIVATIONS["leaky"]() if sizes.activation == "leaky" else nn.Sigmoid()
        self.depthwise = nn.Conv1d(inner, inner, sizes.kernel, padding=sizes.kernel // 2, groups=inner)
        self.norm2, self.act = NORMS[sizes.norm](inner), ACTIVATIONS[sizes.activation]()
        self.reduce, self.dropout = nn.Conv1d(inner, dim, 1), nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, time]: True where there is something; the result is not masked."""
        value, gate = self.expand(self.norm1(x).transpose(1, 2)).chunk(2, 1)
        x = value * self.gate(gate)
        x = self.depthwise(x if mask is None else x.masked_fill(~mask[:, None], 0.0))
        return self.dropout(self.reduce(self.act(self.norm2(x, mask))).transpose(1, 2))


class AttentionModule(nn.Module):
    """Self-attention behind a norm: x [batch, time, dim] -> what is added to it."""

    def __init__(self, dim: int, sizes: Blocks):
        super().__init__()
        absolute = sizes.positions == "absolute"
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(sizes.dropout)
        self.attn = (
            SelfAttention(dim, sizes.heads)
            if absolute
            else RelativeAttention(dim, sizes.heads, wrapped=sizes.positions == "wrapped")
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, time]: the keys that may be looked at."""
        return self.dropout(self.attn(self.norm(x), mask))


class GatedCondition(nn.Module):
    """Tells every frame the speaker, and the language, by a gate: x [batch, time, dim] -> the same shape.

    (conv a + softsign(W condition)) * sigmoid(conv b) + x, times sqrt(1/2), as in dunky11/voicesmith.
    """

    def __init__(self, dim: int, width: int, kernel: int):
        super().__init__()
        self.pointwise = nn.Conv1d(dim, 2 * dim, 1)
        self.depthwise = nn.Conv1d(2 * dim, 2 * dim, kernel, padding=kernel // 2, groups=2 * dim)
        self.proj = nn.Linear(width, dim)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """condition [batch, width]; mask [batch, time]."""
        y = self.pointwise(x.transpose(1, 2))
        y = self.depthwise(y if mask is None else y.masked_fill(~mask[:, None], 0.0)).transpose(1, 2)
        a, b = y.chunk(2, -1)
        return (x + (a + F.softsign(self.proj(condition))[:, None]) * b.sigmoid()) * 0.5**0.5


KINDS: dict[str, Callable[[int, Blocks], nn.Module]] = {
    "feed": FeedForward, "conv": ConvModule, "attn": AttentionModule,
}  # fmt: skip


class ConformerBlock(nn.Module):
    """One block: x [batch, time, dim] -> the same shape, zero outside the mask.

    condition: width of the vector that ``GatedCondition`` hears first, 0 for none.
    """

    def __init__(self, dim: int = 384, sizes: Blocks = Blocks(), condition: int = 0):
        super().__init__()
        self.condition = GatedCondition(dim, condition, sizes.kernel) if condition else None
        self.parts = nn.ModuleDict({name: KINDS[name.rstrip("12")](dim, sizes) for name in ORDERS[sizes.order]})
        self.norm = nn.LayerNorm(dim) if sizes.order in CLOSED else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """mask [batch, time]: True where there is something. condition [batch, width]."""
        if self.condition is not None:
            x = masked(self.condition(x, condition, mask), mask)
        for part in self.parts.values():
            x = masked(x + part(x, mask), mask)
        return masked(self.norm(x), mask)


class Conformer(nn.Module):
    """``sizes.depth`` blocks: x [batch, time, dim] -> the same shape, any length. Arguments: see ``ConformerBlock``."""

    def __init__(self, dim: int = 384, sizes: Blocks = Blocks(), condition: int = 0):
        super().__init__()
        self.positions = SinusoidalPositions(dim) if sizes.positions == "absolute" else nn.Identity()
        self.blocks = nn.ModuleList(ConformerBlock(dim, sizes, condition) for _ in range(sizes.depth))

    def states(self, x: Tensor, mask: Tensor | None = None, condition: Tensor | None = None) -> list[Tensor]:
        """What every block gives, the last one's last."""
        x, found = masked(self.positions(x), mask), []
        for block in self.blocks:
            x = block(x, mask, condition)
            found.append(x)
        return found

    def forward(self, x: Tensor, mask: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """mask [batch, time]: True where there is something. condition [batch, width]."""
        return self.states(x, mask, condition)[-1]
