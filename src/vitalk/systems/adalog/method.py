"""AdaLog: which quantizer sits where, and the order in which their scales, zero points and bases are found."""

from functools import partial
from typing import Literal

import torch
from rich.progress import Progress
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.quant import (
    AdaptiveLogQuantizer,
    Policy,
    QuantConv2d,
    Quantizer,
    QuantLinear,
    TwinUniformQuantizer,
    UniformQuantizer,
    find_pairs,
    fold,
    load_quantized,
    observe,
    place,
    quantizers,
    sites,
)
from vitalk.nn.quant.calibrate import check, check_choice
from vitalk.nn.quant.nonuniform import LEAST_GELU
from vitalk.nn.quant.sites import Site

from .rounding import tune
from .search import ZERO_POINTS, Search, search_site, search_uniform

Kind = Literal["adalog", "log2", "log-sqrt2", "uniform", "twin", "float"]
DEFAULT = Search()


def adalog(
    model: nn.Module,
    images: Tensor,
    weight_bits: int = 4,
    act_bits: int = 4,
    attention: Kind = "adalog",
    gelu: Kind | None = None,
    integer: bool = True,
    search: Search = DEFAULT,
    fold_shift: bool = True,
    reconstruct_steps: int = 0,
    reconstruct_images: Tensor | None = None,
    progress: bool = False,
) -> nn.Module:
    """A copy of ``model``, quantized (fake quantization, eval mode): any timm ViT, DeiT or Swin, or a ``Trunk``.

    images: calibration pictures [count, channels, height, width], normalised as in training; the paper takes 32.
    weight_bits, act_bits: 2 to 8; the pictures themselves always have 8.
    attention: quantizer of the attention probabilities; the others are the paper's ablation ("twin" is PTQ4ViT's), and
    "float" leaves both attention products in float, with timm's fused kernel in place (deployment).
    gelu: of inputs that come from a GELU; "float" leaves them unquantized. None is "adalog", except in deployment
    (``integer`` and ``attention="float"``), where it is "uniform": only that multiplies as int8.
    integer: symmetric weights, and one scale for all heads, which runtimes have fast kernels for; False is the paper's
    protocol, asymmetric weights and a scale for each head.
    search: how much is tried; ``Search().plain`` is the plain grid.
    fold_shift: put the shift of GELU's quantizer into the next bias ("bias reparameterization"). The quantized outputs
    stay what they are, but with its quantizers off the network is then no longer the float one.
    reconstruct_steps: of learning roundings of weights and scales of activations, unit by unit; the paper takes 20000.
    reconstruct_images: for that, like ``images``, which are the default; the paper takes 1024.
    progress: show progress bars.

    Raises UserError for bits, pictures, weights and quantizers that cannot be.
    """
    check(model, images)
    if reconstruct_steps < 0:
        raise UserError(f"reconstruct_steps must be 0 or more, got {reconstruct_steps}")
    tuning = images if reconstruct_images is None else reconstruct_images
    check(model, tuning)
    with torch.inference_mode(False), torch.enable_grad():
        images = images.detach().clone()
        model = skeleton(model, images[:1], weight_bits, act_bits, attention, gelu, integer)
        fold_norms(model, images, search)
        search_all(model, images, search, progress)
        if reconstruct_steps:
            tune(model, tuning.detach().clone(), reconstruct_steps, progress)
        if fold_shift:
            for site in shifted(model):
                fold_into_bias(site)
    return model


def restore(
    model: nn.Module,
    state: dict[str, Tensor],
    image: Tensor,
    weight_bits: int = 4,
    act_bits: int = 4,
    attention: Kind = "adalog",
    gelu: Kind | None = None,
    integer: bool = True,
    fold_shift: bool = True,
) -> nn.Module:
    """The quantized model whose ``state_dict()`` is ``state``, on the architecture of the float ``model``.

    image: any picture, [1, channels, height, width]. The other arguments must be those of the ``adalog`` call. Raises
    UserError where the state does not fit.
    """
    quantized = skeleton(model, image, weight_bits, act_bits, attention, gelu, integer)
    load_quantized(quantized, state)
    for quantizer in quantizers(quantized).values():
        quantizer.enabled = quantizer.fitted
    for site in shifted(quantized) if fold_shift else ():
        site.input_quantizer.folded = True
    return quantized


def skeleton(
    model: nn.Module, image: Tensor, weight_bits: int, act_bits: int, attention: Kind, gelu: Kind | None, integer: bool
) -> nn.Module:
    """A copy of ``model`` with all quantizers in place, none of them fitted. image: [1, channels, height, width]."""
    if gelu is None:
        gelu = "uniform" if integer and attention == "float" else "adalog"
    check_choice("attention", attention, Kind)
    check_choice("gelu", gelu, Kind)
    policy = Policy(
        weights=partial(UniformQuantizer, axis=0, symmetric=integer),
        products=None if attention == "float" else partial(UniformQuantizer, axis=None if integer else 1),
        softmax=partial(_make, attention, False),
        gelu=partial(_make, gelu, True),
    )
    return place(model, weight_bits, act_bits, policy, image)


def _make(kind: Kind, behind_gelu: bool, bits: int) -> Quantizer:
    if kind == "twin":
        return TwinUniformQuantizer(bits, signed=behind_gelu)
    if kind in ("uniform", "float"):
        quantizer = UniformQuantizer(bits)
        quantizer.enabled = kind == "uniform"
        return quantizer
    quantizer = AdaptiveLogQuantizer(bits, LEAST_GELU if behind_gelu else 0.0)
    if kind == "log2":
        quantizer.bases = (quantizer.resolution,)
    elif kind == "log-sqrt2":
        quantizer.bases, quantizer.smooth = (quantizer.resolution / 2,), True  # sqrt(2) itself, no rounded mantissa
    return quantizer


def fold_norms(model: nn.Module, images: Tensor, search: Search) -> None:
    """Fold channel scales of inputs behind LayerNorms into them (RepQ-ViT, arXiv 2212.08254), the zero point rounded.

    The channel scales are searched for on the inputs themselves; what remains, one scale a tensor, is only a start.
    """
    names = {site: name for name, site in sites(model).items()}
    pairs = find_pairs(model, images[:1])
    if not pairs:
        return
    seen = observe(model, images, rows=search.rows, pictures=1)
    for norm, linears in pairs:
        x = seen[names[linears[0]]].inputs[0]
        wide = UniformQuantizer(linears[0].input_quantizer.bits, axis=-1, covers_zero=False)
        search_uniform(wide, x, search, min(ZERO_POINTS, 2**wide.bits))
        linears[0].input_quantizer = wide
        fold(norm, linears)


def search_all(model: nn.Module, images: Tensor, search: Search, progress: bool = False) -> None:
    """Search the quantizers of every site by itself, all others off; those never reached are switched off.

    That of the pictures, whose 8 bits lose next to nothing, is only fitted (the official code does not quantize them).
    """
    seen = observe(model, images, rows=search.rows, pictures=search.pictures)
    first = next(iter(sites(model)), None)
    with Progress(disable=not progress) as bar:
        for name, site in bar.track(sites(model).items(), description="searching"):
            if name in seen:
                given = ()
                if name == first and isinstance(site, QuantConv2d):
                    site.input_quantizer.fit(seen[name].inputs[0])
                    given = ("input_quantizer",)
                search_site(site, seen.pop(name), search, given)
            else:
                for quantizer in quantizers(site).values():
                    quantizer.enabled = False


def shifted(model: nn.Module) -> list[Site]:
    """Sites whose input is shifted so that a bias can undo it: linear layers, and convolutions that pad nothing."""
    return [
        site
        for site in sites(model).values()
        if isinstance(quantizer := getattr(site, "input_quantizer", None), AdaptiveLogQuantizer)
        and quantizer.enabled
        and quantizer.shift
        and (isinstance(site, QuantLinear) or (isinstance(site, QuantConv2d) and site.padding in ((0, 0), "valid")))
    ]


@torch.no_grad()
def fold_into_bias(site: Site) -> None:
    """Leave the shift t of a site's input out, and take t times the sums of its quantized weights from its bias."""
    moved = site.input_quantizer.shift * site.weight_quantizer(site.weight).flatten(1).sum(1)
    site.bias = nn.Parameter(-moved if site.bias is None else site.bias - moved)
    site.input_quantizer.folded = True
