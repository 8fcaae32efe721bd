"""Linear layers whose weights are powers of two: a product is a shift (DeepShift, arXiv 1905.13298).

Three parameterizations with one forward pass: inputs and bias are floored to fixed point with 16 integer and 16
fraction bits, weights are signs and shifts. Gradients pass straight through every rounding.
"""

import math
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.errors import UserError

FRACTION = 16  # bits after the point of activations and biases
LOW, HIGH = -(2.0**15), 2.0**15 - 1
Kind = Literal["shift", "shift-q", "sp2"]


class _Straight(torch.autograd.Function):
    """``value`` forward, the gradient to ``x`` backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight(x: Tensor, value: Tensor) -> Tensor:
    """``value``, whose gradient goes to ``x`` as if nothing had been rounded; both of one shape."""
    return _Straight.apply(x, value) if x.requires_grad and torch.is_grad_enabled() else value


def fixed(x: Tensor) -> Tensor:
    """x floored to multiples of 2^-16 and clamped to [-2^15, 2^15 - 1], of any shape and in its type; NaN stays NaN."""
    with torch.no_grad():
        value = (x.float() * 2**FRACTION).floor().mul(2.0**-FRACTION).clamp(LOW, HIGH).to(x.dtype)
    return straight(x, value)


def shift_and_sign(weight: Tensor) -> tuple[Tensor, Tensor]:
    """round(log2 |w|) and sign(w), both in the shape of ``weight``; a zero has the shift -inf and the sign 0."""
    return (weight.abs().log() / math.log(2)).round(), weight.sign()


class _Asymmetric(torch.autograd.Function):
    """a * b, whose gradient to b leaves out a: DeepShift's rule for the sign."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(b)
        return a * b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad * ctx.saved_tensors[0], grad


def _product(magnitude: Tensor, sign: Tensor) -> Tensor:
    """magnitude * round(sign)'s sign, with DeepShift's gradients; without gradients a plain product."""
    hard = straight(sign, sign.detach().round().sign())
    return _Asymmetric.apply(magnitude, hard) if torch.is_grad_enabled() else magnitude * hard


def _rounded(x: Tensor) -> Tensor:
    return straight(x, x.detach().round())


class _Shift(nn.Module):
    """What the three have in common: sizes, bias, and the pass with fixed-point inputs [..., in] -> [..., out]."""

    def __init__(self, in_features: int, out_features: int, bias: bool, bits: int):
        super().__init__()
        if bits not in range(2, 6):
            raise UserError(f"shift weights have 2 to 5 bits, got {bits}: more would shift the 16 fraction bits away")
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Linear, bits: int = 5) -> Self:
        """The layer that starts from the weights of ``linear``, rounded, and its bias."""
        new = cls(linear.in_features, linear.out_features, linear.bias is not None, bits)
        state = cls.parts(linear.weight.detach(), bits)
        if linear.bias is not None:
            state["bias"] = linear.bias.detach().clone()
        new.load_state_dict(state)
        return new.to(linear.weight.device).train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return F.linear(fixed(x), self.quantized_weight(), None if self.bias is None else fixed(self.bias))

    def _clamped(self, parameter: nn.Parameter, low: float, high: float) -> Tensor:
        """The parameter within its range; while training it is also put back there, so that it cannot run away."""
        if self.training and torch.is_grad_enabled():
            parameter.data.clamp_(low, high)
            return parameter
        return parameter.clamp(low, high)

    def extra_repr(self) -> str:
        """What the printed module shows."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, bits={self.bits}"


class ShiftLinear(_Shift):
    """DeepShift-PS: w = sign(round(S)) 2^round(P), with the shift P and the sign S trained, both [out, in].

    P stays in [-(2^(bits - 1) - 2), 0], -14 to 0 for 5 bits; the sign is ternary, 0 makes a zero weight. Gradients:
    dL/dP = dL/dw w ln 2 and dL/dS = dL/dw. Parameters are ``shift``, ``sign`` and ``bias`` [out], as officially.
    Weight decay has no business here: it would pull the weights towards one.

    Raises UserError for bits outside 2 to 5.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, bits: int = 5):
        super().__init__(in_features, out_features, bias, bits)
        self.shift = nn.Parameter(torch.empty(out_features, in_features).uniform_(self.lowest, 0))
        self.sign = nn.Parameter(torch.empty(out_features, in_features).uniform_(-1, 1))

    @property
    def lowest(self) -> float:
        """The smallest shift."""
        return -(2.0 ** (self.bits - 1) - 2)

    @staticmethod
    def parts(weight: Tensor, bits: int = 5) -> dict[str, Tensor]:
        """The parameters that come closest to a dense weight [out, in]."""
        shift, sign = shift_and_sign(weight)
        return {"shift": shift.clamp(-(2.0 ** (bits - 1) - 2), 0), "sign": sign}

    def quantized_weight(self) -> Tensor:
        """The weights in force, [out, in], each 0 or +-2^-k."""
        return _product(_rounded(self._clamped(self.shift, self.lowest, 0.0)).exp2(), self.sign)


class ShiftLinearQ(_Shift):
    """DeepShift-Q: the dense weight [out, in] is trained and rounded to sign(w) 2^round(log2 |w|) in every pass.

    Shifts reach from -(2^(bits - 1) - 1) to 0, since no bit is needed for zeros; weights that are exactly 0 stay so.
    It trains faster in short runs: an optimizer's step of some 1e-4 moves a weight to the next power sooner than a
    shift. Raises UserError for bits outside 2 to 5.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, bits: int = 5):
        super().__init__(in_features, out_features, bias, bits)
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    @staticmethod
    def parts(weight: Tensor, bits: int = 5) -> dict[str, Tensor]:
        """The parameters that come closest to a dense weight [out, in]."""
        return {"weight": weight.clone()}

    def quantized_weight(self) -> Tensor:
        """The weights in force, [out, in], each 0 or +-2^-k."""
        low = 2.0 ** -(2 ** (self.bits - 1) - 1)
        within = (self.weight.detach().abs().clamp(low, 1.0) * self.weight.detach().sign()).to(self.weight.dtype)
        if self.training and torch.is_grad_enabled():
            self.weight.data.copy_(within)
        shift, sign = shift_and_sign(within)
        return straight(self.weight, shift.exp2() * sign)


class ShiftLinearSP2(_Shift):
    """Sums of two powers: w = 2/3 sign (s1 4^p1 + s2 4^p2 / 2), p in {-2, -1, 0} and s1, s2 in {0, 1}.

    Each weight costs two shifts; the factor 2/3 is applied once an output. Parameters as officially: ``shift_1``,
    ``shift_2``, ``sign``, ``sign_1`` and ``sign_2``, all [out, in]; the ranges are fixed, so 5 bits is all there is.
    Raises UserError for other bits.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, bits: int = 5):
        super().__init__(in_features, out_features, bias, bits)
        if bits != 5:
            raise UserError(f"sums of two powers have 5 bits, got {bits}")
        ranges = {"shift_1": (-2, 0), "shift_2": (-2, 0), "sign": (-1, 1), "sign_1": (0, 1), "sign_2": (0, 1)}
        for name, (low, high) in ranges.items():
            setattr(self, name, nn.Parameter(torch.empty(out_features, in_features).uniform_(low, high)))

    @staticmethod
    def parts(weight: Tensor, bits: int = 5) -> dict[str, Tensor]:
        """The parameters that come closest to a dense weight [out, in] among the 16 magnitudes."""
        values, *tables = (x.to(weight) for x in sp2_table())
        # Halfway between neighbours, and between equal magnitudes' first: a search, not a [16, out, in] distance
        order = values.argsort()
        ascending = values[order]
        index = order[torch.bucketize(weight.abs(), (ascending[1:] + ascending[:-1]) / 2)]
        names = ("sign_1", "sign_2", "shift_1", "shift_2")
        return {"sign": weight.sign(), **{name: table[index] for name, table in zip(names, tables, strict=True)}}

    def halves(self) -> tuple[Tensor, Tensor]:
        """The two powers with their signs, [out, in] each; the weight is two thirds of their sum."""
        powers = []
        for half, (shift, keep) in enumerate(((self.shift_1, self.sign_1), (self.shift_2, self.sign_2))):
            power = (2 * _rounded(self._clamped(shift, -2.0, 0.0)) - half).exp2()
            powers.append(_product(power, self._clamped(keep, 0.0, 1.0)))
        return powers[0], powers[1]

    def quantized_weight(self) -> Tensor:
        """The weights in force, [out, in]."""
        first, second = self.halves()
        return _product((first + second) * (2 / 3), self.sign)


def sp2_table() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The 16 magnitudes of SP2 and their s1, s2, p1, p2, all [16], in the official order."""
    rows = []
    for second in (None, 0, -1, -2):
        for first in (None, 0, -1, -2):
            value = (0 if first is None else 4.0**first) + (0 if second is None else 4.0**second / 2)
            rows.append((value * 2 / 3, first is not None, second is not None, first or 0, second or 0))
    value, *rest = torch.tensor(rows).T
    return (value, *rest)


SHIFTS: dict[str, type[_Shift]] = {"shift": ShiftLinear, "shift-q": ShiftLinearQ, "sp2": ShiftLinearSP2}
