"""Quantizers: they fit themselves to the first data they are shown, then round everything to few values."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitalk.errors import UserError

SMALLEST_SCALE = 1e-8  # of constant channels, whose range is empty
AT_ONCE = 2**22  # values that candidates are tried on in one pass; more of them take several passes


@dataclass(frozen=True)
class Ranges:
    """The ranges that a uniform quantizer tries: at each percentile, shrunk to each share.

    percentiles: p near 1; the range is from the quantile 1 - p to p (symmetric: up to the quantile p of magnitudes).
    """

    percentiles: tuple[float, ...] = (1.0,)
    shares: tuple[float, ...] = (1.0,)


MINMAX = Ranges()
PERCENTILE = Ranges((0.9999,))
PERCENTILES = Ranges((0.999, 0.9999, 0.99999))  # arXiv 2212.08254, official code
SHRINK = Ranges(shares=tuple(1 - i / 20 for i in range(13)))
OMSE = Ranges(shares=tuple(1.2 * (100 - i) / 100 for i in range(100)))  # of least squared error: arXiv 1902.06822


@torch.library.custom_op("vitalk::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int) -> Tensor:
    """Rounds x to the values that integer codes in [low, high] stand for: (clamp(round(x / s) + z) - z) * s.

    scale, zero_point: scalars, or [channels] along ``axis`` of x. An operator of its own, so that the ONNX
    exporter sees one node and writes QuantizeLinear and DequantizeLinear for it. Gradients: straight through to x
    within the range, none outside; to the scale and the zero point as if they were learnt (arXiv 1902.08153).
    """
    return round_trip(x, _along(scale, x, axis), _along(zero_point, x, axis), low, high)


@quantize_dequantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int) -> Tensor:
    return torch.empty_like(x)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, *ctx.settings = inputs
    ctx.save_for_backward(x, scale, zero_point)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, zero_point = ctx.saved_tensors
    axis, low, high = ctx.settings
    s, z = _along(scale, x, axis), _along(zero_point, x, axis)
    steps = x / s
    codes = steps.round() + z
    inside = (codes >= low) & (codes <= high)
    to_x, to_scale, to_zero = grad * inside, None, None
    if ctx.needs_input_grad[1]:
        to_scale = _sum_to(grad * (codes.clamp(low, high) - z - steps * inside), scale, axis)
    if ctx.needs_input_grad[2]:
        to_zero = _sum_to(-grad * s * ~inside, zero_point, axis)
    return to_x, to_scale, to_zero, None, None, None


quantize_dequantize.register_autograd(_backward, setup_context=_keep_for_backward)


def _along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    if not parameter.dim():
        return parameter
    shape = [1] * x.dim()
    shape[axis] = -1
    return parameter.view(shape)


def _sum_to(values: Tensor, parameter: Tensor, axis: int) -> Tensor:
    return values.movedim(axis, 0).flatten(1).sum(1) if parameter.dim() else values.sum()


def round_trip(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """``quantize_dequantize`` for scales that broadcast against x."""
    return x.div(scale).round_().add_(zero_point).clamp_(low, high).sub_(zero_point).mul_(scale)


def extremes(rows: Tensor, percentiles: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """(lowest, highest), each [percentiles, rows]: the quantiles 1 - p and p of every row of rows [rows, count].

    p must be near 1: only the outermost values are sorted, which takes any count (torch.quantile stops at 16 M).
    """
    count = rows.shape[1]
    outermost = count - math.floor(min(percentiles) * (count - 1))
    top = rows.topk(outermost, dim=1).values
    bottom = rows.topk(outermost, dim=1, largest=False).values
    return tuple(torch.stack([_at(side, (1 - p) * (count - 1)) for p in percentiles]) for side in (bottom, top))


def _at(ordered: Tensor, rank: float) -> Tensor:
    below = min(math.floor(rank), ordered.shape[1] - 1)
    above = min(below + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], rank - math.floor(rank))


class Quantizer(nn.Module):
    """One tensor's quantizer.

    bits: the codes are 2**bits at most; it may be changed until the quantizer is fitted. enabled: off, it passes its
    input through. observing: the next input is what it fits itself to. State: ``scale`` and whatever else there is to
    know; empty until fitted.

    Raises UserError where it is used before it was fitted, and for bits outside 2 to 8.
    """

    scale: Tensor

    def __init__(self, bits: int):
        super().__init__()
        if bits not in range(2, 9):
            raise UserError(f"quantizers have 2 to 8 bits, got {bits}")
        self.bits, self.enabled, self.observing = bits, True, False
        self.register_buffer("scale", torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        """x, rounded to the quantizer's values; the same shape. Differentiable: rounding is passed straight through."""
        if not self.enabled:
            return x
        if self.observing:
            self.fit(x)
        if not self.fitted:
            raise UserError("a quantizer has seen no data yet; calibrate the model with some pictures first")
        return self.quantize(x)

    @property
    def fitted(self) -> bool:
        """Whether the quantizer knows its scale."""
        return self.scale.numel() > 0

    def learn(self, on: bool = True) -> None:
        """Make the fitted scale a parameter, or (``on`` False) fix it again."""
        scale = self.scale.detach()
        del self.scale
        if on:
            self.scale = nn.Parameter(scale.clone())
        else:
            self.register_buffer("scale", scale)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(saved, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


class UniformQuantizer(Quantizer):
    """Evenly spaced values (arXiv 2212.08254): code = clamp(round(x / scale) + zero_point).

    axis: one scale for each index along it; None for one scale in all. groups: so many equal runs of indices along
    ``axis`` share a scale each.
    symmetric: signed codes, no zero point; else codes from 0.
    covers_zero: widens the range to hold zero, which keeps the zero point itself a code, as runtimes demand.
    ranges: those it chooses from, by least squared error. By default the paper's percentiles; for symmetric ones
    shares of the largest magnitude (ours: with few values a row the percentiles never clip).
    """

    zero_point: Tensor

    def __init__(
        self,
        bits: int,
        axis: int | None = None,
        symmetric: bool = False,
        covers_zero: bool = True,
        ranges: Ranges | None = None,
        groups: int | None = None,
    ):
        super().__init__(bits)
        self.axis, self.symmetric, self.covers_zero, self.groups = axis, symmetric, covers_zero, groups
        self.ranges = ranges or (SHRINK if symmetric else PERCENTILES)
        self.register_buffer("zero_point", torch.empty(0))

    @property
    def low(self) -> int:
        """The least code."""
        return -(2 ** (self.bits - 1)) if self.symmetric else 0

    @property
    def high(self) -> int:
        """The largest code."""
        return self.low + 2**self.bits - 1

    def quantize(self, x: Tensor) -> Tensor:
        """x, rounded; the quantizer must be fitted."""
        axis = 0 if self.axis is None else self.axis
        return quantize_dequantize(x, self.scale, self.zero_point, axis, self.low, self.high)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Take the range, out of those it tries, whose rounding of x has the least squared error."""
        rows = self.rows(x)
        scales, zeros = self.candidates(rows)
        errors = torch.cat(
            [
                (round_trip(rows[None], s[..., None], z[..., None], self.low, self.high) - rows).square_().mean(-1)
                for s, z in zip(*(c.split(max(AT_ONCE // rows.numel(), 1)) for c in (scales, zeros)), strict=True)
            ]
        )
        best = errors.argmin(0)[None]
        self.take(x, scales.gather(0, best)[0], zeros.gather(0, best)[0])

    def take(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> None:
        """Be fitted to x with these, each [1] or one a channel or group."""
        if self.axis is None:
            scale, zero_point = scale.reshape(()), zero_point.reshape(())
        elif len(scale) != x.shape[self.axis]:
            scale, zero_point = (c.repeat_interleave(x.shape[self.axis] // len(c)) for c in (scale, zero_point))
        self.scale, self.zero_point, self.observing = scale, zero_point, False

    def trial(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """x rounded by each candidate, [candidates, *x.shape].

        scale, zero_point: [candidates, 1 or channels or groups].
        """
        if self.axis is None:
            s, z = (c.view(-1, *[1] * x.dim()) for c in (scale, zero_point))
        else:
            repeats = x.shape[self.axis] // scale.shape[1]
            across = [1] * x.dim()
            across[self.axis] = -1
            s, z = (c.repeat_interleave(repeats, 1).view(len(c), *across) for c in (scale, zero_point))
        return round_trip(x[None], s, z, self.low, self.high)

    def candidates(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and zero points to choose from, each [candidates, rows]. rows: [rows, count]."""
        shares = torch.tensor(self.ranges.shares, dtype=rows.dtype, device=rows.device)[:, None, None]
        if self.symmetric:
            largest = extremes(rows.abs(), self.ranges.percentiles)[1]
            scales = (shares * largest / self.high).flatten(0, 1).clamp_min(SMALLEST_SCALE)
            return scales, torch.zeros_like(scales)
        lowest, highest = extremes(rows, self.ranges.percentiles)
        if self.covers_zero:
            lowest, highest = lowest.clamp_max(0), highest.clamp_min(0)
        lowest, highest = ((shares * side).flatten(0, 1) for side in (lowest, highest))
        scales = ((highest - lowest) / self.high).clamp_min(SMALLEST_SCALE)
        return scales, (-lowest / scales).round()

    def rows(self, x: Tensor) -> Tensor:
        """x with what shares a scale in a row: [1 or channels or groups, count]."""
        if self.axis is None:
            return x.reshape(1, -1)
        rows = x.movedim(self.axis, 0)
        return rows.reshape(self.groups or len(rows), -1)
