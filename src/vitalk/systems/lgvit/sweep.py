"""What every threshold costs and gives, from one pass over a data set."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.files import replacing, write_whole
from vitalk.vision.cost import count

from .model import EveryExit, LGViT
from .rules import Rule


@dataclass(frozen=True)
class Costs:
    """Multiply-accumulates of one picture. plain: without heads. until: up to each exit, the heads on the way
    included; the last entry is the whole way with all heads."""

    plain: int
    until: tuple[int, ...]

    @property
    def heads(self) -> float:
        """What all heads add to the plain network, as a share of it."""
        return self.until[-1] / self.plain - 1


@dataclass(frozen=True)
class Recorded:
    """What every exit said about a data set.

    logits: [exits + 1, pictures, classes], float32, the final classifier last: 1.8 GB for ImageNet's validation set
    and eight exits. labels: [pictures]. layers: of the exits, then the depth.
    """

    logits: Tensor
    labels: Tensor
    layers: tuple[int, ...]
    costs: Costs

    def top1(self) -> list[float]:
        """Accuracy of each exit and of the final classifier, in percent."""
        return [100 * float(value) for value in (self.logits.argmax(2) == self.labels).float().mean(1)]


@dataclass(frozen=True)
class Point:
    """One setting of a rule. top1: percent. layer: where pictures leave on average. speedup: depth by that, the
    paper's figure. macs: a picture on average, heads included; macs_speedup: the plain network's by that. shares: of
    the pictures that leave at each exit and, last, at the end."""

    rule: str
    threshold: float | None
    patience: int
    top1: float
    layer: float
    speedup: float
    macs: float
    macs_speedup: float
    shares: tuple[float, ...]


class Until(nn.Module):
    """What a picture runs that leaves at the last of the first ``exits`` exits: layers, and all heads on the way.

    images [batch, channels, height, width] -> that exit's logits [batch, classes].
    """

    def __init__(self, model: LGViT, exits: int):
        super().__init__()
        self.model, self.count = model, exits
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        """The logits of the last of the exits."""
        model, x = self.model, self.model.trunk.embed(images)
        for index in range(model.layers[self.count - 1]):
            x = model.trunk.layer(index, x)
            if index + 1 in model.layers:
                head = model.exits[model.layers.index(index + 1)]
                logits = head(*model.trunk.split(x, images.shape[-2:])).logits
        return logits


def costs(model: LGViT, image: Tensor) -> Costs:
    """Count what ``model`` takes for image [1, channels, height, width]; one pass for each exit."""
    until = [count(Until(model, exits), image).macs for exits in range(1, len(model.exits) + 1)]
    return Costs(count(model.vit, image).macs, (*until, count(EveryExit(model), image).macs))


@torch.no_grad()
def record(model: LGViT, batches: Iterable[tuple[Tensor, Tensor]]) -> Recorded:
    """One pass over (images, labels), in eval mode on the device of the model.

    Raises UserError where nothing came in, or logits are NaN or infinite.
    """
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        logits, labels, image = [], [], None
        for images, truth in batches:
            image = images[:1] if image is None else image
            logits.append(model.forward_exits(images.to(device)).stacked().float().cpu())
            labels.append(truth.cpu())
    finally:
        model.train(training)
    if image is None:
        raise UserError("there are no pictures to sweep thresholds over; name a data set that is not empty")
    said = torch.cat(logits, 1)
    layers = (*model.layers, model.trunk.depth)
    for layer, rows in zip(layers, said, strict=True):
        if not rows.isfinite().all():
            raise UserError(f"the classifier after layer {layer} gives NaN or infinite logits; check the weights")
    return Recorded(said, torch.cat(labels), layers, costs(model, image.to(device)))


def sweep(recorded: Recorded, rules: Sequence[Rule]) -> list[Point]:
    """What each rule does on recorded logits; nothing is run again. The decisions are those of ``LGViT.infer``.

    A rule that never fires asks no head, so it costs what the plain network costs.
    """
    exits, layers = len(recorded.layers) - 1, torch.tensor(recorded.layers, dtype=torch.float64)
    until, right = torch.tensor(recorded.costs.until, dtype=torch.float64), recorded.logits.argmax(2) == recorded.labels
    scores: dict[str, Tensor] = {}
    points = []
    for rule in rules:
        if rule.kind not in scores:
            scores[rule.kind] = rule.score(recorded.logits[:-1])
        chosen = rule.decide(scores[rule.kind])
        macs = float(recorded.costs.plain) if rule.never(exits) else float(until[chosen].mean())
        layer = float(layers[chosen].mean())
        points.append(
            Point(
                rule=rule.kind,
                threshold=rule.threshold,
                patience=rule.patience,
                top1=100 * float(right.gather(0, chosen[None]).double().mean()),
                layer=layer,
                speedup=recorded.layers[-1] / layer,
                macs=macs,
                macs_speedup=recorded.costs.plain / macs,
                shares=tuple((torch.bincount(chosen, minlength=exits + 1) / len(chosen)).tolist()),
            )
        )
    return points


def cheapest(points: Sequence[Point], full: float, loss: float) -> Point | None:
    """The point with the largest speed-up in layers whose accuracy is at most ``loss`` points below ``full``."""
    good = [point for point in points if point.top1 >= full - loss]
    return max(good, key=lambda point: point.speedup, default=None)


def save(points: Sequence[Point], path: Path) -> Path:
    """Write the points as JSON, a list of objects; whole or not at all."""
    return write_whole(path, json.dumps([asdict(point) for point in points], indent=1) + "\n")


def plot(curves: dict[str, Sequence[Point]], path: Path) -> Path:
    """Draw accuracy over the speed-up in layers and in multiply-accumulates, a line a curve, as a picture file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, field, unit in zip(figure.subplots(1, 2), ("speedup", "macs_speedup"), ("layers", "MACs"), strict=True):
        for name, points in curves.items():
            axes.plot([getattr(p, field) for p in points], [p.top1 for p in points], marker=".", label=name)
        axes.set(xlabel=f"speed-up in {unit}", ylabel="top-1 [%]")
        axes.grid(alpha=0.3)
        axes.legend()
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix.lstrip(".") or "png")
    return path
