"""MPTQ-ViT: which quantizer sits where, and what is done in which order."""

from functools import partial
from typing import Literal

import torch
from rich.progress import Progress
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.quant import (
    LogSqrt2Quantizer,
    Policy,
    QuantConv2d,
    TwinUniformQuantizer,
    UniformQuantizer,
    calibrate,
    load_quantized,
    place,
    sites,
)
from vitalk.nn.quant.calibrate import check, check_choice
from vitalk.nn.quant.describe import Bits
from vitalk.nn.quant.policy import Make
from vitalk.nn.quant.search import Seen

from .allocate import LEAST, TOP, Measure, Step, allocate, apply_bits, bits_after
from .full import quantize_fully
from .search import FixedTwinQuantizer, look, search_all
from .smooth import Smooth
from .smooth import smooth as smooth_channels

Gelu = Literal["opt-m", "fixed", "uniform"]
Attention = Literal["twin", "log-sqrt2", "uniform", "float"]

SYMMETRIC: Make = partial(UniformQuantizer, symmetric=True)
GELU: dict[str, Make] = {
    "opt-m": partial(TwinUniformQuantizer, signed=True),
    "fixed": partial(FixedTwinQuantizer, signed=True),
    "uniform": UniformQuantizer,
}
SOFTMAX: dict[str, Make] = {"twin": TwinUniformQuantizer, "log-sqrt2": LogSqrt2Quantizer, "uniform": UniformQuantizer}


def mptq_vit(
    model: nn.Module,
    images: Tensor,
    weight_bits: int = 4,
    act_bits: int = 4,
    smooth: Smooth = "sq-b",
    gelu: Gelu = "opt-m",
    attention: Attention = "twin",
    average_bits: float | None = None,
    measure: Measure = "cached",
    bits: Bits | None = None,
    alpha: float = 0.5,
    percentile: float = 1.0,
    values: bool = False,
    fully: bool = False,
    integer: bool = True,
    progress: bool = False,
) -> nn.Module:
    """A copy of ``model``, quantized (fake quantization, eval mode): any timm ViT, DeiT or Swin, or a ``Trunk``.

    images: calibration pictures [count, channels, height, width], normalised as in training; the paper takes 32.
    weight_bits, act_bits: 2 to 8, the same for all sites. In place of them either average_bits: the greedy search finds
    bits for each site so that their average (``shares_of_items`` has the convention) is at most this, with harm by
    ``measure`` (see ``allocate``); or bits: those of an earlier search (``load_bits``).
    smooth: "sq-b" centres and scales channels; "sq" scales them, as SmoothQuant; "none" does neither. alpha,
    percentile, values: see ``smooth.smooth``.
    gelu: quantizer of what comes from a GELU: two ranges with the ratio searched, or fixed as in earlier work, or one
    range, asymmetric, which is the one that runs as int8.
    attention: quantizer of the attention probabilities; "float" leaves both attention products in float, and timm's
    fused kernel in place.
    fully: LayerNorm and softmax inputs are rounded too, to 8 bits.
    integer: pictures have 8 bits, so that the patch embedding is an integer product too; False is the published
    protocol, which leaves them in float.
    progress: show a progress bar.

    Raises UserError for bits, pictures, weights and names that cannot be.
    """
    _check_fully(fully, attention)
    if average_bits is not None:
        if bits is not None:
            raise UserError("average_bits and bits both say how many bits there are; leave one of them")
        settings = {"alpha": alpha, "percentile": percentile, "values": values, "integer": integer}
        steps = lower_bits(model, images, average_bits, measure, smooth, gelu, attention, progress=progress, **settings)
        bits = bits_after(steps)
    if bits is not None:
        weight_bits = act_bits = TOP
    model, images, seen = prepared(
        model, images, weight_bits, act_bits, smooth, gelu, attention, alpha, percentile, values, integer
    )
    with torch.inference_mode(False), torch.no_grad(), Progress(disable=not progress) as bar:
        apply_bits(model, bits or {})
        search_all(model, seen, bar.track(sites(model), description="searching scales"))
        if fully:
            names = quantize_fully(model)
            calibrate(model, images, only=names.__contains__)
    return model


def lower_bits(
    model: nn.Module,
    images: Tensor,
    average_bits: float,
    measure: Measure = "cached",
    smooth: Smooth = "sq-b",
    gelu: Gelu = "opt-m",
    attention: Attention = "twin",
    alpha: float = 0.5,
    percentile: float = 1.0,
    values: bool = False,
    integer: bool = True,
    progress: bool = False,
) -> list[Step]:
    """The greedy search by itself: which bits go, one after the other, from 8 everywhere down to ``average_bits``.

    ``bits_after(steps, average)`` are the bits on the way, which ``mptq_vit(..., bits=...)`` takes. Arguments and
    errors as there.
    """
    check_choice("measure", measure, Measure)
    if not LEAST <= average_bits <= TOP:
        raise UserError(f"average_bits must be {LEAST} to {TOP}, got {average_bits}")
    model, images, seen = prepared(model, images, TOP, TOP, smooth, gelu, attention, alpha, percentile, values, integer)
    with torch.inference_mode(False), torch.no_grad(), Progress(disable=not progress) as bar:
        task = bar.add_task("lowering bits", total=TOP - average_bits)
        return allocate(
            model, images, seen, average_bits, measure, lambda average: bar.update(task, completed=TOP - average)
        )


def prepared(
    model: nn.Module, images: Tensor, weight_bits: int, act_bits: int, smooth: Smooth, gelu: Gelu, attention: Attention,
    alpha: float, percentile: float, values: bool, integer: bool,
) -> tuple[nn.Module, Tensor, dict[str, Seen]]:  # fmt: skip
    """A smoothed copy of ``model`` with unfitted quantizers, the pictures as they are calibrated on, what sites saw."""
    check(model, images)
    check_choice("smooth", smooth, Smooth)
    if not (0 <= alpha <= 1 and 0.9 <= percentile <= 1):
        raise UserError(f"alpha must be 0 to 1 and percentile 0.9 to 1, got {alpha} and {percentile}")
    with torch.inference_mode(False):
        images = images.detach().clone()
        model = skeleton(model, images[:1], weight_bits, act_bits, gelu, attention, integer)
        smooth_channels(model, images, smooth, alpha, percentile, values)
        return model, images, look(model, images)


def restore(
    model: nn.Module, state: dict[str, Tensor], image: Tensor, weight_bits: int = 4, act_bits: int = 4,
    gelu: Gelu = "opt-m", attention: Attention = "twin", bits: Bits | None = None, fully: bool = False,
    integer: bool = True,
) -> nn.Module:  # fmt: skip
    """The quantized model whose ``state_dict()`` is ``state``, on the architecture of the float ``model``.

    image: any picture [1, channels, height, width]. The other arguments must be those of the ``mptq_vit`` call; after
    a search for bits, those that ``save_bits`` wrote. Raises UserError where the state does not fit.
    """
    _check_fully(fully, attention)
    if bits is not None:
        weight_bits = act_bits = TOP
    with torch.inference_mode(False):
        quantized = skeleton(model, image.detach().clone(), weight_bits, act_bits, gelu, attention, integer)
        apply_bits(quantized, bits or {})
    if fully:
        quantize_fully(quantized)
    load_quantized(quantized, state)
    return quantized


def skeleton(
    model: nn.Module, image: Tensor, weight_bits: int, act_bits: int, gelu: Gelu, attention: Attention, integer: bool
) -> nn.Module:
    """A copy of ``model`` with all quantizers in place, none of them fitted. image: [1, channels, height, width]."""
    check_choice("gelu", gelu, Gelu)
    check_choice("attention", attention, Attention)
    weights = partial(UniformQuantizer, axis=0, symmetric=True)
    products = None if attention == "float" else SYMMETRIC
    policy = Policy(weights, SYMMETRIC, products, SOFTMAX.get(attention, UniformQuantizer), GELU[gelu])
    model = place(model, weight_bits, act_bits, policy, image)
    first = next(iter(sites(model).values()), None)
    if not integer and isinstance(first, QuantConv2d):
        first.input_quantizer = None
    return model


def _check_fully(fully: bool, attention: Attention) -> None:
    if fully and attention == "float":
        raise UserError('fully quantized attention needs quantizers; name an attention other than "float"')
