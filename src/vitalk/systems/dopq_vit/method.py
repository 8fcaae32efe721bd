"""DopQ-ViT: the quantizer of attention, the rule of the fold, and the tuning that I&S-ViT brought."""

from typing import Literal

from torch import Tensor, nn

from vitalk.nn.quant import (
    Log2Quantizer,
    LogSqrt2Quantizer,
    Quantizer,
    ShiftLog2Quantizer,
    TanQuantizer,
    UniformQuantizer,
)
from vitalk.nn.quant.calibrate import check_choice
from vitalk.nn.quant.reparam import Common, mean_scale
from vitalk.nn.quant.smooth import BATCH, RATE, policy_of, smooth

from .attention import search_products
from .mosf import deviation_scale, median_scale, trimmed_scale

Attention = Literal["tanq", "uniform", "log2", "log-sqrt2", "sulq", "float"]
Scales = Literal["mad", "median", "trimmed", "mean", "channel"]
Sharpness = Literal["values", "products"]
SOFTMAX: dict[str, type[Quantizer]] = {
    "tanq": TanQuantizer,
    "uniform": UniformQuantizer,
    "log2": Log2Quantizer,
    "log-sqrt2": LogSqrt2Quantizer,
    "sulq": ShiftLog2Quantizer,
}
RULES: dict[str, Common | None] = {
    "mad": deviation_scale,
    "median": median_scale,
    "trimmed": trimmed_scale,
    "mean": mean_scale,
    "channel": None,
}


def dopq_vit(
    model: nn.Module,
    images: Tensor,
    weight_bits: int = 4,
    act_bits: int = 4,
    attention: Attention = "tanq",
    integer: bool = True,
    scales: Scales = "mad",
    sharpness: Sharpness = "values",
    iterations: int | None = None,
    batch: int = BATCH,
    lr: float = RATE,
    progress: bool = False,
) -> nn.Module:
    """A copy of ``model``, quantized and tuned (fake quantization, eval mode): a ViT, DeiT or Swin, or a ``Trunk``.

    images: unlabelled pictures [count, channels, height, width], normalised; the first 64 fit the quantizers, all of
    them tune.
    weight_bits, act_bits: 2 to 8; the pictures themselves always have 8.
    attention: quantizer of the attention probabilities, the paper's ("tanq"), those it is compared with, I&S-ViT's
    among them ("sulq"), or "float", which leaves both attention products in float (deployment).
    integer: symmetric weights and whole zero points, which runtimes have kernels for; False is the papers' protocol.
    scales: the common scale that channel scales behind LayerNorm are folded into: that of least mean absolute
    deviation ("mad"), the median, the mean without outliers ("trimmed"), RepQ-ViT's mean; "channel" does not fold and
    cannot be exported.
    sharpness: what TanQ's is searched for: least squared error of the probabilities ("values"), or of the product.
    iterations: steps of each stage for each block, as in I&S-ViT: None for 1000, 200 from 6 bits on; 0 only calibrates.
    batch, lr: pictures a step; Adam's rate at the start. Few steps want more than the paper's 4e-5.
    progress: show a progress bar.

    Raises UserError for bits, pictures, weights and settings that cannot be.
    """
    check_choice("attention", attention, Attention)
    check_choice("scales", scales, Scales)
    check_choice("sharpness", sharpness, Sharpness)
    search = {"search": search_products} if sharpness == "products" else {}
    return smooth(
        model, images, weight_bits, act_bits, policy_of(SOFTMAX.get(attention), integer), integer, RULES[scales],
        iterations=iterations, batch=batch, lr=lr, progress=progress, **search,
    )  # fmt: skip
