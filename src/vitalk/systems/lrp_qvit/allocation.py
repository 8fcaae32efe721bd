"""Which site has how many bits: what each may have, what that costs, and what was chosen."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.files import write_whole
from vitalk.nn.quant import QuantConv2d, QuantMatMul, find_pairs, sites
from vitalk.nn.quant.calibrate import check_choice
from vitalk.nn.quant.describe import bits_of, costs, set_bits
from vitalk.nn.quant.reconstruct import units

from .program import solve

Limit = Literal["activations", "operations", "size"]
Pair = tuple[int, int]  # bits of the weight, bits of the activations
PRICES: dict[str, Any] = {
    "size": lambda cost, bits: cost.params * bits[0],
    "activations": lambda cost, bits: cost.inputs * bits[1],
    "operations": lambda cost, bits: cost.macs * bits[0] * bits[1],
}


@dataclass(frozen=True)
class Allocation:
    """bits: (weight, activation) bits of every site by name. scores: how much each contributes, which decided."""

    bits: dict[str, Pair]
    scores: dict[str, float]

    def apply(self, model: nn.Module) -> None:
        """Give the quantizers of ``model`` these bits, before they are fitted; sites it does not have are left out.

        Raises UserError where a site of the model has no bits here.
        """
        missing = [name for name in sites(model) if name not in self.bits]
        if missing:
            raise UserError(f"the allocation has no bits for {missing[0]}; it was made for another model")
        set_bits(model, {name: self.bits[name] for name in sites(model)})

    def save(self, path: Path) -> Path:
        """Write it as JSON, whole or not at all."""
        return write_whole(path, json.dumps({"bits": self.bits, "scores": self.scores}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote. Raises UserError for any other file."""
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            bits = {name: (int(weight), int(act)) for name, (weight, act) in kept["bits"].items()}
            scores = {name: float(score) for name, score in kept["scores"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is no allocation of bits ({error}); allocate them again") from None
        for name, pair in bits.items():
            if not all(2 <= b <= 8 for b in pair):
                raise UserError(f"{path} gives {name} {pair[0]} and {pair[1]} bits; both must be 2 to 8")
        return cls(bits, scores)


@dataclass(frozen=True)
class Ladder:
    """What the sites of a network may have, and at what cost.

    target: bits of each site that set the budgets. steps: by site, its bits at each choice. units: names of sites that
    take the same choice, since they share an input quantizer or are a patch embedding. spent: by budget, [units,
    choices]; allowed: what all units together may spend of it.
    """

    target: dict[str, Pair]
    steps: dict[str, list[Pair]]
    units: list[list[str]]
    spent: list[Tensor]
    allowed: list[int]

    def climb(self, gains: dict[str, list[float]]) -> dict[str, Pair]:
        """Bits of every site such that the sum of the ``gains``, by site one a choice, is the largest in the budgets.

        Of equally good ones those nearest to the target. Raises UserError where nothing keeps the budgets.
        """
        gain = [[sum(g) for g in zip(*(gains[n] for n in unit), strict=True)] for unit in self.units]
        away = torch.tensor([[sum(self._away(n, k) for n in unit) for k in range(len(gain[0]))] for unit in self.units])
        chosen = solve(torch.tensor(gain, dtype=torch.double), self.spent, self.allowed, away)
        taken = {name: self.steps[name][k] for unit, k in zip(self.units, chosen, strict=True) for name in unit}
        return {name: taken.get(name, target) for name, target in self.target.items()}

    def _away(self, name: str, choice: int) -> int:
        return sum((a - b) ** 2 for a, b in zip(self.steps[name][choice], self.target[name], strict=True))


def ladder(
    placed: nn.Module, image: Tensor, choices: Sequence[int], limit: Limit = "activations", ends_bits: int | None = None
) -> Ladder:
    """What the sites of ``placed``, whose quantizers have the target bits and are not fitted, may have instead.

    choices: differences from the target bits, of weights and activations alike; bits end at 2 and 8. The budgets are
    what the target costs: bits of all weights, and with ``limit`` "activations" bits of all numbers that go into sites
    for one picture, with "operations" multiply-accumulates times the bits of both operands; "size" sets no second one,
    so that attention products, which have no weights, take all they can. image: [1, channels, height, width].
    ends_bits: of the first and the last layer, in the target too; they are no choice then.
    Raises UserError for settings that mean nothing.
    """
    if not choices or any(choice != int(choice) for choice in choices):
        raise UserError(f"choices must be whole differences from the target bits, such as (-1, 0, 1), got {choices}")
    check_choice("limit", limit, Limit)
    cost, target = costs(placed, image), bits_of(placed)
    names = [name for name in target if name in cost]  # the others are never reached
    ends = _set_ends(placed, names, target, ends_bits)
    pictured = _pictured(placed)
    steps = {}
    for name in names:
        weight, act = target[name]
        offsets = [0 if name in ends else choice for choice in choices]
        steps[name] = [(_between(weight + o), act if name == pictured else _between(act + o)) for o in offsets]
    together = _together(placed, image, names)
    prices = [PRICES[name] for name in dict.fromkeys(("size", limit))]
    spent = [
        torch.tensor(
            [[sum(price(cost[n], steps[n][k]) for n in unit) for k in range(len(choices))] for unit in together]
        )
        for price in prices
    ]
    return Ladder(target, steps, together, spent, [sum(price(cost[n], target[n]) for n in names) for price in prices])


def _set_ends(placed: nn.Module, names: list[str], target: dict[str, Pair], bits: int | None) -> set[str]:
    """Give the first and the last layer their bits in ``target``; their names."""
    if bits is None:
        return set()
    if bits not in range(2, 9):
        raise UserError(f"ends_bits must be 2 to 8, got {bits}")
    layers = [name for name in names if not isinstance(sites(placed)[name], QuantMatMul)]
    ends = {layers[0], layers[-1]}
    for name in ends:
        target[name] = (bits, target[name][1] if name == _pictured(placed) else bits)
    return ends


def _pictured(placed: nn.Module) -> str | None:
    """The convolution that reads pictures, which always have 8 bits."""
    name, site = next(iter(sites(placed).items()))
    return name if isinstance(site, QuantConv2d) else None


def _between(bits: float) -> int:
    return min(max(int(bits), 2), 8)


def _together(placed: nn.Module, image: Tensor, names: list[str]) -> list[list[str]]:
    known = {site: name for name, site in sites(placed).items()}
    groups = [stem(placed), *([known[linear] for linear in linears] for _, linears in find_pairs(placed, image))]
    unit = {name: [name] for name in names}
    for group in groups:
        group = [name for name in group if name in unit]
        unit |= dict.fromkeys(group, group)
    return list({id(group): group for group in unit.values()}.values())


def stem(model: nn.Module) -> list[str]:
    """Names of the sites of the patch embedding of an exposed model, be it one convolution or many; may be none.

    The paper counts it as one unit.
    """
    first = next(iter(units(model)), "")
    inside = [name for name in sites(model) if f"{name}.".startswith(f"{first}.")]
    return inside if inside and isinstance(sites(model)[inside[0]], QuantConv2d) else []
