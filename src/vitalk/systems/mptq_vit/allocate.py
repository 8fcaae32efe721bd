"""Greedy mixed precision: bits are taken away one by one where that harms least for what it saves."""

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.files import write_whole
from vitalk.nn.quant import QuantConv2d, Quantizer, QuantMatMul, sites, switched_off
from vitalk.nn.quant.describe import Bits, bits_of, costs, set_bits
from vitalk.nn.quant.search import Seen, operand

Item = tuple[str, str]  # a site's name, and "weight" or "activation"
Harm = Callable[[Mapping[Item, int], Item], float]  # (bits now, item) -> how much the loss grows with a bit less
Measure = Literal["cached", "exact", "proxy"]
QUANTIZERS = {"weight": ("weight_quantizer",), "activation": ("input_quantizer", "left_quantizer", "right_quantizer")}
TOP, LEAST = 8, 2  # bits that every item starts at, and that it keeps
BATCH = 32  # pictures


@dataclass(frozen=True)
class Step:
    """One bit less: of what, how many it has now, by how much the loss grew, and the average bits from there on."""

    item: Item
    bits: int
    harm: float
    average: float


def descend(
    shares: Mapping[Item, float], target: float, harm: Harm, top: int = TOP, least: int = LEAST,
    tell: Callable[[float], object] = lambda average: None,
) -> tuple[dict[Item, int], list[Step]]:  # fmt: skip
    """Bits of every item so that their average, weighed by ``shares`` (which sum to 1), is ``target`` at most.

    All start at ``top``; each step takes one bit from the item of least harm / share (arXiv 2401.14895; the exact score
    is unconfirmed). Harm below zero is noise and counts as zero. Among equals the largest share goes first, then the
    order of ``shares`` decides. tell: called with the average at each step.
    Returns the bits and the steps; the last step crosses the target.
    Raises UserError where the target is below ``least``.
    """
    if not least <= target <= top:
        raise UserError(f"the average must be from {least} to {top} bits, got {target}")
    bits, average, steps = dict.fromkeys(shares, top), float(top), []
    while average > target + 1e-9 and (able := [item for item in shares if bits[item] > least]):
        harms = {item: max(harm(bits, item), 0.0) for item in able}
        item = min(able, key=lambda item: (harms[item] / shares[item], -shares[item]))
        bits[item] -= 1
        average -= shares[item]
        steps.append(Step(item, bits[item], harms[item], average))
        tell(average)
    return bits, steps


def shares_of_items(model: nn.Module, image: Tensor) -> dict[Item, float]:
    """How much each item of a quantized ``model`` weighs in its average bits; they sum to 1.

    The convention: weights are half of it, each site by its parameters; activations are the other half, each site by
    how many numbers go into it for one picture, both operands of an attention product counted. The pictures
    themselves, what LayerNorm and softmax take, and what is left in float do not count.
    image: [1, channels, height, width].
    """
    found, cost = sites(model), costs(model, image)
    first = next(iter(found), None)
    sizes: dict[str, dict[Item, int]] = {"weight": {}, "activation": {}}
    for kind, names in QUANTIZERS.items():
        for name, site in found.items():
            pictures = kind == "activation" and name == first and isinstance(site, QuantConv2d)
            if name in cost and not pictures and any(_active(site, which) for which in names):
                sizes[kind][name, kind] = cost[name].params if kind == "weight" else cost[name].inputs
    kinds = [by_item for by_item in sizes.values() if by_item]
    return {item: n / sum(by_item.values()) / len(kinds) for by_item in kinds for item, n in by_item.items()}


def _active(site: nn.Module, which: str) -> bool:
    quantizer = getattr(site, which, None)
    return quantizer is not None and quantizer.enabled


def average_of(model: nn.Module, image: Tensor) -> float:
    """The average bits of a quantized ``model``, by the convention of ``shares_of_items``."""
    bits = bits_of(model)
    return sum(
        share * bits[name][kind == "activation"] for (name, kind), share in shares_of_items(model, image).items()
    )


def allocate(
    model: nn.Module, images: Tensor, seen: dict[str, Seen], average: float, measure: Measure = "cached",
    tell: Callable[[float], object] = lambda average: None,
) -> list[Step]:  # fmt: skip
    """The steps that lead a ``model`` with quantizers in place to ``average`` bits; the model stays as it is.

    images: [pictures, channels, height, width]; seen: what the sites saw of them (``observe``).
    measure: what harm is. "cached": the growth of the KL divergence from the float network's logits when all other
    items have 8 bits, measured once for each item and number of bits. "exact": measured anew in the network as it
    stands, for every item at every step, which takes some fifty times as long. "proxy": the growth of the site's own
    output error, weighted by squared gradients, for which the network does not run at all.
    """
    shares = shares_of_items(model, images[:1])
    rungs = Rungs(copy.deepcopy(model), seen, shares)
    return descend(shares, average, HARMS[measure](rungs, images), tell=tell)[1]


def bits_after(steps: Iterable[Step], average: float = LEAST) -> Bits:
    """(weight, activation) bits of the sites that lost any, after the first of ``steps`` that meet ``average``.

    Of an attention product only the second number means anything.
    """
    bits: dict[str, tuple[int, int]] = {}
    for step in steps:
        (name, kind), (weight, activation) = step.item, bits.get(step.item[0], (TOP, TOP))
        bits[name] = (step.bits, activation) if kind == "weight" else (weight, step.bits)
        if step.average <= average + 1e-9:
            break
    return bits


class Rungs:
    """A network of its own, each of whose items can be set to any number of bits at once: quantizers are kept fitted.

    seen: what they are fitted to, by squared error. All items start at the top.
    """

    def __init__(self, model: nn.Module, seen: dict[str, Seen], items: Iterable[Item]):
        self.model, self.seen, self.sites = model, seen, sites(model)
        self.kept: dict[tuple[Item, int], dict[str, Quantizer]] = {}
        self.now = dict.fromkeys(items, TOP)
        for name, which in ((name, which) for name in self.sites for names in QUANTIZERS.values() for which in names):
            if (quantizer := getattr(self.sites[name], which, None)) is not None:
                if name in seen:
                    quantizer.fit(operand(self.sites[name], seen[name], which))
                quantizer.enabled = name in seen
        for item in self.now:
            self.set(item, TOP)

    def set(self, item: Item, bits: int) -> None:
        """Give ``item`` so many bits."""
        (name, kind), site = item, self.sites[item[0]]
        if (item, bits) not in self.kept:
            made = {which: copy.deepcopy(getattr(site, which)) for which in QUANTIZERS[kind] if _active(site, which)}
            for which, quantizer in made.items():
                quantizer.bits = bits
                quantizer.fit(operand(site, self.seen[name], which))
            self.kept[item, bits] = made
        for which, quantizer in self.kept[item, bits].items():
            setattr(site, which, quantizer)
        self.now[item] = bits

    def go(self, bits: Mapping[Item, int]) -> None:
        """Give every item the bits that ``bits`` says, and all others the top."""
        for item, now in list(self.now.items()):
            if now != (wanted := bits.get(item, TOP)):
                self.set(item, wanted)


def divergence(rungs: Rungs, images: Tensor) -> Callable[[Mapping[Item, int]], float]:
    """bits of some items -> KL divergence from the float network's classes, a mean over ``images``.

    All others have the bits of the top.
    """

    @torch.no_grad()
    def classes() -> Tensor:
        return torch.cat([rungs.model(chunk) for chunk in images.split(BATCH)]).flatten(1).log_softmax(1)

    with switched_off(rungs.model):
        wanted = classes()

    def measure(bits: Mapping[Item, int]) -> float:
        rungs.go(bits)
        return float(F.kl_div(classes(), wanted, log_target=True, reduction="batchmean"))

    return measure


def cached_harm(rungs: Rungs, images: Tensor) -> Harm:
    """Each item by itself, each number of bits measured once."""
    measure = divergence(rungs, images)
    loss = cache(lambda item, bits: measure({item: bits}))
    return lambda bits, item: loss(item, bits[item] - 1) - loss(item, bits[item])


def exact_harm(rungs: Rungs, images: Tensor) -> Harm:
    """Each item in the network as it stands."""
    measure = divergence(rungs, images)
    loss = cache(lambda bits: measure(dict(bits)))

    def harm(bits: Mapping[Item, int], item: Item) -> float:
        return loss(frozenset({**bits, item: bits[item] - 1}.items())) - loss(frozenset(bits.items()))

    return harm


def proxy_harm(rungs: Rungs, images: Tensor) -> Harm:
    """Each item by the error that its own site puts out: half the sum of (gradient * error)**2 over a picture."""
    cost = costs(rungs.model, images[:1])

    @cache
    @torch.no_grad()
    def loss(item: Item, bits: int) -> float:
        (name, _), site, seen = item, rungs.sites[item[0]], rungs.seen[item[0]]
        rungs.go({item: bits})
        error = (site(*seen.inputs) - seen.out) * (1.0 if seen.grad is None else seen.grad)
        inner = seen.inputs[0].shape[-1] if isinstance(site, QuantMatMul) else site.weight[0].numel()
        return float(error.square().mean()) * cost[name].macs / inner / 2

    return lambda bits, item: loss(item, bits[item] - 1) - loss(item, bits[item])


HARMS = {"cached": cached_harm, "exact": exact_harm, "proxy": proxy_harm}


def apply_bits(model: nn.Module, bits: Bits) -> None:
    """Give the quantizers of the named sites their (weight, activation) bits; what is in float (32) stays so.

    Raises UserError for sites that ``model`` does not have.
    """
    if unknown := bits.keys() - sites(model).keys():
        raise UserError(f"the bits are of another model, which has a site {min(unknown)}; allocate them for this one")
    set_bits(model, {name: (min(weight, TOP), min(activation, TOP)) for name, (weight, activation) in bits.items()})


def save_bits(model: nn.Module, path: Path) -> Path:
    """Write the bits of every site of a quantized ``model`` as JSON: {name: [weight bits, activation bits]}.

    32 stands for float; both numbers of an attention product are its activations'.
    """
    return write_whole(path, json.dumps(bits_of(model), indent=1) + "\n")


def load_bits(path: Path) -> Bits:
    """The bits that ``save_bits`` wrote. Raises UserError where the file holds anything else."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        bits = {name: (int(weight), int(activation)) for name, (weight, activation) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds no bits ({error}); write it with save_bits") from None
    if wrong := {n for pair in bits.values() for n in pair} - {*range(LEAST, TOP + 1), 32}:
        raise UserError(f"{path} has {min(wrong)} bits somewhere; each site has {LEAST} to {TOP}, or 32 for float")
    return bits
