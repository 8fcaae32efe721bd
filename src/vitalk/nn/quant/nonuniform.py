"""Quantizers whose values are not evenly spaced: logarithms, the tangent, two ranges. For softmax and GELU.

Each has a table of values and gives every number a code. Candidates for what shapes the table are judged all at once
on one sorted copy of the data (``Spectrum``). Runtimes have no operators for any of them: an exported graph computes
them as float operators, and ``describe.arithmetic`` calls them simulated.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from .quantizers import PERCENTILES, SMALLEST_SCALE, Quantizer, extremes
from .spectrum import Spectrum

SMALLEST_SHARE = 1e-15  # keeps the logarithm of zero finite; far below the last code
LEAST_GELU = 0.16997124254703522  # -min GELU
SAMPLE = 2**20  # values that a table is fitted to at most


class TableQuantizer(Quantizer, ABC):
    """A quantizer with a table: ``values``, and ``codes`` that say which of them stands for a number.

    shape: the buffers beside the scale that the table depends on, scalars.
    """

    shape: ClassVar[tuple[str, ...]] = ()

    def __init__(self, bits: int):
        super().__init__(bits)
        for name in self.shape:
            self.register_buffer(name, torch.empty(0))

    @abstractmethod
    def candidates(self, x: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Groups of (scale, *shape) to choose from, each [candidates]. x: [values]."""

    @abstractmethod
    def codes(self, x: Tensor, scale: Tensor, *shape: Tensor) -> Tensor:
        """Which value stands for each x: whole numbers from 0, as floats; (scale, *shape) broadcast against x."""

    @abstractmethod
    def values(self, scale: Tensor, *shape: Tensor) -> Tensor:
        """What the codes stand for, [..., codes], for (scale, *shape), each [...]."""

    @abstractmethod
    def edges(self, scale: Tensor, *shape: Tensor) -> Tensor:
        """The numbers at which the value changes, [..., codes - 1], in the order of ``values``."""

    @property
    def known(self) -> tuple[Tensor, ...]:
        """(scale, *shape), as fitted."""
        return self.scale, *(getattr(self, name) for name in self.shape)

    def quantize(self, x: Tensor) -> Tensor:
        """x, rounded; the quantizer must be fitted. The gradient to x is passed straight through."""
        rounded = self.decode(self.codes(x, *self.known))
        if not (torch.is_grad_enabled() and x.requires_grad):
            return rounded
        return rounded + (x - x.detach())

    def decode(self, codes: Tensor) -> Tensor:
        """What ``codes`` stand for; the same shape."""
        return self.values(*self.known)[codes.detach().long()]

    def trial(self, x: Tensor, *known: Tensor) -> Tensor:
        """x rounded by each candidate: (scale, *shape), each [candidates] -> [candidates, *x.shape]."""
        codes = self.codes(x[None], *(one.view(-1, *[1] * x.dim()) for one in known))
        return self.values(*known).gather(1, codes.flatten(1).long()).view(codes.shape)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Take the table, out of the candidates, whose rounding of x has the least squared error.

        Of more than a million values evenly spaced ones are looked at.
        """
        flat = x.reshape(-1)
        flat = flat[:: -(-len(flat) // SAMPLE)]
        spectrum, best = Spectrum(flat), math.inf
        for found in self.candidates(flat):
            values, edges = self.values(*found), self.edges(*found)
            if bool(edges[0, 0] > edges[0, -1]):
                values, edges = values.flip(1), edges.flip(1)
            errors = spectrum.errors(values, edges)
            index = int(errors.argmin())
            if float(errors[index]) < best:
                best = float(errors[index])
                self.take(x, *(one[index] for one in found))

    def take(self, x: Tensor, scale: Tensor, *shape: Tensor) -> None:
        """Be fitted to x with these scalars, in the order of ``shape``."""
        self.scale = scale.reshape(())
        for name, value in zip(self.shape, shape, strict=True):
            setattr(self, name, value.reshape(()))
        self.observing = False


def _count(like: Tensor, stop: int) -> Tensor:
    return torch.arange(stop, device=like.device, dtype=like.dtype)


class Log2Quantizer(TableQuantizer):
    """Powers of two below ``scale``, for attention probabilities; what lies below the last code becomes zero.

    2**bits codes and one more for that zero, the official code's count (arXiv 2212.08254).
    """

    per_octave = 1

    def candidates(self, x: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The highest value, at the percentiles of the paper."""
        yield (extremes(x[None], PERCENTILES.percentiles)[1][:, 0].clamp_min(SMALLEST_SCALE),)

    def codes(self, x: Tensor, scale: Tensor, *shape: Tensor) -> Tensor:
        """round(-per_octave * log2(x / scale)), the last code for all that would be beyond."""
        share = (x / scale).clamp_min(SMALLEST_SHARE)
        return (-self.per_octave * share.log2()).round().clamp(0, 2**self.bits)

    def values(self, scale: Tensor, *shape: Tensor) -> Tensor:
        """Falling powers, then zero."""
        codes = _count(scale, 2**self.bits + 1)
        return scale[..., None] * torch.where(codes < 2**self.bits, self.shares(codes), 0.0)

    def edges(self, scale: Tensor, *shape: Tensor) -> Tensor:
        """Half-way between the exponents."""
        return scale[..., None] * torch.exp2(-(_count(scale, 2**self.bits) + 0.5) / self.per_octave)

    def decode(self, codes: Tensor) -> Tensor:
        """What ``codes`` stand for, computed, which is faster than looking it up."""
        return torch.where(codes < 2**self.bits, self.shares(codes) * self.scale, 0.0)

    def shares(self, codes: Tensor) -> Tensor:
        """The powers that codes stand for, as shares of ``scale``."""
        return torch.exp2(-codes)


class LogSqrt2Quantizer(Log2Quantizer):
    """Powers of the square root of two (arXiv 2212.08254).

    Twice as fine as ``Log2Quantizer``. The values are computed in the paper's inference form, a shift by
    ceil(code / 2) and a factor that is 1 or sqrt(2); it equals 2 ** (-code / 2).
    """

    per_octave = 2

    def shares(self, codes: Tensor) -> Tensor:
        """The powers that codes stand for, as shares of ``scale``."""
        odd = codes.remainder(2)
        return torch.exp2(-(codes / 2).ceil()) * (1 + (math.sqrt(2) - 1) * odd)


class ShiftLog2Quantizer(TableQuantizer):
    """Shift-uniform-log2 (arXiv 2311.10126): the logarithm of x + eta, quantized evenly between its extremes.

    Values are 2**k - eta with whole k, so that a product is a bit shift and one sum over columns. 2**bits codes, some
    of which share a value (the official code has one code more).
    """

    shape = ("least", "eta")  # log2 of the smallest value, and the shift
    etas = (0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5, 1.0)

    def candidates(self, x: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The paper's shifts."""
        eta = torch.tensor(self.etas, dtype=x.dtype, device=x.device)
        least, most = (x.min().clamp_min(0) + eta).log2(), (x.max().clamp_min(0) + eta).log2()
        yield ((most - least) / (2**self.bits - 1)).clamp_min(SMALLEST_SCALE), least, eta

    def codes(self, x: Tensor, scale: Tensor, *shape: Tensor) -> Tensor:
        """round((log2(x + eta) - least) / scale)."""
        least, eta = shape
        return (((x.clamp_min(0) + eta).log2() - least) / scale).round().clamp(0, 2**self.bits - 1)

    def values(self, scale: Tensor, *shape: Tensor) -> Tensor:
        """Rising powers of two, less eta."""
        least, eta = shape
        steps = _count(scale, 2**self.bits)
        return torch.exp2((steps * scale[..., None] + least[..., None]).round()) - eta[..., None]

    def edges(self, scale: Tensor, *shape: Tensor) -> Tensor:
        """Half-way between the codes' exponents."""
        least, eta = shape
        steps = _count(scale, 2**self.bits - 1) + 0.5
        return torch.exp2(steps * scale[..., None] + least[..., None]) - eta[..., None]


class TanQuantizer(TableQuantizer):
    """Even steps of the tangent (TanQ, arXiv 2408.03291): fine near 0 and near ``scale``, coarse between.

    The paper gives no formula that could be read; this one is centred, tan(a (x / scale - 1/2)), with the sharpness a
    searched in [0.2, 3.0]. Small a is the uniform quantizer.
    """

    shape = ("sharpness",)

    def candidates(self, x: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """57 sharpnesses at each percentile."""
        a = torch.linspace(0.2, 3.0, 57, dtype=x.dtype, device=x.device)
        scales = extremes(x[None], PERCENTILES.percentiles)[1][:, 0].clamp_min(SMALLEST_SCALE)
        yield scales.repeat_interleave(len(a)), a.repeat(len(scales))

    def codes(self, x: Tensor, scale: Tensor, *shape: Tensor) -> Tensor:
        """Even steps between the tangents at the two ends."""
        centred = (x / scale).clamp(0, 1) - 0.5
        share = (shape[0] * centred).tan() / (shape[0] / 2).tan() / 2 + 0.5
        return (share * (2**self.bits - 1)).round().clamp(0, 2**self.bits - 1)

    def values(self, scale: Tensor, *shape: Tensor) -> Tensor:
        """Rising from 0 to ``scale``."""
        return self._places(scale, shape[0], 0.0, 2**self.bits)

    def edges(self, scale: Tensor, *shape: Tensor) -> Tensor:
        """Half-way between the codes' tangents."""
        return self._places(scale, shape[0], 0.5, 2**self.bits - 1)

    def _places(self, scale: Tensor, a: Tensor, first: float, count: int) -> Tensor:
        share = 2 * (_count(scale, count) + first) / (2**self.bits - 1) - 1
        a = a[..., None]
        return scale[..., None] * (0.5 + (share * (a / 2).tan()).atan() / a)


class AdaptiveLogQuantizer(TableQuantizer):
    """Powers of a base that is searched: 2 ** (-base / 37) (AdaLog, arXiv 2407.12951).

    A code stands for a shift and one of few mantissas with bits + 1 bits, so that it can be decoded in integers.
    shift: t, added before and subtracted after, for values down to -t, such as those behind GELU; 0 for softmax, whose
    scale is 1. folded: -t is left out here, since the next layer's bias has it. smooth: the powers themselves, without
    rounded mantissas, while the scale is learnt. Of 2**bits + 1 codes the last is zero.
    """

    shape = ("base",)
    resolution = 37
    bases = range(10, 139)

    def __init__(self, bits: int, shift: float = 0.0):
        super().__init__(bits)
        self.shift, self.folded, self.smooth = shift, False, False

    def candidates(self, x: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """All bases; with a shift at each of ten scales too, from the 90th percentile of the positive values."""
        bases = torch.tensor(list(self.bases), dtype=x.dtype, device=x.device)
        scales = x.new_ones(1)
        if self.shift:
            positive = x[x > 0] if bool((x > 0).any()) else x.new_zeros(1)
            top = extremes(positive[None], (1.0, 0.9))[1][:, 0]
            scales = torch.linspace(0, 1, 10, dtype=x.dtype, device=x.device) * (top[0] - top[1]) + top[1] + self.shift
        yield scales.repeat_interleave(len(bases)), bases.repeat(len(scales))

    def codes(self, x: Tensor, scale: Tensor, *shape: Tensor) -> Tensor:
        """round(-log2((x + shift) / scale) * 37 / base), the last code for all that would be beyond."""
        share = ((x + self.shift) / scale).clamp(SMALLEST_SHARE, 1.0)
        return (-share.log2() * (self.resolution / shape[0])).round().clamp(0, 2**self.bits)

    def values(self, scale: Tensor, *shape: Tensor) -> Tensor:
        """Falling powers, then zero; all less the shift unless it is folded."""
        n = 2**self.bits
        codes = _count(scale, n + 1)
        exponent = codes * shape[0][..., None]
        if self.smooth:
            shares = torch.exp2(-exponent / self.resolution)
        else:
            steps = 2 * n - 2
            mantissa = (torch.exp2(-(exponent % self.resolution) / self.resolution) * steps).round() / steps
            shares = mantissa * torch.exp2(-(exponent / self.resolution).floor())
        found = scale[..., None] * torch.where(codes < n, shares, 0.0)
        return found if self.folded else found - self.shift

    def edges(self, scale: Tensor, *shape: Tensor) -> Tensor:
        """Half-way between the exponents."""
        exponent = (_count(scale, 2**self.bits) + 0.5) * shape[0][..., None]
        return scale[..., None] * torch.exp2(-exponent / self.resolution) - self.shift


class TwinUniformQuantizer(TableQuantizer):
    """Two uniform ranges, one bit to tell them apart, the coarse step 2**m times the fine one (arXiv 2111.12293).

    signed: the fine range is the negative one (behind GELU); else the one near zero (softmax), and the coarse one
    reaches 1. ``scale`` is the fine step, ``octaves`` is m, which is searched (OPT-m, arXiv 2401.14895): the steps then
    align by a shift.
    """

    shape = ("octaves",)
    most = 15

    def __init__(self, bits: int, signed: bool = False):
        super().__init__(bits)
        self.signed = signed

    @property
    def half(self) -> int:
        """The codes of either range."""
        return 2 ** (self.bits - 1)

    def candidates(self, x: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Every m; with signs at each of twenty ranges too."""
        m = torch.arange(self.most + 1, dtype=x.dtype, device=x.device)
        coarse = x.new_ones(1) / (self.half - 1)
        if self.signed:
            shares = torch.linspace(0.24, 1.0, 20, dtype=x.dtype, device=x.device)
            coarse = (x.max().clamp_min(SMALLEST_SCALE) * shares) / (self.half - 1)
        yield (coarse[:, None] * torch.exp2(-m)).flatten(), m.repeat(len(coarse))

    def codes(self, x: Tensor, scale: Tensor, *shape: Tensor) -> Tensor:
        """The number of the value: of the fine range first, from the least."""
        coarse = self.half + self._steps(x, scale * torch.exp2(shape[0]))
        if self.signed:
            return torch.where(x < 0, self.half - 1 - self._steps(-x, scale), coarse)
        return torch.where(x < (self.half - 0.5) * scale, self._steps(x, scale), coarse)

    def values(self, scale: Tensor, *shape: Tensor) -> Tensor:
        """The fine range, then the coarse one."""
        steps, scale = _count(scale, self.half), scale[..., None]
        fine = -steps.flip(0) if self.signed else steps
        return torch.cat([fine * scale, steps * scale * torch.exp2(shape[0][..., None])], -1)

    def edges(self, scale: Tensor, *shape: Tensor) -> Tensor:
        """Half-way between neighbours; coarse values inside the fine range stand for nothing."""
        middles, scale = _count(scale, self.half - 1) + 0.5, scale[..., None]
        coarse = middles * scale * torch.exp2(shape[0][..., None])
        if self.signed:
            return torch.cat([-middles.flip(0) * scale, torch.zeros_like(scale), coarse], -1)
        border = (self.half - 0.5) * scale
        return torch.cat([middles * scale, border, coarse.maximum(border)], -1)

    def _steps(self, x: Tensor, scale: Tensor) -> Tensor:
        return (x / scale).round().clamp(0, self.half - 1)
