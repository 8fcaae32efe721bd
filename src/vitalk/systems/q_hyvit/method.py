"""Q-HyViT: where the quantizers sit, and the calibration, layer by layer, with the bridges kept quantized."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch
from rich.progress import track
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.quant import (
    Log2Quantizer,
    Policy,
    Quantizer,
    TwinUniformQuantizer,
    UniformQuantizer,
    observe,
    place,
    quantizers,
    sites,
)
from vitalk.nn.quant.calibrate import check, check_choice
from vitalk.nn.quant.search import Seen, decided

from .bridges import order_and_bridges
from .choice import Choice, Search, fit, joint_projections, shares, spans

Attention = Literal["uniform", "twin-uniform", "log2", "float"]
Metric = Literal["hessian", "mse"]
Loss = Callable[[Tensor], Tensor]
SOFTMAX: dict[str, type[Quantizer]] = {
    "uniform": UniformQuantizer,
    "twin-uniform": TwinUniformQuantizer,
    "log2": Log2Quantizer,
}


def q_hyvit(
    model: nn.Module,
    images: Tensor,
    weight_bits: int = 8,
    act_bits: int = 8,
    choice: Choice = "search",
    metric: Metric = "hessian",
    bridges: bool = True,
    rounds: int = 3,
    candidates: int = 101,
    pictures: int = 8,
    attention: Attention = "uniform",
    integer: bool = True,
    progress: bool = False,
) -> nn.Module:
    """A copy of ``model``, quantized (fake quantization, eval mode): a timm hybrid, ViT or Swin, or a ``Trunk``.

    images: calibration pictures [count, channels, height, width], normalised as in training; the paper takes 32.
    weight_bits, act_bits: 2 to 8; the pictures themselves always have 8.
    choice: "search" chooses for each operand one scale or one a channel (a head), symmetric or asymmetric, as the paper
    says; "rule" is what its code does: symmetric throughout, several scales for convolutions' weights, the inputs of
    grouped ones and the heads of products. "symmetric" and "layer" search within one scheme or one granularity.
    metric: what output errors are weighted by, squared gradients or nothing. bridges: keep bridge blocks quantized
    while what runs after them is calibrated, and fit them to what they put out in a network that is float altogether.
    rounds: of searching the two operands of a layer in turns; candidates: scales for each. pictures: that convolutions
    and products are judged by (the code: all); linear layers are by 512 tokens, and ranges are those of all pictures.
    attention: quantizer of the attention probabilities; "twin-uniform" is PTQ4ViT's, "log2" FQ-ViT's; "float" leaves
    both attention products in float, and timm's fused kernel in place (deployment).
    integer: symmetric weights, and channel-wise activations only where they factor out; False lets every layer choose.
    progress: show a progress bar.

    Raises UserError for bits, pictures, weights and settings that cannot be.
    """
    check(model, images)
    check_choice("choice", choice, Choice)
    check_choice("metric", metric, Metric)
    check_choice("attention", attention, Attention)
    for name, count, least in (("rounds", rounds, 0), ("candidates", candidates, 2), ("pictures", pictures, 1)):
        if count < least:
            raise UserError(f"{name} must be {least} or more, got {count}")
    with torch.inference_mode(False):
        images = images.detach().clone()
        policy = Policy(products=None) if attention == "float" else Policy(softmax=SOFTMAX[attention])
        model = place(model, weight_bits, act_bits, policy, images[:1])
        order, found = order_and_bridges(model, images[:1])
        kept = [name for bridge in found for name in bridge] if bridges else []
        how = Search(choice, integer, rounds, shares(candidates))
        joint, ranges = joint_projections(model), spans(model, images)
        layers = _seen(model, images, order, kept, decided if metric == "hessian" else None, pictures)
        for name, seen in track(layers, "calibrating", len(order), disable=not progress):
            fit(sites(model)[name], seen, ranges[name], how, 3 if name in joint else 1)
    for name, quantizer in quantizers(model).items():  # what the pass never reaches stays in float
        quantizer.enabled = name.rpartition(".")[0] in order
    return model


def _seen(
    model: nn.Module, images: Tensor, order: list[str], kept: list[str], loss: Loss | None, pictures: int
) -> Iterator[tuple[str, Seen]]:
    """Each site in turn with what it sees: float inputs, but behind the sites ``kept`` what these put out quantized.

    These must be fitted by then. What they themselves are to put out is what they do in a network that is float
    altogether: the block is reconstructed. (The paper leaves open where this ends; that it is at the bridge is ours.)
    """
    targets = observe(model, images, loss, pictures=pictures, only=kept) if kept else {}
    done: list[str] = []
    for part in _parts(order, kept):
        wanted = None if all(name in targets for name in part) else loss
        seen = observe(model, images, wanted, pictures=pictures, only=part, quantized=done)
        for name in part:
            look = seen.pop(name)
            if name in targets:
                look = replace(targets.pop(name), inputs=look.inputs)
            if look.grad is not None:  # only their ratios matter, and squares of small ones vanish
                look.grad = look.grad / look.grad.abs().amax().clamp_min(torch.finfo(look.grad.dtype).tiny)
            yield name, look
        done += [name for name in part if name in kept]


def _parts(order: list[str], kept: list[str]) -> list[list[str]]:
    """``order`` cut behind each of ``kept``."""
    ends = [0, *(i + 1 for i, name in enumerate(order) if name in kept), len(order)]
    return [order[a:b] for a, b in pairwise(ends) if a < b]
