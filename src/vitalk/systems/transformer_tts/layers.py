"""Layers of the Transformer that speaks: attention with caches, causal convolutions, pre-nets, scaled positions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.attention import attend
from vitalk.speech.acoustic.fft_block import ConvFeedForward, SinusoidalPositions, masked


@dataclass(frozen=True)
class Layers:
    """Sizes of a stack: layers, heads, channels between the two feed-forward convolutions, their kernels in frames."""

    depth: int = 6
    heads: int = 8
    hidden: int = 2048
    kernels: tuple[int, int] = (1, 1)
    dropout: float = 0.1


class ScaledPositions(nn.Module):
    """x + alpha * sinusoids, then dropout (arXiv 1809.08895, section 3.2): x [batch, time, dim], any length.

    first: number of the first position. scaled: alpha learns; it begins at 1.
    """

    def __init__(self, dim: int, first: int = 0, scaled: bool = True, dropout: float = 0.1):
        super().__init__()
        self.first, self.sinusoids, self.dropout = first, SinusoidalPositions(dim), nn.Dropout(dropout)
        self.alpha = nn.Parameter(torch.ones(1), requires_grad=scaled)

    def table(self, steps: int, like: Tensor) -> Tensor:
        """alpha * sinusoids of the first so many positions, [1, steps, dim], on the device of ``like`` [..., dim]."""
        zeros = like.new_zeros(1, self.first + steps, like.shape[-1])
        return self.alpha * self.sinusoids(zeros)[:, self.first :]

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.dropout(x + self.table(x.shape[1], x))


class Attention(nn.Module):
    """Multi-head attention of x [batch, time, dim] to keys and values that ``pair`` made of another sequence.

    concat: the projection sees the query beside what was found, [2 * dim] wide, and the other three have no bias, as
    in soobinseo/Transformer-TTS.
    """

    def __init__(self, dim: int, heads: int, concat: bool = False):
        super().__init__()
        if dim % heads:
            raise UserError(f"a width of {dim} cannot be split among {heads} heads; choose a multiple")
        self.heads, self.concat = heads, concat
        self.q, self.kv = nn.Linear(dim, dim, bias=not concat), nn.Linear(dim, 2 * dim, bias=not concat)
        self.proj = nn.Linear(2 * dim if concat else dim, dim)

    def pair(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """source [batch, time, dim] -> its keys and values, [batch, heads, time, dim / heads]."""
        keys, values = (self._split(x) for x in self.kv(source).chunk(2, -1))
        return keys, values

    def forward(
        self,
        x: Tensor,
        pair: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        causal: bool = False,
        maps: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The result [batch, time, dim] and, where ``maps`` asks, the weights [batch, heads, time, keys], else None.

        mask: bool, broadcast against the weights. causal: nobody sees what comes later; goes without mask and maps.
        """
        q, weights = self._split(self.q(x)), None
        if maps:
            scores = (q * q.shape[-1] ** -0.5) @ pair[0].mT
            weights = (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).float().softmax(-1)
            found = weights.to(pair[1].dtype) @ pair[1]
        else:
            found = _attend_back(q, *pair) if causal else attend(q, *pair, mask)
        found = found.transpose(1, 2).flatten(2)
        return self.proj(torch.cat([x, found], -1) if self.concat else found), weights

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _attend_back(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.device.type != "cpu":  # the fastest kernels take no mask, but know this one
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return attend(q, k, v, torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril())


class CausalFeedForward(nn.Module):
    """Two convolutions over this frame and those before, a ReLU between: x [batch, time, dim] -> the same shape."""

    def __init__(self, dim: int, hidden: int, kernels: tuple[int, int]):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(dim, hidden, kernels[0]), nn.Conv1d(hidden, dim, kernels[1])

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.conv1(F.pad(x.transpose(1, 2), (self.conv1.kernel_size[0] - 1, 0))).relu()
        return self.conv2(F.pad(x, (self.conv2.kernel_size[0] - 1, 0))).transpose(1, 2)

    def start(self, batch: int, like: Tensor) -> list[Tensor]:
        """What both convolutions see before the first frame, [batch, channels, kernel - 1] each."""
        return [like.new_zeros(batch, conv.in_channels, conv.kernel_size[0] - 1) for conv in (self.conv1, self.conv2)]

    def step(self, x: Tensor, past: list[Tensor]) -> Tensor:
        """One frame more, [batch, 1, dim] -> the same shape; ``past`` is moved on."""
        x = self._step(0, self.conv1, x.transpose(1, 2), past).relu()
        return self._step(1, self.conv2, x, past).transpose(1, 2)

    def _step(self, i: int, conv: nn.Conv1d, x: Tensor, past: list[Tensor]) -> Tensor:
        x = torch.cat([past[i], x], 2)
        past[i] = x[:, :, 1:]
        # As one product: convolutions bring their weights into another order at every call.
        return F.linear(x.flatten(1), conv.weight.flatten(1), conv.bias)[..., None]


class Residual(nn.Module):
    """A branch around which x goes, with a norm behind the sum, or before the branch where ``pre``."""

    def __init__(self, dim: int, dropout: float, pre: bool):
        super().__init__()
        self.norm, self.dropout, self.pre = nn.LayerNorm(dim), nn.Dropout(dropout), pre

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """branch: maps x to something of its shape."""
        if self.pre:
            return x + self.dropout(branch(self.norm(x)))
        return self.norm(x + self.dropout(branch(x)))


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each within a ``Residual``."""

    def __init__(self, dim: int, sizes: Layers, pre: bool = False, concat: bool = False):
        super().__init__()
        self.attn, self.ffn = Attention(dim, sizes.heads, concat), ConvFeedForward(dim, sizes.hidden, sizes.kernels)
        self.residuals = nn.ModuleList(Residual(dim, sizes.dropout, pre) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [batch, text, dim], mask [batch, text] -> [batch, text, dim], zero outside the mask."""
        keys = None if mask is None else mask[:, None, None]
        x = self.residuals[0](x, lambda h: self.attn(h, self.attn.pair(h), keys)[0])
        return masked(self.residuals[1](x, lambda h: self.ffn(masked(h, mask), mask)), mask)


@dataclass
class Cache:
    """What a decoder layer remembers while it speaks.

    own: keys and values of the frames so far, room for all of them, [batch, heads, steps, dim / heads] each.
    memory: those of the text. past: see ``CausalFeedForward.start``.
    """

    own: tuple[Tensor, Tensor]
    memory: tuple[Tensor, Tensor]
    past: list[Tensor]


class DecoderLayer(nn.Module):
    """Attention to the frames before, attention to the text, and a feed-forward part, each within a ``Residual``."""

    def __init__(self, dim: int, sizes: Layers, pre: bool = False, concat: bool = False):
        super().__init__()
        self.attn, self.cross = Attention(dim, sizes.heads, concat), Attention(dim, sizes.heads, concat)
        self.ffn = CausalFeedForward(dim, sizes.hidden, sizes.kernels)
        self.residuals = nn.ModuleList(Residual(dim, sizes.dropout, pre) for _ in range(3))

    def forward(
        self, x: Tensor, memory: Tensor, keys: Tensor | None = None, maps: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """All steps at once: x [batch, steps, dim], memory [batch, text, dim] -> the shape of x, and maps.

        keys: bool [batch, 1, 1, text]. maps: give the attention to the text, [batch, heads, steps, text].
        """
        back = lambda h: self.attn(h, self.attn.pair(h), causal=True)[0]  # noqa: E731
        return self._through(x, back, self.cross.pair(memory), keys, maps, self.ffn)

    def start(self, memory: Tensor, steps: int) -> Cache:
        """An empty cache for so many steps at most."""
        pair = self.cross.pair(memory)
        room = (len(memory), self.attn.heads, steps, pair[0].shape[-1])
        own = pair[0].new_empty(room), pair[0].new_empty(room)
        return Cache(own, pair, self.ffn.start(len(memory), memory))

    def step(self, x: Tensor, cache: Cache, time: int, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step more, the ``time``-th: x [batch, 1, dim] -> the same shape, and maps [batch, heads, 1, text]."""

        def back(h: Tensor) -> Tensor:
            for kept, new in zip(cache.own, self.attn.pair(h), strict=True):
                kept[:, :, time : time + 1] = new
            return self.attn(h, tuple(kept[:, :, : time + 1] for kept in cache.own))[0]

        return self._through(x, back, cache.memory, keys, True, partial(self.ffn.step, past=cache.past))

    def _through(
        self, x: Tensor, back: Callable[[Tensor], Tensor], memory: tuple[Tensor, Tensor], keys: Tensor | None,
        maps: bool, feed: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        found = None

        def look(h: Tensor) -> Tensor:
            nonlocal found
            h, found = self.cross(h, memory, keys, maps=maps)
            return h

        for residual, branch in zip(self.residuals, (back, look, feed), strict=True):
            x = residual(x, branch)
        return x, found


class EncoderPrenet(nn.Module):
    """Symbols ids [batch, text] -> [batch, text, dim]: embedding, three convolutions, and the re-centring linear layer.

    Batch norm learns from what is no padding alone. recentre: False puts a ReLU behind the linear layer, so that the
    output is no longer around zero, with the same parameters (ours, to measure what the paper claims of it).
    """

    def __init__(
        self, n_symbols: int, embedding: int, dim: int, dropout: float = 0.5, recentre: bool = True, kernel: int = 5
    ):
        super().__init__()
        self.symbols, widths = nn.Embedding(n_symbols, embedding), [embedding, dim, dim, dim]
        self.convs = nn.ModuleList(nn.Conv1d(a, b, kernel, padding=kernel // 2) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(dim) for _ in self.convs)
        self.dropout, self.linear, self.recentre = nn.Dropout(dropout), nn.Linear(dim, dim), recentre

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, text]: True where there is something."""
        x = masked(self.symbols(ids), mask)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = masked_norm(norm, conv(x.transpose(1, 2)).transpose(1, 2), mask).relu()
            x = masked(self.dropout(x), mask)
        x = self.linear(x)
        return masked(x if self.recentre else x.relu(), mask)


def masked_norm(norm: nn.BatchNorm1d, x: Tensor, mask: Tensor | None) -> Tensor:
    """Batch norm of x [batch, time, dim] over the steps within the mask [batch, time] while it learns."""
    if mask is None or not norm.training:
        return norm(x.transpose(1, 2)).transpose(1, 2)
    return torch.zeros_like(x).masked_scatter(mask[..., None], norm(x[mask]).to(x.dtype))


class DecoderPrenet(nn.Module):
    """Frames [batch, steps, mels] -> [batch, steps, dim]: layers with ReLU and dropout, and the re-centring linear one.

    widths: of the layers. recentre: see ``EncoderPrenet``.
    """

    def __init__(
        self, mels: int, widths: tuple[int, ...], dim: int, dropout: float = 0.5, recentre: bool = True
    ):  # fmt: skip
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((mels, *widths)))
        self.dropout, self.linear, self.recentre = nn.Dropout(dropout), nn.Linear(widths[-1], dim), recentre

    def forward(self, frames: Tensor, draw: torch.Generator | None = None) -> Tensor:
        """draw: what drops units here and now, the same of every item, whether training or not."""
        x = frames
        for layer in self.layers:
            x = layer(x).relu()
            x = self.dropout(x) if draw is None else x * self._kept(x, draw)
        x = self.linear(x)
        return x if self.recentre else x.relu()

    def _kept(self, x: Tensor, draw: torch.Generator) -> Tensor:
        p = self.dropout.p
        return (torch.rand(x.shape[-1], generator=draw, device=x.device) >= p).to(x.dtype) / (1 - p)
