"""What quantization did to a network, tensor by tensor and at its end: the columns of the workbench."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.nn.quant import QuantMatMul, UniformQuantizer, observe, sites
from vitalk.nn.quant.nonuniform import TableQuantizer
from vitalk.nn.quant.search import operand

from .baselines import NoisyQuantizer


@dataclass(frozen=True)
class TensorReport:
    """One quantizer's figures.

    sqnr: signal to quantization noise in dB. saturation: share of the values at or beyond the two outermost codes'
    values. codes: distinct values that are in use, of ``2**bits`` (logarithms: and one for zero). bits: its bits.
    """

    sqnr: float
    saturation: float
    codes: int
    bits: int


@torch.no_grad()
def tensor_reports(model: nn.Module, images: Tensor) -> dict[str, TensorReport]:
    """The figures of every fitted quantizer on a site, by name, for what the float network shows it of ``images``."""
    found = {}
    seen = observe(model, images)
    for name, site in sites(model).items():
        pair = (
            ("left_quantizer", "right_quantizer")
            if isinstance(site, QuantMatMul)
            else ("input_quantizer", "weight_quantizer")
        )
        for which in pair:
            quantizer = getattr(site, which)
            if quantizer is not None and quantizer.enabled and quantizer.fitted and name in seen:
                x = operand(site, seen[name], which)
                found[f"{name}.{which}"] = _tensor_report(quantizer, x)
    return found


def _tensor_report(quantizer: UniformQuantizer | TableQuantizer, x: Tensor) -> TensorReport:
    rounded = quantizer.quantize(x)
    if isinstance(quantizer, NoisyQuantizer):  # it rounds what it adds the noise to
        x = x + quantizer.noise
    if isinstance(quantizer, UniformQuantizer):
        shape = [1] * x.dim()
        if quantizer.scale.dim():
            shape[quantizer.axis] = -1
        codes = (rounded / quantizer.scale.view(shape) + quantizer.zero_point.view(shape)).round()
        outermost = (codes <= quantizer.low) | (codes >= quantizer.high)
    else:
        codes = quantizer.codes(x, *quantizer.known)
        outermost = (codes == 0) | (codes == len(quantizer.values(*quantizer.known)) - 1)
    return TensorReport(
        sqnr(x, rounded), float(outermost.float().mean()), len(codes.unique()), quantizer.bits
    )  # fmt: skip


def sqnr(x: Tensor, rounded: Tensor) -> float:
    """Signal to quantization noise ratio in dB; infinite where nothing was lost."""
    return float(10 * (x.double().square().sum() / (x - rounded).double().square().sum()).log10())


def logits_report(logits: Tensor, reference: Tensor) -> dict[str, float]:
    """How far logits [batch, classes] are from the float network's: mean KL divergence (nats), cosine, agreement."""
    logits, reference = logits.float(), reference.float()
    divergence = F.kl_div(logits.log_softmax(1), reference.log_softmax(1), log_target=True, reduction="batchmean")
    return {
        "kl": float(divergence),
        "cosine": float(F.cosine_similarity(logits, reference).mean()),
        "agreement": float((logits.argmax(1) == reference.argmax(1)).float().mean()),
    }
