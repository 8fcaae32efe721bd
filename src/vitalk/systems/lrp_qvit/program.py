"""One choice for each of many units: the integer program behind mixed bits."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vitalk.errors import UserError

NEARLY = 1e-9  # share of the largest gain that a sum may lack and count as equally good


def solve(gain: Tensor, spent: Sequence[Tensor], allowed: Sequence[int], away: Tensor) -> list[int]:
    """The choice of each unit for which the sum of ``gain`` [units, choices] is the largest, exactly.

    spent: whole numbers [units, choices], one tensor a budget; the sum of those chosen is at most ``allowed``.
    away: [units, choices]; of choices with equal sums the ones with the least sum of it.
    Raises UserError where nothing keeps the budgets.
    """
    value = gain.double() / max(float(gain.abs().max()), 1e-300)
    best = _milp(value, spent, allowed)
    least = _sum(value, best) - NEARLY
    nearest = _milp(-away.double(), spent, allowed, (value, least))
    return nearest if _sum(value, nearest) >= least else best


def _sum(values: Tensor, chosen: list[int]) -> float:
    return values.gather(1, torch.tensor(chosen)[:, None]).sum().item()


def _milp(
    value: Tensor, spent: Sequence[Tensor], allowed: Sequence[int], kept: tuple[Tensor, float] | None = None
) -> list[int]:
    """Maximise ``value``; kept: (values [units, choices], what those chosen sum up to at least)."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    units, choices = value.shape
    rules = [LinearConstraint(np.kron(np.eye(units), np.ones((1, choices))), 1, 1)]
    for costs, most in zip(spent, allowed, strict=True):
        # In units of the common divisor, and half a unit above the bound: so the solver's tolerance does not matter.
        unit = max(math.gcd(*costs.flatten().tolist()), 1)
        rules.append(LinearConstraint((costs // unit).flatten().double().numpy()[None], -np.inf, most // unit + 0.5))
    if kept is not None:
        rules.append(LinearConstraint(kept[0].flatten().numpy()[None], kept[1], np.inf))
    while True:
        found = milp(
            -value.flatten().numpy(), constraints=rules, integrality=np.ones(units * choices), bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0},
        )  # fmt: skip
        if found.x is None:
            raise UserError("no choice of bits keeps the budget; let the choices hold 0 or something below it")
        chosen = found.x.reshape(units, choices).argmax(1)
        sums = [int(costs[range(units), chosen].sum()) for costs in spent]
        if all(total <= most for total, most in zip(sums, allowed, strict=True)):
            return chosen.tolist()
        # Sizes beyond what the solver resolves: this one choice is forbidden, so that nothing better is lost.
        rules.append(LinearConstraint(np.eye(choices)[chosen].reshape(1, -1), -np.inf, units - 1))
