"""Quantizers: they fit themselves to the first data they are shown, then round everything to few values."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vitalk.errors import UserError

PERCENTILES = (0.999, 0.9999, 0.99999)
SHRINK = tuple(1 - i / 20 for i in range(13))  # ranges tried for symmetric quantizers, as shares of the largest value
SMALLEST_SCALE = 1e-8  # of constant channels, whose range is empty
SMALLEST_SHARE = 1e-15  # keeps the logarithm of zero finite; far below the last code


@torch.library.custom_op("vitalk::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int) -> Tensor:
    """Rounds x to the values that integer codes in [low, high] stand for: (clamp(round(x / s) + z) - z) * s.

    scale, zero_point: scalars, or [channels] along ``axis`` of x. An operator of its own, so that the ONNX
    exporter sees one node and writes QuantizeLinear and DequantizeLinear for it.
    """
    if scale.dim():
        shape = [1] * x.dim()
        shape[axis] = -1
        scale, zero_point = scale.view(shape), zero_point.view(shape)
    return round_trip(x, scale, zero_point, low, high)


@quantize_dequantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int) -> Tensor:
    return torch.empty_like(x)


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

    bits: the codes are 2**bits at most. enabled: off, it passes its input through. observing: the next input is
    what it fits itself to. State: ``scale`` and, where there is one, ``zero_point``; empty until fitted.

    Raises UserError where it is used before it was fitted.
    """

    scale: Tensor

    def __init__(self, bits: int):
        super().__init__()
        self.bits, self.enabled, self.observing = bits, True, False
        self.register_buffer("scale", torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        """x, rounded to the quantizer's values; the same shape."""
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

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Take the scale, out of a few candidates, whose rounding of x has the least squared error."""
        rows = self._rows(x)
        best: Tensor | None = None
        chosen: list[Tensor] = []
        for candidate in self._candidates(rows):
            columns = [c[:, None] for c in candidate]
            error = (self._round(rows, *columns) - rows).square_().mean(1)
            if best is None:
                best, chosen = error, list(candidate)
                continue
            better = error < best
            best = torch.where(better, error, best)
            chosen = [torch.where(better, new, old) for new, old in zip(candidate, chosen, strict=True)]
        self._keep(*chosen)
        self.observing = False

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(saved, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


class UniformQuantizer(Quantizer):
    """Evenly spaced values (arXiv 2212.08254): code = clamp(round(x / scale) + zero_point).

    axis: one scale for each index along it; None for one scale in all.
    symmetric: signed codes, no zero point, the range searched among shares of the largest magnitude (ours: with
    few values a row the percentiles of the paper never clip). Otherwise codes from 0 and the paper's percentiles.
    covers_zero: widens the range to hold zero, which keeps the zero point itself a code, as runtimes demand.
    """

    zero_point: Tensor

    def __init__(self, bits: int, axis: int | None = None, symmetric: bool = False, covers_zero: bool = True):
        super().__init__(bits)
        self.axis, self.symmetric, self.covers_zero = axis, symmetric, covers_zero
        self.low, self.high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
        self.register_buffer("zero_point", torch.empty(0))

    def quantize(self, x: Tensor) -> Tensor:
        """x, rounded; the quantizer must be fitted."""
        axis = 0 if self.axis is None else self.axis
        return quantize_dequantize(x, self.scale, self.zero_point, axis, self.low, self.high)

    def _rows(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1) if self.axis is None else x.movedim(self.axis, 0).flatten(1).contiguous()

    def _candidates(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        if self.symmetric:
            largest = rows.abs().amax(1)
            scales = [(largest * share / self.high).clamp_min(SMALLEST_SCALE) for share in SHRINK]
            return [(scale, torch.zeros_like(scale)) for scale in scales]
        lowest, highest = extremes(rows, PERCENTILES)
        if self.covers_zero:
            lowest, highest = lowest.clamp_max(0), highest.clamp_min(0)
        scales = ((highest - lowest) / self.high).clamp_min(SMALLEST_SCALE)
        return list(zip(scales, (-lowest / scales).round(), strict=True))

    def _round(self, rows: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return round_trip(rows, scale, zero_point, self.low, self.high)

    def _keep(self, scale: Tensor, zero_point: Tensor) -> None:
        one = self.axis is None
        self.scale, self.zero_point = (scale[0], zero_point[0]) if one else (scale, zero_point)


class Log2Quantizer(Quantizer):
    """Powers of two below ``scale``, for attention probabilities; what lies below the last code becomes zero."""

    per_octave = 1

    def quantize(self, x: Tensor) -> Tensor:
        """x in [0, 1], rounded; the quantizer must be fitted."""
        return self._round(x, self.scale)

    def codes(self, x: Tensor, scale: Tensor) -> Tensor:
        """round(-per_octave * log2(x / scale)), 0 at the least, not bounded above; as floats."""
        share = (x / scale).clamp_min(SMALLEST_SHARE)
        return (-self.per_octave * share.log2()).round().clamp_min(0)

    def values(self, codes: Tensor) -> Tensor:
        """What the codes stand for, as shares of ``scale``."""
        return torch.exp2(-codes)

    def _round(self, x: Tensor, scale: Tensor) -> Tensor:
        codes = self.codes(x, scale)
        return torch.where(codes < 2**self.bits, self.values(codes) * scale, 0.0)

    def _rows(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1)

    def _candidates(self, rows: Tensor) -> list[tuple[Tensor]]:
        return [(scale.clamp_min(SMALLEST_SCALE),) for scale in extremes(rows, PERCENTILES)[1]]

    def _keep(self, scale: Tensor) -> None:
        self.scale = scale[0]


class LogSqrt2Quantizer(Log2Quantizer):
    """Powers of the square root of two (arXiv 2212.08254).

    Twice as fine as ``Log2Quantizer``. The values are computed in the paper's inference form, a shift by
    ceil(code / 2) and a factor that is 1 or sqrt(2); it equals 2 ** (-code / 2).
    """

    per_octave = 2

    def values(self, codes: Tensor) -> Tensor:
        """What the codes stand for, as shares of ``scale``."""
        odd = codes.remainder(2)
        return torch.exp2(-(codes / 2).ceil()) * (1 + (math.sqrt(2) - 1) * odd)
