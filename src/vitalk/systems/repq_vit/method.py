"""RepQ-ViT: which quantizer sits where, and the calibration procedure."""

from typing import Literal

import torch
from torch import Tensor, nn

from vitalk.nn.quant import calibrate, fold, load_quantized, skeleton, widen
from vitalk.nn.quant.calibrate import check
from vitalk.nn.quant.policy import Attention

NormInputs = Literal["reparameterized", "channel", "tensor"]


def repq_vit(
    model: nn.Module,
    images: Tensor,
    weight_bits: int = 8,
    act_bits: int = 8,
    attention: Attention = "log-sqrt2",
    integer: bool = True,
    norm_inputs: NormInputs = "reparameterized",
    progress: bool = False,
) -> nn.Module:
    """A copy of ``model``, quantized (fake quantization, eval mode): any timm ViT, DeiT or Swin, or a ``Trunk``.

    images: calibration pictures [count, channels, height, width], normalised as in training; the paper takes 32.
    weight_bits, act_bits: 2 to 8; the pictures themselves always have 8. ``parse_bits("w4a4")`` reads both.
    attention: quantizer of the attention probabilities; "float" leaves both attention products in float, and
    timm's fused kernel in place (deployment: they are some 7 % of the work and gain nothing as int8 on x86).
    integer: symmetric weights and whole zero points, which runtimes have fast kernels for; False is the paper's
    protocol, asymmetric weights and a real-valued common zero point, which cannot be exported.
    norm_inputs: how inputs behind a LayerNorm are quantized; "channel" (before the reparameterization) and
    "tensor" (without it) are the paper's ablation.
    progress: show a progress bar.

    Raises UserError for bits, pictures, weights and attention that cannot be.
    """
    check(model, images)
    with torch.inference_mode(False):
        images = images.detach().clone()
        model = skeleton(model, weight_bits, act_bits, attention, integer)
        pairs = [] if norm_inputs == "tensor" else widen(model, images[:1])
        calibrate(model, images, progress)
        if norm_inputs == "reparameterized":
            for norm, linears in pairs:
                fold(norm, linears, integer)
    return model


def restore(
    model: nn.Module,
    state: dict[str, Tensor],
    weight_bits: int = 8,
    act_bits: int = 8,
    attention: Attention = "log-sqrt2",
    integer: bool = True,
) -> nn.Module:
    """The quantized model whose ``state_dict()`` is ``state``, on the architecture of the float ``model``.

    The other arguments must be those of the ``repq_vit`` call. Raises UserError where the state does not fit.
    """
    quantized = skeleton(model, weight_bits, act_bits, attention, integer)
    load_quantized(quantized, state)
    return quantized
