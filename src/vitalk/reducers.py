"""Token reductions by name: how each is put on a model, and how strong it must be to meet a target."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vitalk.deploy.load import Loaded
from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.runtime import open_engine
from vitalk.errors import UserError
from vitalk.systems.diffrate import diffrate, geometry, search, uniform
from vitalk.systems.evit import evit
from vitalk.systems.mctf import mctf
from vitalk.vision.cost import count, latency
from vitalk.vision.merging import tome
from vitalk.vision.tokens import Trunk

Strength = float
Cost = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Reducer:
    """A token reduction off the shelf: how it is put on a model, and how strong it can be.

    make: (model, strength, blocks) -> the reduced model, which shares nothing with the one given. blocks: those that
    reduce, None for the paper's. strengths: of a model, the weakest first; default: where neither a strength nor a
    target is named.
    learn: (model, strength, batches, steps) -> the same, better: from labelled pictures; None where nothing is learned.
    """

    make: Callable[[nn.Module, Strength, list[int] | None], Trunk]
    strengths: Callable[[nn.Module], Sequence[Strength]]
    default: Strength
    learn: Callable[[nn.Module, Strength, DataLoader, int], Trunk] | None = None


def _evit(model: nn.Module, keep: Strength, blocks: list[int] | None) -> Trunk:
    depth = len(getattr(model, "blocks", [])) or 12
    return evit(copy.deepcopy(model), keep, blocks or [depth * i // 4 for i in (1, 2, 3)]).eval()


def _tome(model: nn.Module, count: Strength, blocks: list[int] | None) -> Trunk:
    depth = len(getattr(model, "blocks", [])) or 12
    chosen = range(depth) if blocks is None else blocks
    return tome(copy.deepcopy(model), [int(count) if block in chosen else 0 for block in range(depth)]).eval()


def _mctf(model: nn.Module, count: Strength, blocks: list[int] | None) -> Trunk:
    return mctf(copy.deepcopy(model), int(count), blocks).eval()


def _by_hand(model: nn.Module, share: Strength, blocks: list[int] | None) -> Trunk:
    if blocks is not None:
        raise UserError("diffrate finds out by itself in which blocks it reduces; leave out --blocks")
    model = copy.deepcopy(model)
    return diffrate(model, uniform(geometry(model), share)).eval()


def _learned(model: nn.Module, share: Strength, batches: DataLoader, steps: int) -> Trunk:
    return diffrate(copy.deepcopy(model), search(copy.deepcopy(model), batches, share, steps)).eval()


def _shares(model: nn.Module) -> list[Strength]:
    return [percent / 100 for percent in range(99, 4, -1)]


def _reachable(model: nn.Module) -> list[Strength]:
    least = geometry(model).least / geometry(model).full
    return [share for share in _shares(model) if share >= least]


def _pairs(model: nn.Module) -> list[Strength]:
    return list(range(1, max(2, model.patch_embed.num_patches // 2)))


REDUCERS = {
    "evit": Reducer(_evit, _shares, 0.7),
    "tome": Reducer(_tome, _pairs, 8),
    "mctf": Reducer(_mctf, _pairs, 8),
    "diffrate": Reducer(_by_hand, _reachable, 0.65, _learned),
}


def scheduled(model: nn.Module, schedule: Path) -> Trunk:
    """DiffRate by the schedule in a file that a search wrote before; shares nothing with ``model``."""
    return diffrate(copy.deepcopy(model), str(schedule)).eval()


def meet(reducer: Reducer, model: nn.Module, blocks: list[int] | None, cost: Cost, target: float) -> Strength:
    """The weakest strength at which ``cost`` of the reduced model is at most ``target``; found by bisection.

    Raises UserError where even the strongest costs more.
    """
    strengths = reducer.strengths(model)
    least = cost(reducer.make(model, strengths[-1], blocks))
    if least > target:
        raise UserError(f"the target {target:.4g} is out of reach: the strongest reduction gets down to {least:.4g}")
    low, high = 0, len(strengths) - 1
    while low < high:
        middle = (low + high) // 2
        if cost(reducer.make(model, strengths[middle], blocks)) <= target:
            high = middle
        else:
            low = middle + 1
    return strengths[low]


def macs_share(model: nn.Module, image: Tensor) -> Cost:
    """A cost: the multiply-accumulates of a reduced model, as a share of those of ``model``.

    image: [1, channels, height, width].
    """
    whole = count(model, image).macs
    return lambda reduced: count(reduced, image).macs / whole


def file_latency(loaded: Loaded, finish: Callable[[nn.Module], nn.Module], folder: Path) -> Cost:
    """A cost: milliseconds that the ONNX file of a reduced model takes for one picture on this machine.

    finish: what else is done to the model before it is exported, such as quantizing it.
    """
    image = np.zeros((1, 3, *loaded.preprocess.size), np.float32)
    labels = [str(i) for i in range(loaded.model.num_classes)]

    def cost(reduced: nn.Module) -> float:
        file = export_onnx(finish(reduced), folder / "candidate.onnx", loaded.preprocess, labels)
        run, _ = open_engine(file)
        milliseconds = 1000 * latency(lambda: run(image), warmup=5, repeats=30)
        file.unlink()
        return milliseconds

    return cost


@torch.inference_mode()
def tokens_by_block(trunk: Trunk, image: Tensor) -> list[int]:
    """How many tokens leave each block, prefix tokens among them. image: [1, channels, height, width]."""
    _, *leaving = trunk.eval().walk(image)
    return [tokens.features.shape[1] for tokens in leaving]
