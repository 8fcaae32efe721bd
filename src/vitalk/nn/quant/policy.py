"""Policies: which quantizer sits where. A method chooses one, and a way to calibrate."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitalk.errors import UserError

from .calibrate import check_choice
from .nonuniform import Log2Quantizer, LogSqrt2Quantizer
from .quantizers import Quantizer, UniformQuantizer
from .sites import (
    QuantConv2d,
    QuantLinear,
    QuantMatMul,
    copied,
    expose,
    fold_batch_norms,
    quantizers,
    sites,
    switched_off,
)

IMAGE_BITS = 8
Make = Callable[[int], Quantizer]  # bits -> a quantizer


PER_ROW: Make = partial(UniformQuantizer, axis=0)
Attention = Literal["log-sqrt2", "log2", "uniform", "float"]
SOFTMAX: dict[str, Make] = {"log-sqrt2": LogSqrt2Quantizer, "log2": Log2Quantizer, "uniform": UniformQuantizer}


@dataclass(frozen=True)
class Policy:
    """What makes the quantizers of a network.

    weights: of linear layers and convolutions. inputs: of theirs. products: of the operands of attention products;
    None leaves both products in float, and timm's fused kernel in place (deployment: they are some 7 % of the work and
    gain nothing as int8 on x86). softmax: of attention probabilities. gelu: of inputs that come from a GELU; None as
    the other inputs. The pictures themselves always have 8 bits, as in the official codes.
    """

    weights: Make = PER_ROW
    inputs: Make = UniformQuantizer
    products: Make | None = UniformQuantizer
    softmax: Make = LogSqrt2Quantizer
    gelu: Make | None = None


def place(model: nn.Module, weight_bits: int, act_bits: int, policy: Policy, image: Tensor | None = None) -> nn.Module:
    """A copy of ``model`` in eval mode with all quantizers in place, none of them fitted.

    BatchNorms behind convolutions are folded into them first. image: [1, channels, height, width]; needed where the
    policy has quantizers for GELU, and finds all such BatchNorms (``fold_batch_norms``).
    Raises UserError for bits outside 2 to 8 and for models that are quantized already.
    """
    for name, bits in (("weight_bits", weight_bits), ("act_bits", act_bits)):
        if bits not in range(2, 9):
            raise UserError(f"{name} must be 2 to 8, got {bits}")
    if quantizers(model):
        raise UserError("the model is quantized already; start from the float model")
    with torch.inference_mode(False):
        model = fold_batch_norms(copied(model).eval(), image)
    model = expose(model, attention=policy.products is not None)
    behind = set() if policy.gelu is None else behind_gelu(model, image)
    first = True
    for name, site in sites(model).items():
        if isinstance(site, QuantMatMul):
            if policy.products is None:  # of a model that was exposed before
                continue
            site.left_quantizer, site.right_quantizer = policy.products(act_bits), policy.products(act_bits)
            continue
        site.weight_quantizer = policy.weights(weight_bits)
        bits = IMAGE_BITS if first and isinstance(site, QuantConv2d) else act_bits
        site.input_quantizer = (policy.gelu if name in behind else policy.inputs)(bits)
        first = False
    for module in model.modules():
        product = getattr(module, "matmul2", None)
        if policy.products is not None and isinstance(product, QuantMatMul):
            product.left_quantizer = policy.softmax(act_bits)
    return model


def skeleton(
    model: nn.Module, weight_bits: int, act_bits: int, attention: Attention = "log-sqrt2", integer: bool = True
) -> nn.Module:
    """A copy of ``model`` with RepQ-ViT's quantizers (arXiv 2212.08254) in place, none of them fitted.

    attention: that of the attention probabilities; "float" leaves both attention products in float. integer: symmetric
    weights. Raises UserError as ``place`` does, and for attention that there is not.
    """
    check_choice("attention", attention, Attention)
    weights = partial(UniformQuantizer, axis=0, symmetric=integer)
    if attention == "float":
        return place(model, weight_bits, act_bits, Policy(weights, products=None))
    return place(model, weight_bits, act_bits, Policy(weights, softmax=SOFTMAX[attention]))


def behind_gelu(model: nn.Module, image: Tensor) -> set[str]:
    """Names of the linear layers and convolutions of an exposed model whose input is what a GELU puts out.

    Found by running ``image`` [1, channels, height, width] through it: views and dropout may stand between.
    """
    put_out: dict[int, Tensor] = {}  # kept alive, so that no other tensor gets their memory
    found: set[str] = set()

    def remember(_: nn.Module, __: Any, out: Tensor) -> None:
        put_out[out.data_ptr()] = out

    def look(name: str, args: tuple[Tensor, ...]) -> None:
        made = put_out.get(args[0].data_ptr())
        if made is not None and made.numel() == args[0].numel():
            found.add(name)

    handles = [m.register_forward_hook(remember) for m in model.modules() if "GELU" in type(m).__name__]
    for name, site in sites(model).items():
        if isinstance(site, QuantLinear | QuantConv2d):
            handles.append(site.register_forward_pre_hook(lambda _, args, name=name: look(name, args)))
    try:
        with switched_off(model), torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return found


def parse_bits(text: str) -> tuple[int, int]:
    """(weight_bits, act_bits) of a string such as "w4a8"; UserError for any other."""
    found = re.fullmatch(r"w([2-8])a([2-8])", text.lower())
    if not found:
        raise UserError(f"bits are written like w8a8 or w4a4, each from 2 to 8, got {text}")
    return int(found[1]), int(found[2])
