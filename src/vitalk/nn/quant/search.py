"""Scales that are searched for the output of a site: all candidates in few passes, errors weighted by gradients."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .quantizers import SMALLEST_SCALE, Quantizer, UniformQuantizer
from .sites import QuantLinear, QuantMatMul, Site, sites, switched_off

ROWS = 512  # tokens that a linear layer is judged by
PICTURES = 8  # pictures that convolutions and products are judged by
AT_ONCE = 2**25  # output values that are computed in one pass
STEPS = tuple(0.01 + 1.19 * i / 100 for i in range(101))  # shares of the largest value: EasyQuant's, arXiv 2006.16669

# Operands of a site: the quantizer's name, and the site's other one.
OTHER = {
    "input_quantizer": "weight_quantizer",
    "weight_quantizer": "input_quantizer",
    "left_quantizer": "right_quantizer",
    "right_quantizer": "left_quantizer",
}


@dataclass
class Seen:
    """What a site saw and put out while the network computed in float.

    inputs: the operands: [rows, in] of a linear layer (a sample of its tokens), the pictures' tensors of the others.
    out: what came out, the same rows or pictures. grad: the loss's gradient there, or None.
    """

    inputs: tuple[Tensor, ...]
    out: Tensor
    grad: Tensor | None = None


def decided(logits: Tensor) -> Tensor:
    """The cross-entropy of the classes that the network itself decides for, summed: what gradients are taken of.

    Their squares estimate the Fisher information. (Ours; the papers take the KL divergence from the float network,
    whose gradient is zero as long as nothing is quantized.)
    """
    return F.cross_entropy(logits, logits.argmax(1), reduction="sum")


def observe(
    model: nn.Module,
    images: Tensor,
    loss: Callable[[Tensor], Tensor] | None = None,
    rows: int = ROWS,
    pictures: int = PICTURES,
    batch: int = 8,
    only: Collection[str] | None = None,
    quantized: Collection[str] = (),
) -> dict[str, Seen]:
    """What every site of ``model`` sees of ``images`` [pictures, channels, height, width], in float.

    loss: logits -> scalar; with it gradients are kept too, with respect to what each site puts out. rows: tokens kept
    of a linear layer, evenly spaced ones of all pictures. pictures: that convolutions and products keep.
    only: the sites that are looked at, by name; None for all. quantized: sites that stay quantized meanwhile.
    A site that is called several times a pass keeps its last call.
    """
    looked_at = {name: site for name, site in sites(model).items() if only is None or name in only}
    kept: dict[str, list[tuple[tuple[Tensor, ...], Tensor]]] = {name: [] for name in looked_at}

    def keep(name: str, site: Site, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        if loss is not None and not out.requires_grad:
            out = out.detach().requires_grad_()
        if out.requires_grad:
            out.retain_grad()
        latest[name] = (site, tuple(a.detach() for a in args), out)
        return out.clone()  # an activation may work in place

    latest: dict[str, Any] = {}
    handles = [
        site.register_forward_hook(lambda site, args, out, name=name: keep(name, site, args, out))
        for name, site in looked_at.items()
    ]
    try:
        with switched_off(model, quantized), torch.inference_mode(False), torch.set_grad_enabled(loss is not None):
            for chunk in images.split(batch):
                latest.clear()
                logits = model(chunk.detach().clone())
                if loss is not None:
                    model.zero_grad()
                    loss(logits).backward()
                for name, (site, args, out) in latest.items():
                    kept[name].append(_sample(site, args, out, -(-rows * len(chunk) // len(images)), pictures))
        model.zero_grad()
    finally:
        for handle in handles:
            handle.remove()
    return {name: _joined(parts, pictures) for name, parts in kept.items() if parts}


def _sample(site: Site, args: tuple[Tensor, ...], out: Tensor, rows: int, pictures: int) -> Any:
    tensors = [*args, out.detach(), *([] if out.grad is None else [out.grad])]
    if isinstance(site, QuantLinear):
        tensors = [t.flatten(0, -2) for t in tensors]
        chosen = torch.linspace(0, len(tensors[0]) - 1, min(rows, len(tensors[0]))).long()
        return len(args), [t[chosen] for t in tensors]
    return len(args), [t[:pictures].clone() for t in tensors]


def _joined(parts: list[Any], pictures: int) -> Seen:
    inputs = parts[0][0]
    tensors = [torch.cat(column) for column in zip(*(tensors for _, tensors in parts), strict=True)]
    if tensors[0].dim() > 2:
        tensors = [t[:pictures] for t in tensors]
    return Seen(tuple(tensors[:inputs]), tensors[inputs], tensors[inputs + 1] if len(tensors) > inputs + 1 else None)


def operand(site: Site, seen: Seen, which: str) -> Tensor:
    """What the quantizer ``which`` of a site rounds: its weight, or what it saw."""
    if which == "weight_quantizer":
        return site.weight
    return seen.inputs[1] if which == "right_quantizer" else seen.inputs[0]


@torch.no_grad()
def errors(site: Site, seen: Seen, which: str, candidates: tuple[Tensor, ...]) -> Tensor:
    """How far the output is from ``seen.out`` with each candidate for the quantizer ``which`` of ``site``.

    The other operand goes through its own quantizer where that one is fitted and switched on. Squared errors, weighted
    by squared gradients where there are any (arXiv 2111.12293), averaged.
    candidates: what ``trial`` of the quantizer takes, each [candidates] or [candidates, channels or groups or heads].
    Returns [candidates], or [candidates, channels ...] where each of these acts on outputs of its own: scales of
    weights, of the heads of a product, and of the inputs of a depthwise convolution.
    """
    quantizer: Quantizer = getattr(site, which)
    mine, other = operand(site, seen, which), operand(site, seen, OTHER[which])
    partner = getattr(site, OTHER[which])
    if partner is not None and partner.fitted and partner.enabled:
        other = partner.quantize(other)
    parts = _parts(site, which, candidates)
    step = max(AT_ONCE // max(seen.out.numel(), mine.numel()), 1)
    found = []
    for few in zip(*(c.split(step) for c in candidates), strict=True):
        off = _outputs(site, which, quantizer.trial(mine, *few), other).sub_(seen.out)
        if seen.grad is not None:
            off.mul_(seen.grad)
        if parts == 1:
            found.append(off.square_().flatten(1).mean(1))
        else:  # [candidates, rows, out] or [candidates, pictures, out or heads, ...]
            by_channel = off.square_().movedim(-1 if isinstance(site, QuantLinear) else 2, 1).flatten(2).mean(2)
            found.append(by_channel.unflatten(1, (parts, -1)).mean(2))
    return torch.cat(found)


def _parts(site: Site, which: str, candidates: tuple[Tensor, ...]) -> int:
    scales = candidates[0].shape[1] if candidates[0].dim() == 2 else 1
    apart = which == "weight_quantizer" or isinstance(site, QuantMatMul)
    return scales if apart or getattr(site, "groups", 1) == scales else 1


def _outputs(site: Site, which: str, tried: Tensor, other: Tensor) -> Tensor:
    """What the site puts out, [candidates, *out], with one operand in several versions."""
    if isinstance(site, QuantMatMul):
        return tried @ other if which == "left_quantizer" else other @ tried
    if isinstance(site, QuantLinear):
        x, weight = (other, tried) if which == "weight_quantizer" else (tried, other)
        out = x @ weight.transpose(-2, -1)
        return out if site.bias is None else out.add_(site.bias)
    if which == "input_quantizer":
        return site._conv_forward(tried.flatten(0, 1), other, site.bias).unflatten(0, tried.shape[:2])
    return torch.func.vmap(lambda weight: site._conv_forward(other, weight, site.bias))(tried)


def choose(site: Site, seen: Seen, which: str, candidates: tuple[Tensor, ...]) -> Tensor:
    """Fit the quantizer ``which`` with the candidate of least ``errors``; that error, [] or [channels ...].

    Channels that act on outputs of their own choose by themselves, all others the same candidate number.
    """
    found = errors(site, seen, which, candidates)
    best = found.argmin(0)
    taken = [c[best] if best.dim() == 0 else c.gather(0, best[None])[0] for c in candidates]
    getattr(site, which).take(operand(site, seen, which), *taken)
    return found.min(0).values


@torch.no_grad()
def alternate(
    site: Site, seen: Seen, names: tuple[str, str], rounds: int = 3, shares: tuple[float, ...] = STEPS
) -> None:
    """Search the two quantizers ``names`` of a site in turns (EasyQuant, arXiv 2006.16669; PTQ4ViT, arXiv 2111.12293).

    Each starts at its ``fit``; the candidates are shares of the largest range. Quantizers that are not uniform stay as
    they are fitted.
    """
    for name in names:
        if (quantizer := getattr(site, name)) is not None and not quantizer.fitted:
            quantizer.fit(operand(site, seen, name))
    for _ in range(rounds):
        for name in names:
            if isinstance(quantizer := getattr(site, name), UniformQuantizer):
                choose(site, seen, name, shares_of(quantizer, operand(site, seen, name), shares))


@torch.no_grad()
def shares_of(quantizer: UniformQuantizer, x: Tensor, shares: tuple[float, ...] = STEPS) -> tuple[Tensor, Tensor]:
    """Scales and zero points of ranges that are shares of the whole range of x, and the fitted one: [candidates, n]."""
    rows = quantizer.rows(x)
    if quantizer.symmetric:
        low = high = rows.abs().amax(1)
        span = 2 * high / (2 * quantizer.high + 1)
    else:
        low, high = rows.amin(1), rows.amax(1)
        if quantizer.covers_zero:
            low, high = low.clamp_max(0), high.clamp_min(0)
        span = (high - low) / quantizer.high
    parts = torch.tensor(shares, dtype=rows.dtype, device=rows.device)[:, None]
    scales = (parts * span).clamp_min(SMALLEST_SCALE)
    zeros = torch.zeros_like(scales) if quantizer.symmetric else (-low * parts / scales).round()
    if quantizer.fitted:
        repeats = quantizer.scale.numel() // scales.shape[1]
        own = [p.reshape(-1)[::repeats][None] for p in (quantizer.scale, quantizer.zero_point)]
        scales, zeros = torch.cat([scales, own[0]]), torch.cat([zeros, own[1]])
    return scales, zeros
