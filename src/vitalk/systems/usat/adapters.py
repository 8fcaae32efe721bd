"""Adapters: small layers beside frozen ones, which are nothing until they learn (arXiv 2404.18094, fine-grained)."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vitalk.errors import UserError

from .duration import kept
from .model import Usat

PLACEMENTS = ("h-res", "h-seq", "x-res", "x-seq")
KERNELS = {"conv": 5, "linear": 1}  # frames; five as the WaveNets have (unconfirmed)


@dataclass(frozen=True)
class Adapters:
    """Which adapters a voice has: see ``insert``.

    placement: "h-res" (the paper's best), "h-seq", "x-res" or "x-seq". kind: of those in flows, "conv" or "linear".
    reduction: of the width within. phonemes: linear ones in the text's self-attention too.
    Raises UserError for others.
    """

    placement: str = "h-res"
    kind: Literal["conv", "linear"] = "conv"
    reduction: int = 8
    phonemes: bool = True

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS or self.kind not in KERNELS or self.reduction < 1:
            raise UserError(
                f"adapters {self.placement}, {self.kind}, reduced by {self.reduction}: choose one of "
                f"{', '.join(PLACEMENTS)}; conv or linear; and 1 or more"
            )


class Adapter(nn.Module):
    """Norm, to 1 / reduction of the width, ReLU, to ``out`` channels: [batch, channels, time] -> [batch, out, time].

    The last layer begins with zeros. One channel alone has no norm, of which nothing would be left.
    """

    def __init__(self, channels: int, out: int, reduction: int, kernel: int):
        super().__init__()
        width = max(channels // reduction, 1)
        self.norm = nn.LayerNorm(channels) if channels > 1 else nn.Identity()
        self.down = nn.Conv1d(channels, width, kernel, padding=kernel // 2)
        self.up = nn.Conv1d(width, out, kernel, padding=kernel // 2)
        nn.init.zeros_(self.up.weight), nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, time]: padding is zeroed before both convolutions and last."""
        h = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return kept(self.up(kept(self.down(kept(h, mask)).relu(), mask)), mask)


class Within(nn.Module):
    """H: an adapter of the hidden sequence within a coupling, beside its stack ("res") or behind it ("seq")."""

    def __init__(self, inner: nn.Module, adapter: Adapter, sequential: bool):
        super().__init__()
        self.inner, self.adapter, self.sequential = inner, adapter, sequential

    def forward(self, x: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """As the stack: [batch, channels, time] -> the same shape."""
        y = self.inner(x, condition, mask)
        return y + self.adapter(y if self.sequential else x, mask)


class Beside(nn.Module):
    """X: an adapter of what flows. "res" adds to the half that the coupling moves what it makes of the other;

    "seq" is a coupling of its own behind it, which moves the half that the coupling left. Either can be undone, and
    neither has a determinant.
    """

    def __init__(self, coupling: nn.Module, adapter: Adapter, sequential: bool):
        super().__init__()
        self.coupling, self.adapter, self.sequential = coupling, adapter, sequential

    def forward(
        self, x: Tensor, condition: Tensor | None, mask: Tensor | None = None, inverse: bool = False
    ) -> tuple[Tensor, Tensor] | Tensor:
        """As the coupling."""
        if inverse:
            return self.coupling(self._moved(x, mask, -1), condition, mask, inverse=True)
        y = self.coupling(x, condition, mask)
        return (self._moved(y[0], mask, 1), y[1]) if isinstance(y, tuple) else self._moved(y, mask, 1)

    def _moved(self, x: Tensor, mask: Tensor | None, sign: int) -> Tensor:
        still, moved = x.chunk(2, 1)
        if self.sequential:
            return torch.cat([still + sign * self.adapter(moved, mask), moved], 1)
        return torch.cat([still, moved + sign * self.adapter(still, mask)], 1)


class Attending(nn.Module):
    """Self-attention with an adapter beside it: x [batch, time, dim] -> the same shape."""

    def __init__(self, inner: nn.Module, adapter: Adapter):
        super().__init__()
        self.inner, self.adapter = inner, adapter

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, time]: the keys that may be looked at."""
        return self.inner(x, mask) + self.adapter(x.transpose(1, 2), mask).transpose(1, 2)


def insert(net: Usat, kinds: Adapters) -> Usat:
    """Put adapters into a network, which says the same bits until they learn; returns it.

    They stand in every coupling of the timbre flow and of the duration predictor's flows. Where exactly is ours, as
    equations were not to be had (unconfirmed): see ``Within`` and ``Beside``.
    """
    sequential, kernel = kinds.placement.endswith("seq"), KERNELS[kinds.kind]
    for flow in (net.flow, net.duration.flow, net.duration.post):
        for i, step in enumerate(flow.steps):
            if kinds.placement.startswith("h"):
                wide = step.start.out_channels
                step.stack = Within(step.stack, Adapter(wide, wide, kinds.reduction, kernel), sequential)
            else:
                half = step.start.in_channels
                flow.steps[i] = Beside(step, Adapter(half, half, kinds.reduction, kernel), sequential)
    for block in net.text.blocks if kinds.phonemes else ():
        wide = block.attn.proj.out_features
        block.attn = Attending(block.attn, Adapter(wide, wide, kinds.reduction, 1))
    return net


def adapter_weights(net: Usat) -> dict[str, nn.Parameter]:
    """The weights of all adapters in a network, by name."""
    inside = [name for name, module in net.named_modules() if isinstance(module, Adapter)]
    return {f"{name}.{key}": weight for name in inside for key, weight in net.get_submodule(name).named_parameters()}


def sharing(net: Usat) -> Usat:
    """A copy whose weights are those of ``net`` themselves, so that adapters can be put in at no cost."""
    shared: Iterable[Tensor] = (*net.parameters(), *net.buffers())
    return deepcopy(net, {id(tensor): tensor for tensor in shared})
