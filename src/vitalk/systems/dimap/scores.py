"""Scores of weights: DIMAP's, and those that it is compared with. High scores stay."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.errors import UserError

from .layers import Layer

Ranking = Literal["module", "type", "lamp", "global", "uniform", "random", "taylor"]
GROUPED: dict[str, str] = {"module": "(a)", "type": "(b)", "lamp": "(c)"}  # rankings that share DIMAP's formula


def group_scores(weights: Sequence[Tensor]) -> list[Tensor]:
    """The share of each weight in what is alive when it goes, of all ``weights`` as one module; float64.

    With the module's weights in descending order of size, w_j^2 / sum_{i <= j} w_i^2 (arXiv 2404.13648, section 3; of
    a single layer this is LAMP's score, arXiv 2010.07611). Scores lie in (0, 1], the largest weight has 1; zeros
    have 0.
    """
    sizes = torch.cat([w.abs().flatten() for w in weights])
    order = descending(sizes)
    squares = sizes[order].double().square_()  # sums of 10^7 float32 would lose the small ones
    squares /= squares.cumsum(0).clamp_min_(torch.finfo(torch.float64).tiny)
    scores = torch.empty_like(squares)
    scores[order] = squares
    parts = scores.split([w.numel() for w in weights])
    return [part.view(w.shape) for part, w in zip(parts, weights, strict=True)]


def rank(
    layers: dict[str, Layer], ranking: Ranking = "module", gradients: dict[str, Tensor] | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Scores by layer, each of its weight's shape; weights that are zero already have -inf, whatever the ranking.

    ranking: "module" (a) scores all layers of one module of one block together, "type" (b) all of one module type
    throughout the network (the paper leaves the extent open), "lamp" (c) layers one by one. The others are baselines:
    "global" and "uniform" rank by magnitude, the second within its layer, so that all layers lose the same share;
    "random" draws (``seed``); "taylor" is |weight x gradient|, and needs ``gradients`` of the loss by layer.

    Raises UserError for other rankings, and for "taylor" without gradients.
    """
    if ranking not in get_args(Ranking):
        raise UserError(f"ranking must be one of {', '.join(get_args(Ranking))}, got {ranking}")
    if ranking == "taylor" and gradients is None:
        raise UserError("the ranking 'taylor' needs batches of pictures and labels; give some, or choose another")
    weights = {name: layer.weight for name, layer in layers.items()}
    if ranking in GROUPED:
        scores = {}
        for names in _groups(layers, ranking):
            scores |= dict(zip(names, group_scores([weights[name] for name in names]), strict=True))
    elif ranking == "global":
        scores = {name: w.abs().double() for name, w in weights.items()}
    elif ranking == "uniform":
        scores = {name: _places(w) for name, w in weights.items()}
    elif ranking == "random":
        draw = torch.Generator().manual_seed(seed)
        scores = {n: torch.rand(w.shape, generator=draw, dtype=torch.float64).to(w.device) for n, w in weights.items()}
    else:
        scores = {name: (w * gradients[name]).abs().double() for name, w in weights.items()}
    return {name: scores[name].masked_fill_(w == 0, -torch.inf) for name, w in weights.items()}


def loss_gradients(
    model: nn.Module, layers: dict[str, Layer], batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """The cross-entropy's gradient by layer, summed over batches of (images, labels); in eval mode.

    Raises UserError where there is no batch, or the gradient is not finite.
    """
    parameters = {name: layer.module.weight for name, layer in layers.items()}
    found = {name: torch.zeros_like(p) for name, p in parameters.items()}
    first, training, done = next(model.parameters()), model.training, 0
    model.eval()
    try:
        for images, labels in batches:
            logits = model(images.to(first.device)).float()
            loss = F.cross_entropy(logits, labels.to(first.device))
            parts = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for total, part in zip(found.values(), parts, strict=True):
                if part is not None:
                    total += part
            done += 1
    finally:
        model.train(training)
    if not done:
        raise UserError("the ranking 'taylor' got no batch to take gradients of; give at least one")
    if bad := next((name for name, total in found.items() if not torch.isfinite(total).all()), None):
        raise UserError(f"the loss has no finite gradient for {bad}.weight; check the pictures")
    return found


def _groups(layers: dict[str, Layer], ranking: str) -> list[list[str]]:
    """Names of the layers that are scored together."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, layer in layers.items():
        module = f"{layer.owner}/{layer.kind}" if layer.kind != "aux" else name
        groups[{"module": module, "type": layer.kind, "lamp": name}[ranking]].append(name)
    return list(groups.values())


def _places(weight: Tensor) -> Tensor:
    """The share of a layer's weights that are no larger than each, (0, 1]."""
    order = descending(weight.abs().flatten())
    places = torch.empty(weight.numel(), dtype=torch.float64, device=weight.device)
    places[order] = torch.arange(len(order), 0, -1, dtype=torch.float64, device=weight.device) / len(order)
    return places.view(weight.shape)


def descending(values: Tensor) -> Tensor:
    """Indices [count] that put values [count] in descending order; equal ones in any order, the same every time."""
    if values.device.type != "cpu":
        return values.argsort(descending=True)
    values = values if values.dtype == torch.float64 else values.float()
    return torch.from_numpy(np.argsort(values.neg().numpy()))  # vectorised: two to three times as fast as torch's
