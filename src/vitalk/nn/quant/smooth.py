"""Smooth optimisation (SOS, arXiv 2311.10126): weights are tuned before they are quantized, and again afterwards.

First the float weights learn to live with quantized activations, behind LayerNorm with a scale a channel; then those
scales are folded into the network, which float weights survive without loss; then the weights are quantized and tuned
once more. I&S-ViT brought it, DopQ-ViT stands on it.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from rich.progress import Progress
from torch import Tensor, nn

from vitalk.errors import UserError

from .calibrate import calibrate, check
from .policy import Make, Policy, place
from .quantizers import Ranges, UniformQuantizer
from .reconstruct import capture, reconstruct, units
from .reparam import Common, fold, mean_scale, widen
from .sites import QuantMatMul, Site, quantizers, switched_off

INITIAL = 64  # pictures that quantizers are fitted to; all of them tune
BATCH, RATE = 64, 4e-5
WEIGHTS = Ranges((0.97, 0.98, 0.99, 0.995, 0.9995, 0.9997, 0.9999, 0.99995, 0.99999))  # official code


def policy_of(softmax: Make | None, integer: bool) -> Policy:
    """I&S-ViT's quantizers with ``softmax`` at the attention probabilities; None leaves both products in float.

    Weights have a scale a row: asymmetric at the paper's percentiles, or (``integer``) symmetric, whose range is
    searched for by squared error (ours).
    """
    weights = partial(UniformQuantizer, axis=0, symmetric=integer, ranges=None if integer else WEIGHTS)
    return Policy(weights, products=None) if softmax is None else Policy(weights, softmax=softmax)


def smooth(
    model: nn.Module,
    images: Tensor,
    weight_bits: int,
    act_bits: int,
    policy: Policy,
    integer: bool = True,
    common: Common | None = mean_scale,
    iterations: int | None = None,
    stages: Literal[1, 3] = 3,
    batch: int = BATCH,
    lr: float = RATE,
    wide: Callable[[str], bool] = lambda name: True,
    search: Callable[[nn.Module, Tensor], None] = lambda model, images: None,
    progress: bool = False,
) -> nn.Module:
    """A quantized copy of ``model`` in eval mode, tuned in three stages without labels.

    images: [count, channels, height, width], normalised; the first 64 fit the quantizers, all of them tune.
    integer: a whole common zero point (see ``fold``). common: the rule that the fold chooses the common scale by; None
    leaves the scales behind LayerNorm channel-wise, which is the papers' ablation and cannot be exported.
    iterations: steps of each stage for each unit; None for the paper's 1000, 200 from 6 bits on. With 0 nothing is
    tuned: all quantizers fit themselves in one pass, then comes the fold, as in RepQ-ViT (arXiv 2212.08254).
    stages: 1 starts from that plain calibration and tunes only then, twice as long, so that the steps are as many.
    batch, lr: pictures a step; Adam's rate at the start, which falls to zero on a cosine.
    wide: names of the layers behind LayerNorm that have a scale a channel until the fold; the others have one in all.
    search: may change quantizers of activations; it is given the calibrated network, not yet tuned or folded, and the
    pictures that fitted it.
    The same call gives the same network: random batches are seeded.

    Raises UserError for bits, pictures and weights that cannot be, a quantized model, and settings out of range.
    """
    check(model, images)
    if iterations is None:
        iterations = 200 if min(weight_bits, act_bits) >= 6 else 1000
    _check_settings(iterations, stages, batch, lr)
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        images = images.detach().clone()
        few = images[:INITIAL]
        model = place(model, weight_bits, act_bits, policy, images[:1])
        original = _in_float(model)
        pairs = widen(model, images[:1], wide)
        three = stages == 3 and iterations > 0
        with _bar(2 * iterations * len(order(original, images[:1])), progress) as tick:
            tuned = partial(tune, model, original, images, batch=batch, lr=lr, tick=tick)
            if three:
                _switch_weights_off(model)
                calibrate(model, few, only=lambda name: not _of_weight(name))
                search(model, few)
                tuned(iterations=iterations, from_float=True)
            else:
                calibrate(model, few)
                search(model, few)
            if common is not None:
                for norm, linears in pairs:
                    fold(norm, linears, integer, common)
            if three:
                calibrate(model, few, only=_of_weight)
            tuned(iterations=iterations if three else 2 * iterations, from_float=False)
    return model


def tune(
    model: nn.Module,
    original: nn.Module,
    images: Tensor,
    iterations: int,
    from_float: bool,
    batch: int = BATCH,
    lr: float = RATE,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, tuple[float, float]]:
    """Reconstruct the units of ``model`` one after the other; their loss at the beginning and at the end, by name.

    Weights and biases of the sites learn; scales, zero points and LayerNorms stay. original: the same network in
    float, whose outputs are the targets. from_float: whether the inputs are its too (the first stage), or what the
    quantized network, tuned so far, makes of the pictures (the third).
    Parts of what the forward pass takes apart (the blocks of a ``Trunk``) have as targets what the float part makes of
    the same inputs: reduced tokens need not be those that the float network keeps (ours).
    """
    losses = {}
    if iterations == 0:
        return losses
    for name, whole in order(original, images[:1]).items():
        unit, source = model.get_submodule(name), original.get_submodule(name)
        inputs, targets = capture(original, source, images)
        if not from_float:
            inputs, _ = capture(model, unit, images)
            if not whole:
                with torch.no_grad():
                    targets = torch.cat([source(few) for few in inputs.split(batch)])
        groups = [{"params": _learning(unit), "lr": lr}]
        losses[name] = reconstruct(unit, inputs, targets, groups, iterations, batch, tick=tick)
    return losses


def order(model: nn.Module, image: Tensor) -> dict[str, bool]:
    """The units of ``model`` in the order in which the forward pass calls them, by name: whether they are whole.

    A unit that is not called, or takes or gives more than a tensor, is not whole: its parts stand in its place.
    image: [1, channels, height, width].
    """
    called: dict[nn.Module, int] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        plain = len(args) == 1 and isinstance(args[0], Tensor) and isinstance(out, Tensor)
        if plain and all(value is None or value is False for value in kwargs.values()):
            called.setdefault(module, len(called))

    handles = [m.register_forward_hook(note, with_kwargs=True) for m in model.modules()]
    try:
        with switched_off(model), torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, tuple[int, bool]] = {}

    def collect(name: str, unit: nn.Module, whole: bool) -> None:
        if not _learning(unit):
            return
        if unit in called:
            found[name] = (called[unit], whole)
            return
        for part, child in unit.named_children():
            collect(f"{name}.{part}", child, False)

    for name, unit in units(model).items():
        collect(name, unit, True)
    return {name: whole for name, (_, whole) in sorted(found.items(), key=lambda item: item[1][0])}


def affordable(quantize: Callable[[int], object], seconds: float, most: int = 1000) -> int:
    """The iterations with which ``quantize``, given their number, takes ``seconds``; from 1 to ``most``.

    For measurements: found by running it with one iteration and with six.
    """
    taken = []
    for iterations in (1, 6):
        start = time.monotonic()
        quantize(iterations)
        taken.append(time.monotonic() - start)
    step = max((taken[1] - taken[0]) / 5, taken[1] / 60)  # the first run may have been the slower one
    return int(min(max(1 + (seconds - taken[0]) / step, 1), most))


def _check_settings(iterations: int, stages: int, batch: int, lr: float) -> None:
    if iterations < 0:
        raise UserError(f"iterations must be 0 or more, got {iterations}; 0 calibrates without tuning")
    if stages not in (1, 3):
        raise UserError(f"stages must be 3, or 1 to tune only after everything is quantized, got {stages}")
    if batch < 1:
        raise UserError(f"batch must be 1 or more pictures, got {batch}")
    if not 0 < lr < 1:
        raise UserError(f"lr must be between 0 and 1, got {lr}; the paper's is {RATE}")


def _in_float(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for quantizer in quantizers(model).values():
        quantizer.enabled = False
    return model


def _of_weight(name: str) -> bool:
    return name.endswith("weight_quantizer")


def _switch_weights_off(model: nn.Module) -> None:
    for name, quantizer in quantizers(model).items():
        quantizer.enabled = not _of_weight(name)


def _learning(unit: nn.Module) -> list[Tensor]:
    layers = [m for m in unit.modules() if isinstance(m, Site) and not isinstance(m, QuantMatMul)]
    return [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]


@contextmanager
def _bar(steps: int, progress: bool) -> Iterator[Callable[[], object]]:
    with Progress(disable=not progress) as bar:
        task = bar.add_task("tuning" if steps else "calibrating", total=steps or None)
        yield lambda: bar.advance(task)
