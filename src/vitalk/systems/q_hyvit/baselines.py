"""What Q-HyViT is compared with, from the same parts: min-max, RepQ-ViT's and PTQ4ViT's ways."""

from functools import partial

import torch
from torch import Tensor, nn

from vitalk.nn.quant import (
    MINMAX,
    Policy,
    TwinUniformQuantizer,
    UniformQuantizer,
    calibrate,
    fold,
    observe,
    place,
    sites,
    widen,
)
from vitalk.nn.quant.search import decided, operand

from .choice import Search, in_turns, shares, spans, start


def min_max(model: nn.Module, images: Tensor, weight_bits: int, act_bits: int) -> nn.Module:
    """One asymmetric scale a tensor, for weights too, from the least value to the largest."""
    tensor = partial(UniformQuantizer, ranges=MINMAX)
    policy = Policy(partial(tensor, axis=0, groups=1), tensor, tensor, tensor)
    placed = place(model, weight_bits, act_bits, policy, images[:1])
    calibrate(placed, images)
    return placed


def repq_style(model: nn.Module, images: Tensor, weight_bits: int, act_bits: int) -> nn.Module:
    """RepQ-ViT (arXiv 2212.08254) by its paper's protocol: percentiles, folded LayerNorm scales, log-sqrt2 softmax."""
    placed = place(model, weight_bits, act_bits, Policy(), images[:1])
    pairs = widen(placed, images[:1])
    calibrate(placed, images)
    for norm, linears in pairs:
        fold(norm, linears, integer=False)
    return placed


def ptq4vit_style(
    model: nn.Module,
    images: Tensor,
    weight_bits: int,
    act_bits: int,
    rounds: int = 3,
    candidates: int = 101,
    pictures: int = 8,
) -> nn.Module:
    """PTQ4ViT (arXiv 2111.12293): symmetric scales searched for the output, twin-uniform softmax and GELU.

    All layers see float inputs; weights have a scale a row, activations one a tensor, products one a head.
    """
    tensor = partial(UniformQuantizer, symmetric=True, ranges=MINMAX)
    policy = Policy(
        partial(tensor, axis=0), tensor, partial(tensor, axis=1), TwinUniformQuantizer,
        partial(TwinUniformQuantizer, signed=True),
    )  # fmt: skip
    with torch.inference_mode(False):
        images = images.detach().clone()
        placed = place(model, weight_bits, act_bits, policy, images[:1])
        all_sites, ranges = sites(placed), spans(placed, images)
        how = Search("symmetric", False, rounds, shares(candidates))
        for name, seen in observe(placed, images, decided, pictures=pictures).items():
            site = all_sites[name]
            for which in ranges[name]:
                quantizer, x = getattr(site, which), operand(site, seen, which).detach()
                if isinstance(quantizer, UniformQuantizer):
                    start(quantizer, x, ranges[name][which].detach())
                else:
                    quantizer.fit(x)
            in_turns(site, seen, ranges[name], how)
    return placed
