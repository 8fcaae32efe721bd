"""Calibration: one forward pass in which every quantizer fits itself to what reaches it."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any, get_args

import torch
from torch import Tensor, nn

from vitalk.errors import UserError

from .sites import quantizers, sites


def calibrate(
    model: nn.Module, images: Tensor, progress: bool = False, only: Callable[[str], bool] | None = None
) -> list[str]:
    """Fit all quantizers of ``model`` in one forward pass over ``images`` [pictures, channels, height, width].

    Each sees activations that were quantized upstream of it, as it will in use (arXiv 2212.08254, official code).
    only: fits those whose name it accepts; the others stay as they are.
    The model is left in eval mode. Returns the names of quantizers the pass never reached; they are switched off.

    Raises UserError for pictures or weights with NaN or infinity, and where there are no pictures.
    """
    check(model, images)
    return fit_in_one_pass(model, lambda: model(images), progress, only)


def fit_in_one_pass(
    model: nn.Module, run: Callable[[], object], progress: bool = False, only: Callable[[str], bool] | None = None
) -> list[str]:
    """``calibrate`` for networks that take anything else than pictures: ``run`` is the forward pass."""
    model.eval()
    pending = {name: q for name, q in quantizers(model).items() if only is None or only(name)}
    for quantizer in pending.values():
        quantizer.enabled = quantizer.observing = True
    with torch.no_grad(), _bar(model) if progress else nullcontext():
        run()
    missed = [name for name, quantizer in pending.items() if quantizer.observing]
    for name in missed:
        pending[name].enabled = pending[name].observing = False
    return missed


def check(model: nn.Module, images: Tensor) -> None:
    """UserError unless there are pictures and all of them, and all weights, are finite."""
    if images.dim() != 4 or len(images) == 0:
        shape = list(images.shape)
        raise UserError(f"calibration needs pictures [count, channels, height, width], got {shape}; 32 are enough")
    if not images.isfinite().all():
        raise UserError("the calibration pictures hold NaN or infinite values; check how they are loaded")
    for name, value in model.named_parameters():
        if not value.isfinite().all():
            raise UserError(f"the weight {name} holds NaN or infinite values; quantize an intact checkpoint")


def check_choice(name: str, value: Any, known: Any) -> None:
    """UserError unless ``value``, of the setting ``name``, is among those of the Literal ``known``."""
    if value not in get_args(known):
        raise UserError(f"{name} must be one of {', '.join(get_args(known))}, got {value}")


def _bar(model: nn.Module) -> ExitStack:
    from rich.progress import Progress

    stack = ExitStack()
    bar = stack.enter_context(Progress())
    all_sites = sites(model).values()
    task = bar.add_task("calibrating", total=len(all_sites))
    for site in all_sites:
        stack.callback(site.register_forward_hook(lambda *_: bar.advance(task)).remove)
    return stack
