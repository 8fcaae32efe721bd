"""The choice of a layer: one scale or several, with or without a zero point, and which scales."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from timm.layers import Attention
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from vitalk.nn.quant import QuantLinear, QuantMatMul, UniformQuantizer, choose, sites, switched_off
from vitalk.nn.quant.search import Seen, operand, shares_of
from vitalk.nn.quant.sites import Site

Choice = Literal["search", "rule", "symmetric", "layer"]
WEIGHTS, INPUTS, PRODUCT = "weight_quantizer", "input_quantizer", ("left_quantizer", "right_quantizer")


def shares(candidates: int) -> tuple[float, ...]:
    """EasyQuant's candidates (arXiv 2006.16669), shares of the whole range from 0.01 to 1.2.

    The nearest to the whole range come first: they win where candidates tie, as all do without a gradient.
    """
    return tuple(sorted((0.01 + 1.19 * i / (candidates - 1) for i in range(candidates)), key=lambda s: abs(s - 1)))


@dataclass(frozen=True)
class Search:
    """How layers choose: see ``q_hyvit``. shares: candidates, of the whole range."""

    choice: Choice
    integer: bool
    rounds: int
    shares: tuple[float, ...]


Spans = dict[str, Tensor]  # operand -> something with its least and largest values, along the axis of its channels


@torch.no_grad()
def spans(model: nn.Module, images: Tensor, batch: int = 8) -> dict[str, Spans]:
    """For each site the range of every channel (head) of what it sees of ``images`` in float, and its weight.

    All pictures count here, which keeps scales for channels from following the few that layers are judged by.
    """
    found: dict[str, Spans] = {}

    def note(name: str, site: Site, args: tuple[Tensor, ...]) -> None:
        kept = found.setdefault(name, {} if isinstance(site, QuantMatMul) else {WEIGHTS: site.weight})
        for which, x in zip(PRODUCT if isinstance(site, QuantMatMul) else (INPUTS,), args, strict=False):
            x = x.flatten(0, -2) if isinstance(site, QuantLinear) else x
            others = [axis for axis in range(x.dim()) if axis != 1]
            ends = torch.cat([x.amin(others, keepdim=True), x.amax(others, keepdim=True)])
            both = torch.cat([kept[which], ends]) if which in kept else ends
            kept[which] = torch.cat([both.amin(0, keepdim=True), both.amax(0, keepdim=True)])

    handles = [
        site.register_forward_pre_hook(lambda site, args, name=name: note(name, site, args))
        for name, site in sites(model).items()
    ]
    try:
        with switched_off(model):
            for chunk in images.split(batch):
                model(chunk)
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def fit(site: Site, seen: Seen, span: Spans, how: Search, parts: int = 1) -> None:
    """Give ``site`` the quantizers that put out what it did in float, ``seen``, with the least error.

    Every form starts at its whole range; the forms of the activations are compared first, next to weights in their
    finest, then those of the weights; the winners are searched in turns (arXiv 2303.12557; the order is ours).
    span: its ranges, of ``spans``. parts: runs of rows that share a scale where a linear weight has one a layer by the
    rule: 3 for a joint qkv. Quantizers that are not uniform are fitted and left.
    """
    names = PRODUCT if isinstance(site, QuantMatMul) else (WEIGHTS, INPUTS)
    forms = {}
    for which in names:
        x = operand(site, seen, which)
        if not isinstance(getattr(site, which), UniformQuantizer):
            getattr(site, which).fit(x)
            continue
        forms[which] = forms_of(site, which, x.dim(), how.choice, how.integer, parts)
        for form in forms[which]:
            start(form, x, span[which])
        setattr(site, which, forms[which][-1])
    for which in reversed(forms):
        if len(forms[which]) > 1:
            error = partial(_least_error, site, seen, which, span[which], how.shares)
            setattr(site, which, min(forms[which], key=error))
    in_turns(site, seen, span, how)


def start(quantizer: UniformQuantizer, x: Tensor, span: Tensor) -> None:
    """Be fitted to x with the whole range of ``span``."""
    quantizer.take(x, *(found[0] for found in shares_of(quantizer, span, (1.0,))))


@torch.no_grad()
def in_turns(site: Site, seen: Seen, span: Spans, how: Search) -> None:
    """Search the uniform quantizers of a site, all of them fitted, in turns, over shares of ``span``."""
    for _ in range(how.rounds):
        for which in span:
            if isinstance(quantizer := getattr(site, which), UniformQuantizer):
                choose(site, seen, which, shares_of(quantizer, span[which], how.shares))


def _least_error(
    site: Site, seen: Seen, which: str, span: Tensor, tried: tuple[float, ...], form: UniformQuantizer
) -> float:
    setattr(site, which, form)
    return float(choose(site, seen, which, shares_of(form, span, tried)).mean())


def forms_of(
    site: Site, which: str, dims: int, choice: Choice, integer: bool, parts: int = 1
) -> list[UniformQuantizer]:
    """The quantizers that compete for an operand; the simplest first, which wins ties.

    rule: as released, symmetric throughout; several scales for the weights of convolutions, the inputs of grouped ones
    and the heads of products. symmetric, layer, search: what is named alone, or both schemes and both granularities.
    integer: symmetric weights, and several scales for an activation only where they factor out of its sums: for the
    groups of a convolution, not for the channels of a dense layer.
    """
    weight, product = which == WEIGHTS, isinstance(site, QuantMatMul)
    grouped = getattr(site, "groups", 1) > 1
    splits = weight or grouped or (not integer and (not product or dims == 4))
    if choice == "rule":
        granularities, schemes = (
            [splits and (product or grouped or (weight and not isinstance(site, QuantLinear)))],
            [True],
        )
    else:
        granularities = [False, True] if splits and choice != "layer" else [False]
        schemes = [True] if choice == "symmetric" or (integer and weight) else [True, False]
    make = partial(_quantizer, site, which, integer, parts if choice == "rule" else 1)
    return [make(fine, symmetric) for fine in granularities for symmetric in schemes]


def _quantizer(site: Site, which: str, integer: bool, parts: int, fine: bool, symmetric: bool) -> UniformQuantizer:
    make = partial(UniformQuantizer, getattr(site, which).bits, symmetric=symmetric)
    if which == WEIGHTS:  # one for the layer is one a row too, all of them equal, as runtimes like it
        return make(axis=0, groups=None if fine else parts)
    if not fine:
        return make()
    if isinstance(site, QuantLinear):
        return make(axis=-1)
    return make(axis=1, groups=site.groups if integer else None)


def joint_projections(model: nn.Module) -> set[str]:
    """Names of the linear layers that put out queries, keys and values one after the other."""
    kinds = Attention | WindowAttention
    found = {id(module.qkv) for module in model.modules() if isinstance(module, kinds) and hasattr(module, "qkv")}
    return {name for name, site in sites(model).items() if id(site) in found}


def choices(model: nn.Module) -> dict[str, str]:
    """What was chosen for each uniform quantizer of activations and weights, by name: "channel asymmetric" and so on.

    A product's scales are for its heads, not for channels.
    """
    found = {}
    for name, site in sites(model).items():
        for which in PRODUCT if isinstance(site, QuantMatMul) else (WEIGHTS, INPUTS):
            if isinstance(quantizer := getattr(site, which), UniformQuantizer):
                several = quantizer.axis is not None and (quantizer.groups or 2) > 1
                finer = "head" if isinstance(site, QuantMatMul) else "channel"
                scheme = "symmetric" if quantizer.symmetric else "asymmetric"
                found[f"{name}.{which}"] = f"{finer if several else 'layer'} {scheme}"
    return found
