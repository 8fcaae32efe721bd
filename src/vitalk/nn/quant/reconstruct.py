"""Block reconstruction: a unit of a quantized network is tuned until it puts out what its float original does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import mean
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from vitalk.experiments import quiet, short_run

from .sites import Site

Loss = Callable[[Tensor, Tensor], Tensor]


def units(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of ``model`` that are reconstructed one after the other, by name, in the order of the modules.

    Patch embedding or stem, each block, each downsampling, the head: what holds sites and is neither a sequence nor a
    stage (a module with ``blocks``), whose parts are looked at instead.
    """
    found: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        _collect(name, child, found)
    return found


def _collect(name: str, module: nn.Module, found: dict[str, nn.Module]) -> None:
    if not any(isinstance(part, Site) for part in module.modules()):
        return
    if isinstance(module, nn.Sequential | nn.ModuleList) or hasattr(module, "blocks"):
        for part, child in module.named_children():
            _collect(f"{name}.{part}", child, found)
    else:
        found[name] = module


def squared(out: Tensor, target: Tensor) -> Tensor:
    """Squared error, summed over the tokens (dimension 1) and averaged over the rest (arXiv 2311.10126)."""
    return (out - target).square().sum(1).mean()


class _Reached(Exception):
    """The unit has run; the rest of the network need not."""


@torch.no_grad()
def capture(model: nn.Module, unit: nn.Module, images: Tensor, batch: int = 32) -> tuple[Tensor, Tensor]:
    """(what goes into ``unit``, what comes out), each [pictures, ...], while ``model`` computes as it is set to.

    Raises LookupError where the forward pass does not reach the unit.
    """
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        kept.append((args[0].detach().clone(), out.detach().clone()))
        raise _Reached

    handle = unit.register_forward_hook(keep)
    try:
        for chunk in images.split(batch):
            try:
                model(chunk)
            except _Reached:
                continue
            raise LookupError("the forward pass does not reach this unit")
    finally:
        handle.remove()
    inputs, outputs = zip(*kept, strict=True)
    return torch.cat(inputs), torch.cat(outputs)


class _Rows(Dataset):
    def __init__(self, *tensors: Tensor):
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: list[int]) -> list[Tensor]:
        return [tensor[index] for tensor in self.tensors]


class Reconstruction(LightningModule):
    """What Lightning trains: groups of a unit's parameters, by Adam, the learning rate on a cosine down to zero.

    groups: Adam's parameter groups. loss: (out, target) -> scalar. penalty: the share of the steps that are done ->
    scalar, added to the loss.
    """

    def __init__(
        self, unit: nn.Module, groups: list[dict[str, Any]], steps: int, loss: Loss = squared,
        penalty: Callable[[float], Tensor] | None = None,
    ):  # fmt: skip
        super().__init__()
        self.unit, self.groups, self.steps, self.loss, self.penalty = unit, groups, steps, loss, penalty
        self.losses: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Lightning sets training mode; reconstruction is without dropout, and with BatchNorms as they are."""
        self.unit.eval()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """batch: inputs and targets of the unit."""
        inputs, target = batch
        loss = self.loss(self.unit(inputs), target)
        self.losses.append(float(loss.detach()))
        return loss if self.penalty is None else loss + self.penalty(len(self.losses) / self.steps)

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam without weight decay."""
        optimizer = torch.optim.Adam(self.groups)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def reconstruct(
    unit: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    groups: list[dict[str, Any]],
    steps: int,
    batch: int = 32,
    loss: Loss = squared,
    penalty: Callable[[float], Tensor] | None = None,
    tick: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """Tune ``unit`` for ``steps`` steps so that it maps inputs to targets, each [pictures, ...], on random batches.

    groups: Adam's parameter groups ({"params": [...], "lr": ...}); nothing else of the unit learns. loss, penalty: see
    ``Reconstruction``. tick: called after every step.
    Returns the loss of the first and of the last tenth of the steps (without the penalty).
    """
    if steps == 0:
        return float("nan"), float("nan")
    with torch.inference_mode(False), _only(unit, [p for group in groups for p in group["params"]]), quiet():
        module = Reconstruction(unit, groups, steps, loss, penalty)
        order = RandomSampler(range(len(inputs)), replacement=len(inputs) < batch, num_samples=max(len(inputs), batch))
        sampler = BatchSampler(order, batch, drop_last=True)
        short_run(module, DataLoader(_Rows(inputs, targets), batch_size=None, sampler=sampler), steps, tick)
        unit.to(inputs.device).eval()  # Lightning leaves what it trained on the processor
    tenth = max(steps // 10, 1)
    return mean(module.losses[:tenth]), mean(module.losses[-tenth:])


@contextmanager
def _only(unit: nn.Module, learning: list[Tensor]) -> Iterator[None]:
    """Within it only ``learning`` requires gradients, of all of the unit's parameters."""
    before = {p: p.requires_grad for p in unit.parameters()}
    chosen = {id(p) for p in learning}
    for parameter in before:
        parameter.requires_grad_(id(parameter) in chosen)
    try:
        yield
    finally:
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)
