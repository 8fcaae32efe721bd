"""Integer kernels: softmax, GELU, LayerNorm, logarithms and rescaling in whole numbers, as numpy on int64.

No kernel sees a float but for the constants it is built with. On values of an ONNX graph instead of arrays the same
functions write that graph (``integer_graph``), so the reference and the graph cannot drift apart: they keep to numpy's
operators, ``max``, ``sum`` and what ``integer_graph.Value`` knows beside them.

Sources: I-ViT, arXiv 2207.01405 (Shiftmax, ShiftGELU, I-LayerNorm); I-BERT, arXiv 2101.01321 (polynomial exponential
and GELU); FQ-ViT, arXiv 2111.13824 (log-int-softmax); as summed up in arXiv 2405.00314, section 4.
"""

import math
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np

Array = Any  # an int64 numpy array, or a value of a graph

MOST = 2**31 - 1
EXP = (0.35815147, 0.96963238, 1.0)  # exp(r) on (-ln 2, 0]: c0 r^2 + c1 r + c2
ERF = (-0.2888, -1.769)  # erf(x) for x > 0: a (min(x, -b) + b)^2 + 1
GELU = 1.702  # GELU(x) is about x * sigmoid(1.702 x)
SUM_BITS = 24  # sums of exponentials stay below 2**24, so that 2**31 over them keeps seven bits at least
LOG_CODES = 16  # of log-int-softmax: 4 bits


@singledispatch
def product(a: Array, b: Array, unsigned: bool = False) -> Array:
    """a [..., rows, inner] @ b [..., inner, columns], both of 8-bit codes; unsigned: a's are 0 to 255.

    By float64, whose sums of so small products are exact, since numpy's own integer product is some ten times slower.
    """
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)


@dataclass(frozen=True)
class Rescale:
    """x -> clip(round(x * ratio + offset)) by a multiplication and a shift: (x * multiplier + offset) >> shift.

    ``rescale`` makes it. Rounds half up; |x| must be below 2**30. multiplier, shift, offset: int64, [] or [channels].
    """

    multiplier: np.ndarray
    shift: np.ndarray
    offset: np.ndarray
    low: int
    high: int

    def __call__(self, x: Array) -> Array:
        """x, int64, in the new unit."""
        out = (x * self.multiplier + self.offset) >> self.shift
        return np.minimum(np.maximum(out, self.low), self.high)


def dyadic(ratio: Any, bits: int = 31) -> tuple[np.ndarray, np.ndarray]:
    """(multiplier, shift) with multiplier / 2**shift near ``ratio``: relative error below 2**(1 - bits).

    bits: of the multiplier: 31 (I-BERT, I-ViT) or 8 (FQ-ViT). The shift is 1 to 60; ratios below 2**(bits - 61) lose
    bits.
    """
    ratio = np.asarray(ratio, np.float64)
    shift = np.clip(bits - np.frexp(ratio)[1].astype(np.int64), 1, 60)
    return np.rint(np.ldexp(ratio, shift)).astype(np.int64), shift


def rescale(ratio: Any, bits: int, offset: Any = 0.0) -> Rescale:
    """To signed codes of ``bits``: x * ratio + offset, rounded; ratio, offset: [] or [channels]."""
    multiplier, shift = dyadic(ratio)
    offset = np.asarray(offset, np.float64)
    room = 59 - np.frexp(offset)[1].astype(np.int64)  # so that the offset stays below 2**59
    if bool((room < shift).any()):
        shift = np.clip(np.minimum(shift, room), 1, 60)
        multiplier = np.rint(np.ldexp(np.asarray(ratio, np.float64), shift)).astype(np.int64)
    half = np.left_shift(1, shift - 1)
    return Rescale(
        multiplier, shift, np.rint(np.ldexp(offset, shift)).astype(np.int64) + half,
        -(2 ** (bits - 1)), 2 ** (bits - 1) - 1,
    )  # fmt: skip


def octaves(unit: int, terms: int, most: int = 15) -> int:
    """n of ``shift_exp``: as large as keeps sums of ``terms`` exponentials below 2**24, ``most`` at most.

    The papers fix n (15 for softmax, 23 for GELU) for any scale; where sums come near 2**31, 2**31 over them has few
    bits, and ShiftGELU is off by up to 0.4. (Choosing n is ours.)
    """
    return max(min(SUM_BITS - math.ceil(math.log2(unit * terms)), most), 1)


def shift_exp(x: Array, unit: int, n: int) -> Array:
    """exp(x / unit) * unit * 2**n by shifts, x not above 0 (I-ViT): 2**-q (1 - f / 2), log2(e) taken as 1.4375.

    unit: codes that make one, 1 / scale, a whole number. n: below 2**-n it does not fall.
    """
    x = x + (x >> 1) - (x >> 4)
    down = np.minimum(-x, n * unit)
    whole = down // unit
    return ((2 * unit - (down - whole * unit)) << (n - whole)) >> 1


def shiftmax(x: Array, unit: int, n: int = 15, k: int = 16) -> Array:
    """Softmax over the last axis in units of 2**-(k - 1) (I-ViT, algorithm 1); rows sum up to a little less than one.

    The row sum is in [1 - N 2**-(k - 1) - sum(e) / 2**31, 1] for N columns.
    """
    e = shift_exp(x - x.max(-1, keepdims=True), unit, n)
    return (e * (MOST // e.sum(-1, keepdims=True))) >> (32 - k)


def shift_gelu(x: Array, unit: int, n: int, k: int = 8, rowwise: bool = False) -> Array:
    """GELU as x * sigmoid(1.702 x) (I-ViT, algorithm 2), in units of the scale of x times 2**-(k - 1).

    unit: codes that make one of 1.702 x. rowwise: exponents are relative to the largest of the row, as in the paper;
    else to max(x, 0), which needs a smaller n: the others of a row with a large value do not fall off its end (ours).
    """
    top = x.max(-1, keepdims=True) if rowwise else np.maximum(x, 0)
    own, other = shift_exp(x - top, unit, n), shift_exp(-top, unit, n)
    return x * ((own * (MOST // (own + other))) >> (32 - k))


def poly_exp(x: Array, scale: float, n: int = 30) -> Array:
    """exp(x * scale), x not above 0, in units of c0 * scale**2 / 2**n: a polynomial and a shift (I-BERT, algorithm 2).

    Whole numbers up to 2**(n + 1) / scale**2.
    """
    ln2, b, c = (math.floor(v) for v in (math.log(2) / scale, EXP[1] / EXP[0] / scale, EXP[2] / EXP[0] / scale**2))
    down = np.minimum(-x, n * ln2)
    whole = down // ln2
    rest = whole * ln2 - down
    return (rest * (rest + b) + c) << (n - whole)


def poly_softmax(x: Array, scale: float, k: int = 16, n: int = 30) -> Array:
    """Softmax over the last axis in units of 2**-(k - 1), by ``poly_exp`` and 64-bit quotients."""
    e = poly_exp(x - x.max(-1, keepdims=True), scale, n)
    return (e << (k - 1)) // e.sum(-1, keepdims=True)


def poly_gelu(x: Array, scale: float) -> Array:
    """GELU by a polynomial for erf, in units of ``poly_gelu_scale`` (I-BERT, algorithm 1)."""
    (a, b), root = ERF, scale / math.sqrt(2)
    edge, one = math.floor(-b / root), math.floor(-1 / a / root**2)
    size = np.minimum(np.abs(x), edge) - edge
    erf = np.sign(x) * (one - size * size)
    return x * (erf + one)


def poly_gelu_scale(scale: float) -> float:
    """The unit of what ``poly_gelu`` puts out."""
    return -ERF[0] * scale**3 / 4


def log_softmax_codes(x: Array, scale: float) -> Array:
    """Log-int-softmax (FQ-ViT): codes c with softmax(x * scale) about 2**-c, 0 to 15; 16 stands for zero.

    c is log2 of round(sum e / e), rounded by thresholds at 1.5 * 2**i, so there is no logarithm, and no tie in one.
    """
    e = poly_exp(x - x.max(-1, keepdims=True), scale)
    ratio = (e.sum(-1, keepdims=True) + (e >> 1)) // e
    return sum((2 * ratio >= (3 << i)) + 0 for i in range(LOG_CODES))


def log_product(codes: Array, v: Array) -> Array:
    """sum over 2**-codes * v in units of 2**-15, exactly: codes [..., rows, inner], 0 to 16, v [..., inner, columns].

    Shifts written as products, since processors have those for 8 bits: two planes of uint8, 2**(7 - c) and 2**(15 - c).
    """
    near = (codes < 8) * (128 >> np.minimum(codes, 7))
    far = (codes >= 8) * (128 >> np.maximum(codes - 8, 0))  # code 16 shifts it to 0
    return product(near, v, unsigned=True) * 256 + product(far, v, unsigned=True)


def wide_product(p: Array, v: Array) -> Array:
    """p @ v, p of 16 bits and not negative: two planes of uint8."""
    high = p >> 8
    return product(high, v, unsigned=True) * 256 + product(p - high * 256, v, unsigned=True)


def newton(v: Array, k: Array, steps: int) -> Array:
    """``steps`` times k <- (k + v // k) // 2, which falls to floor(sqrt(v)) and stays there; k starts above it."""
    for _ in range(steps):
        k = np.minimum(k, (k + v // k) >> 1)
    return k


def isqrt(v: Array) -> Array:
    """floor(sqrt(v)) of v [..., 1] from 1 to 2**62 - 1; of 0 it is 1.

    Newton's steps from the next power of two, which are six at most. (I-ViT takes ten steps from 2**16: not enough
    below 10**5.)
    """
    levels = 4 ** np.arange(31, dtype=np.int64)
    v = np.maximum(v, 1)
    return newton(v, 1 << (v >= levels).sum(-1, keepdims=True), 6)


def layer_norm(x: Array, dim: int) -> Array:
    """(x - mean) / deviation over the last axis, ``dim`` long, in units of ``layer_norm_scale(dim)`` (I-ViT).

    The scale of x does not matter. Inputs of power-of-two-factor channels (FQ-ViT) are shifted first: x << factors.
    """
    y = x - (2 * x.sum(-1, keepdims=True) + dim) // (2 * dim)
    return (y * (MOST // isqrt((y * y).sum(-1, keepdims=True)))) >> 1


def layer_norm_scale(dim: int) -> float:
    """The unit of what ``layer_norm`` puts out."""
    return math.sqrt(dim) / 2**30
