"""I&S-ViT: its quantizers, and where the three stages of ``vitalk.nn.quant.smooth`` apply."""

from typing import Literal

from torch import Tensor, nn

from vitalk.nn.quant import Log2Quantizer, LogSqrt2Quantizer, Quantizer, ShiftLog2Quantizer, UniformQuantizer
from vitalk.nn.quant.calibrate import check_choice
from vitalk.nn.quant.smooth import BATCH, RATE, policy_of, smooth

Attention = Literal["sulq", "log2", "log-sqrt2", "uniform", "float"]
SOFTMAX: dict[str, type[Quantizer] | None] = {
    "sulq": ShiftLog2Quantizer,
    "log2": Log2Quantizer,
    "log-sqrt2": LogSqrt2Quantizer,
    "uniform": UniformQuantizer,
    "float": None,
}


def is_vit(
    model: nn.Module,
    images: Tensor,
    weight_bits: int = 4,
    act_bits: int = 4,
    attention: Attention = "sulq",
    integer: bool = True,
    iterations: int | None = None,
    stages: Literal[1, 3] = 3,
    batch: int = BATCH,
    lr: float = RATE,
    progress: bool = False,
) -> nn.Module:
    """A copy of ``model``, quantized and tuned (fake quantization, eval mode): a ViT, DeiT or Swin, or a ``Trunk``.

    images: unlabelled pictures [count, channels, height, width], normalised; the first 64 fit the quantizers, all of
    them tune. The paper takes 1024.
    weight_bits, act_bits: 2 to 8; the pictures themselves always have 8.
    attention: quantizer of the attention probabilities, the paper's shift-uniform-log2 ("sulq") or those it is compared
    with; "float" leaves both attention products in float (deployment).
    integer: symmetric weights and whole zero points, which runtimes have kernels for; False is the paper's protocol.
    iterations: steps of each stage for each block; None for the paper's 1000, 200 from 6 bits on; 0 only calibrates.
    stages: 3 as in the paper; 1 quantizes everything first and tunes then, for as many steps (its ablation).
    batch, lr: pictures a step; Adam's rate at the start. Few steps want more than the paper's 4e-5.
    progress: show a progress bar.

    Raises UserError for bits, pictures, weights and settings that cannot be.
    """
    check_choice("attention", attention, Attention)
    return smooth(
        model, images, weight_bits, act_bits, policy_of(SOFTMAX[attention], integer), integer,
        iterations=iterations, stages=stages, batch=batch, lr=lr, wide=not_reduction, progress=progress,
    )  # fmt: skip


def not_reduction(name: str) -> bool:
    """Whether a layer may have a scale a channel: Swin's downsampling has one in all, as in the official code."""
    return not name.endswith("downsample.reduction")
