"""Inference with the integer kernels: the trained network, its shifts and additions done as such on the CPU."""

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn

from vitalk.errors import UserError

from .attention import AngularAttention, Mix
from .kernels import ShiftWeights, matadd, matshift, pack_codes, pack_shifts
from .shift import FRACTION, HIGH, LOW, ShiftLinearSP2, _Shift

SCALE = 2.0**FRACTION


def integers(x: Tensor) -> np.ndarray:
    """x in fixed point, int32 of the same shape: floor(x 2^16) within the range of ``fixed``.

    Raises UserError for NaN, which no integer stands for, and for tensors on another device than the CPU.
    """
    if x.device.type != "cpu":
        raise UserError(f"the integer kernels run on the CPU, not on {x.device}; move model and pictures there")
    y = (x.detach().float() * SCALE).floor().clamp(LOW * SCALE, HIGH * SCALE)
    # One sum finds any NaN, and the clamp has left nothing infinite
    if math.isnan(float(y.sum())):
        raise UserError("the activations hold NaN, which fixed point cannot; check pictures and weights")
    return y.to(torch.int32).numpy()


class IntegerLinear(nn.Module):
    """A shift layer's answer by ``matshift``: [..., in] -> [..., out] float32.

    exact: the sums lose nothing, so the answer is the trained layer's computed without rounding. Without it each
    product is floored as the paper's kernel does, and the sum ends below the exact one by less than ``in`` units of
    2^-16 either way. Sums of two powers are two passes and a factor of 2/3 an output.
    """

    def __init__(self, layer: _Shift, exact: bool = True):
        super().__init__()
        self.in_features, self.out_features, self.exact = layer.in_features, layer.out_features, exact
        with torch.no_grad():
            if isinstance(layer, ShiftLinearSP2):
                sign = layer.sign.round().sign()
                powers, self.scale = [half * sign for half in layer.halves()], 2 / 3
            else:
                powers, self.scale = [layer.quantized_weight()], 1.0
        self.weights: list[ShiftWeights] = [pack_shifts(power.double().cpu().numpy()) for power in powers]
        self.bias = None if layer.bias is None else integers(layer.bias.cpu()).astype(np.float64) / SCALE

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x [..., in], finite, on the CPU -> [..., out]."""
        rows = integers(x.flatten(0, -2))
        total = 0.0
        for weights in self.weights:
            bits = FRACTION + (weights.base if self.exact else 0)
            total = total + np.ldexp(matshift(rows, weights, self.exact).astype(np.float64), -bits)
        total = total * self.scale if self.scale != 1 else total
        total = total if self.bias is None else total + self.bias
        return torch.from_numpy(total.astype(np.float32)).unflatten(0, x.shape[:-1])

    def extra_repr(self) -> str:
        """What the printed module shows."""
        return f"{self.in_features}, {self.out_features}, exact={self.exact}, bytes={self.nbytes}"

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return sum(weights.packed.nbytes for weights in self.weights)


class IntegerMix(Mix):
    """``Mix`` of binary codes by ``matadd``; the values are floored to fixed point, else nothing is lost."""

    @torch.no_grad()
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Codes q, k [batch, heads, tokens, bits] and v [batch, heads, tokens, dim] -> the shape of v."""
        values = integers(v)
        context = matadd(pack_codes(k.transpose(-2, -1).numpy()), values)
        mixed = matadd(pack_codes(q.numpy()), context)
        out = (0.5 * values + mixed / math.pi) / SCALE
        return torch.from_numpy(out.astype(np.float32))


def integer(model: nn.Module, exact: bool = True) -> nn.Module:
    """A copy for inference on the CPU: every shift layer by ``matshift``, attention with binary codes by ``matadd``.

    exact: as in ``IntegerLinear``. Layers that multiply stay what they are. It has no gradients and is not exported.
    Raises UserError where the model has neither shifts nor binary codes.
    """
    model = copy.deepcopy(model).eval()
    changed = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _Shift):
                setattr(parent, name, IntegerLinear(child, exact))
                changed += 1
        if isinstance(parent, AngularAttention) and parent.kind != "linear":
            parent.mix = IntegerMix()
            changed += 1
    if not changed:
        raise UserError("the model has neither shift layers nor binary codes; convert it with shiftadd first")
    return model
