"""Reconstruction of AdaLog: the rounding of weights and the scales of activations are learnt, unit by unit."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn

from vitalk.nn.quant import AdaptiveLogQuantizer, Quantizer, QuantMatMul, UniformQuantizer, quantizers
from vitalk.nn.quant.quantizers import SMALLEST_SCALE
from vitalk.nn.quant.reconstruct import capture, reconstruct, squared, units
from vitalk.nn.quant.sites import Site

STRETCH = 1.1, -0.1  # zeta and gamma of the rectified sigmoid (AdaRound, arXiv 2004.10568)
WEIGHT, WARM, BETA = 0.01, 0.2, (20.0, 2.0)  # of the regulariser: its weight, the share without it, its exponent
STEPS = 20_000  # of the official code
ROUNDING_RATE, SCALE_RATE = 1e-3, 4e-5  # Adam's, of the official code
FASTEST, STRETCHED = 0.1, 1e-3  # what fewer steps may raise them to: the first, and the second as a share of the scale
JUDGED = 256  # pictures that say whether a unit has gained


class SoftRounding(nn.Module):
    """Stands in for a weight's quantizer while it is learnt whether each weight is rounded down or up (AdaRound).

    ``alpha``, of the weight's shape, is learnt: the share of a step that is added to the code below.
    """

    def __init__(self, quantizer: UniformQuantizer, weight: Tensor):
        super().__init__()
        self.quantizer = quantizer
        across = (-1, *[1] * (weight.dim() - 1))
        self.register_buffer("scale", quantizer.scale.view(across))
        self.register_buffer("zero", quantizer.zero_point.view(across))
        steps = weight.detach() / self.scale
        self.register_buffer("floor", steps.floor())
        zeta, gamma = STRETCH
        self.alpha = nn.Parameter(-((zeta - gamma) / (steps - self.floor - gamma) - 1).log())

    @property
    def shares(self) -> Tensor:
        """How far up each weight is rounded, in [0, 1]."""
        zeta, gamma = STRETCH
        return (self.alpha.sigmoid() * (zeta - gamma) + gamma).clamp(0, 1)

    def forward(self, weight: Tensor) -> Tensor:
        """The softly rounded weight; ``weight`` itself is what it was made with."""
        return self._values(self.shares)

    def hard(self) -> Tensor:
        """The weight, each value at the step that it was decided for."""
        return self._values(self.alpha.detach() >= 0)

    def undecided(self, beta: float) -> Tensor:
        """The regulariser, summed: 1 for each weight half-way, 0 for each that is decided."""
        return (1 - (2 * self.shares - 1).abs().pow(beta)).sum()

    def _values(self, up: Tensor) -> Tensor:
        codes = (self.floor + up + self.zero).clamp(self.quantizer.low, self.quantizer.high)
        return (codes - self.zero) * self.scale


def penalty(soft: list[SoftRounding], done: float) -> Tensor | float:
    """The regulariser of all layers when the share ``done`` of the steps is: off at first, its exponent falling."""
    if done < WARM:
        return 0.0
    first, last = BETA
    beta = first + (last - first) * (done - WARM) / (1 - WARM)
    return WEIGHT * torch.stack([one.undecided(beta) for one in soft]).sum() if soft else 0.0


def tenth(out: Tensor, target: Tensor) -> Tensor:
    """A tenth of the squared error, summed over the tokens (the official code's)."""
    return squared(out, target) / 10


def divergence(out: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence of logits [pictures, classes] from the float network's."""
    return F.kl_div(out.log_softmax(-1), target.log_softmax(-1), reduction="batchmean", log_target=True)


def tune(model: nn.Module, images: Tensor, steps: int, progress: bool = False) -> None:
    """Learn the rounding and the activations' scales of every unit of a calibrated ``model``, in place.

    images: [pictures, channels, height, width]. Units are stem, blocks, downsamplings and head; inputs and targets are
    the float network's. Weights end up on the grid of their quantizers, which stay as they are.
    """
    reference = copy.deepcopy(model)
    for quantizer in quantizers(reference).values():
        quantizer.enabled = False
    parts = units(model)
    with Progress(disable=not progress) as bar:
        for name in parts:
            task = bar.add_task(f"reconstructing {name}", total=steps)
            for part, inputs, targets in reached(reference, name, images):
                bar.update(task, completed=0)
                tune_unit(model.get_submodule(part), inputs, targets, steps, lambda task=task: bar.advance(task))


def reached(reference: nn.Module, name: str, images: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, inputs, targets) of a unit, or of its largest parts that the forward pass calls with one tensor."""
    unit = reference.get_submodule(name)
    needed = [p for p in signature(unit.forward).parameters.values() if p.default is Parameter.empty]
    if len(needed) == 1:
        try:
            found = capture(reference, unit, images)
        except LookupError:
            pass
        else:
            yield name, *found
            return
    for child, part in unit.named_children():
        if any(isinstance(module, Site) for module in part.modules()):
            yield from reached(reference, f"{name}.{child}", images)


def tune_unit(
    unit: nn.Module, inputs: Tensor, targets: Tensor, steps: int, tick: Callable[[], object] = lambda: None
) -> tuple[float, float]:
    """Reconstruct one unit; its loss before and after, at hard rounding.

    Rates are the official code's at its 20000 steps, both on a cosine; with fewer steps they are larger, since a
    rounding that has no time to move decides nothing. A unit that is no nearer to its targets afterwards, as happens
    where many weights are still undecided when they are rounded, returns to what it was (both ours).
    """
    loss = divergence if targets.dim() == 2 else tenth
    few = inputs[:JUDGED], targets[:JUDGED]
    with torch.no_grad():
        before, kept = loss(unit(few[0]), few[1]).item(), copy.deepcopy(unit.state_dict())
    faster = max(STEPS / steps, 1.0)
    with learning(unit) as (soft, scales):
        groups: list[dict[str, Any]] = [
            {"params": [scale], "lr": min(SCALE_RATE * faster, STRETCHED * float(scale.detach().mean()))}
            for scale in scales
        ]
        if soft:
            groups.append({"params": [one.alpha for one in soft], "lr": min(ROUNDING_RATE * faster, FASTEST)})
        if not groups:
            return before, before
        reconstruct(
            unit, inputs, targets, groups, steps, loss=loss, penalty=lambda done: penalty(soft, done), tick=tick
        )
    with torch.no_grad():
        after = loss(unit(few[0]), few[1]).item()
    if not after < before:
        unit.load_state_dict(kept)
        return before, before
    return before, after


@contextmanager
def learning(unit: nn.Module) -> Iterator[tuple[list[SoftRounding], list[nn.Parameter]]]:
    """Within it the unit's weights are rounded softly and its activations' scales are parameters; then all is hard."""
    sites = [site for site in unit.modules() if isinstance(site, Site)]
    layers = [s for s in sites if not isinstance(s, QuantMatMul) and _active(s.weight_quantizer)]
    names = ("input_quantizer", "left_quantizer", "right_quantizer")
    acts: list[Quantizer] = [q for s in sites for name in names if _active(q := getattr(s, name, None))]
    smooth = {q: q.smooth for q in acts if isinstance(q, AdaptiveLogQuantizer)}
    for quantizer in acts:
        quantizer.learn()
    for quantizer in smooth:
        quantizer.smooth = True
    for layer in layers:
        layer.weight_quantizer = SoftRounding(layer.weight_quantizer, layer.weight)
    try:
        yield [layer.weight_quantizer for layer in layers], [quantizer.scale for quantizer in acts]
    finally:
        for layer in layers:
            layer.weight.data = layer.weight_quantizer.hard()
            layer.weight_quantizer = layer.weight_quantizer.quantizer
        for quantizer, before in smooth.items():
            quantizer.smooth = before
        for quantizer in acts:
            quantizer.learn(False)
            quantizer.scale.clamp_(min=SMALLEST_SCALE)


def _active(quantizer: Quantizer | None) -> bool:
    return quantizer is not None and quantizer.enabled and quantizer.fitted
