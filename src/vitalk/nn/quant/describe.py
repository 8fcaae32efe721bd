"""What a quantized network costs and how it is computed: bits, bytes, bit operations, integers or floats."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .quantizers import Quantizer, UniformQuantizer
from .sites import QuantLinear, QuantMatMul, Site, quantizers, sites, switched_off

Arithmetic = Literal["int8", "simulated", "float"]
Bits = Mapping[str, tuple[int, int]]  # site -> (bits of the weight, bits of the activations)


@dataclass(frozen=True)
class SiteCost:
    """params: weights of a site, 0 for products. macs: multiply-accumulates for one picture. inputs: numbers in."""

    params: int
    macs: int
    inputs: int


@torch.no_grad()
def costs(model: nn.Module, image: Tensor) -> dict[str, SiteCost]:
    """What each site of ``model`` costs for ``image`` [1, channels, height, width], by name."""
    found: dict[str, SiteCost] = {}

    def note(name: str, site: Site, args: tuple[Tensor, ...], out: Tensor) -> None:
        inner = args[0].shape[-1] if isinstance(site, QuantMatMul) else site.weight[0].numel()
        params = 0 if isinstance(site, QuantMatMul) else site.weight.numel()
        before = found.get(name, SiteCost(params, 0, 0))
        numbers = sum(arg.numel() for arg in args)
        found[name] = SiteCost(params, before.macs + out.numel() * inner, before.inputs + numbers)

    handles = [
        site.register_forward_hook(lambda site, args, out, name=name: note(name, site, args, out))
        for name, site in sites(model).items()
    ]
    try:
        with switched_off(model):
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return found


def bits_of(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(weight bits, activation bits) of every site by name; 32 where there is no quantizer or it is off."""
    return {name: (_bits(site, WEIGHTS), _bits(site, ACTIVATIONS)) for name, site in sites(model).items()}


WEIGHTS = ("weight_quantizer", "right_quantizer")
ACTIVATIONS = ("input_quantizer", "left_quantizer")


def _bits(site: Site, names: tuple[str, ...]) -> int:
    found = next((q for name in names if isinstance(q := getattr(site, name, None), Quantizer)), None)
    return found.bits if found is not None and found.enabled else 32


def set_bits(model: nn.Module, bits: Bits) -> None:
    """Give the quantizers of the named sites (weight, activation) bits, before they are fitted.

    Both operands of an attention product are activations and get the second number.
    """
    for name, (weight, activation) in bits.items():
        site = sites(model)[name]
        for each in (*WEIGHTS, *ACTIVATIONS):
            if isinstance(quantizer := getattr(site, each, None), Quantizer):
                quantizer.bits = weight if each == "weight_quantizer" else activation


def packed_bytes(model: nn.Module) -> int:
    """Bytes of the network with weights packed to their bits; scales and all other parameters in 4 bytes each."""
    packed, total = set(), 0.0
    for site in sites(model).values():
        quantizer = getattr(site, "weight_quantizer", None)
        if quantizer is not None and quantizer.enabled:
            packed.add(id(site.weight))
            total += site.weight.numel() * quantizer.bits / 8
    total += sum(4 * p.numel() for p in model.parameters() if id(p) not in packed)
    total += sum(4 * buffer.numel() for q in quantizers(model).values() for buffer in q.buffers())
    return round(total)


def bit_operations(model: nn.Module, image: Tensor) -> int:
    """Sum over the sites of multiply-accumulates times the bits of both operands (BOPs), for one picture."""
    bits = bits_of(model)
    return sum(cost.macs * bits[name][0] * bits[name][1] for name, cost in costs(model, image).items())


def arithmetic(model: nn.Module) -> dict[str, Arithmetic]:
    """How an exported graph computes each site: "int8" where runtimes have an integer kernel for it, "simulated" where
    it is quantized but multiplied in float, "float" where it is not quantized.
    """
    return {name: _arithmetic(site) for name, site in sites(model).items()}


def _arithmetic(site: Site) -> Arithmetic:
    names = ("left_quantizer", "right_quantizer") if isinstance(site, QuantMatMul) else (*WEIGHTS[:1], *ACTIVATIONS[:1])
    both: list[Any] = [q for name in names if (q := getattr(site, name)) is not None and q.enabled]
    if not both:
        return "float"
    uniform = len(both) == 2 and all(isinstance(q, UniformQuantizer) for q in both)
    if not uniform or both[1].axis is not None or _fractional(both):
        return "simulated"
    if isinstance(site, QuantLinear | QuantMatMul):
        return "int8" if isinstance(site, QuantLinear) or both[0].axis is None else "simulated"
    return "int8" if site.is_product else "simulated"


def _fractional(both: list[UniformQuantizer]) -> bool:
    return any(bool((q.zero_point != q.zero_point.round()).any()) for q in both if q.fitted)
