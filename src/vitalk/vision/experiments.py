"""Training claims at small scale: equal budgets, pictures in memory, accuracies by seed.

with budget("T2T-ViT", minutes) as time:
    found = compare({"patches": make, "overlapping": make_other}, train, test, time)
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning import seed_everything
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from vitalk.experiments import Budget, short_run

from .classifier import ClassifierTraining
from .cost import count
from .data import cifar_arrays

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.244, 0.262)  # of CIFAR-10
PILOT = 8  # steps that find out how long a step takes


class Pictures(Dataset):
    """Pictures in memory, a batch at a time: ``self[indices]`` is (images, labels).

    pixels: uint8 [pictures, 3, height, width]; images come normalised as floats [batch, 3, height, width].
    labels: [pictures]. padding: None, or training mode: pictures are flipped at random and shifted by up to so
    many pixels each way, each by itself, the border reflected.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        padding: int | None = None,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
    ):
        self.pixels, self.labels, self.padding = pixels, labels, padding
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (mean, std))

    @classmethod
    def cifar10(cls, data: Path, split: str, count: int = 50_000, padding: int | None = None) -> "Pictures":
        """The first ``count`` pictures of CIFAR-10 below the data root."""
        return cls(*cifar_arrays(data / "images" / "cifar10", split, count), padding)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: list[int]) -> tuple[Tensor, Tensor]:
        x = self.pixels[index].float() / 255
        if self.padding is not None:
            x = self._shifted(torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x))
        return (x - self.mean) / self.std, self.labels[index]

    def spaced(self, count: int) -> "Pictures":
        """``count`` of them, evenly spaced; all where there are fewer."""
        chosen = torch.linspace(0, len(self) - 1, min(count, len(self))).long()
        mean, std = (tuple(v.flatten().tolist()) for v in (self.mean, self.std))
        return Pictures(self.pixels[chosen], self.labels[chosen], self.padding, mean, std)

    def batches(self, size: int) -> DataLoader:
        """Batches of ``size``: shuffled and whole ones only in training mode, else in order."""
        training = self.padding is not None
        order = RandomSampler(self) if training else SequentialSampler(self)
        return DataLoader(self, batch_size=None, sampler=BatchSampler(order, size, drop_last=training))

    def _shifted(self, x: Tensor) -> Tensor:
        if not self.padding:
            return x
        height, width = x.shape[2:]
        x = F.pad(x, (self.padding,) * 4, mode="reflect")
        row = torch.randint(2 * self.padding + 1, (len(x), 1)) + torch.arange(height)
        column = torch.randint(2 * self.padding + 1, (len(x), 1)) + torch.arange(width)
        return x[torch.arange(len(x))[:, None, None], :, row[:, :, None], column[:, None]].permute(0, 3, 1, 2)


def cifar10(data: Path, minutes: float, train: int = 5_000, test: int = 1_000) -> tuple[Pictures, Pictures]:
    """The first pictures of CIFAR-10 below the data root, in training mode and for testing.

    train, test: so many a minute, 1,000 and 500 at the least.
    """
    many, few = int(min(50_000, max(1_000, train * minutes))), int(min(10_000, max(500, test * minutes)))
    return Pictures.cifar10(data, "train", many, padding=4), Pictures.cifar10(data, "test", few)


def fit(
    model: ClassifierTraining,
    pictures: Pictures,
    steps: int,
    batch: int = 128,
    tick: Callable[[], object] = lambda: None,
    seconds: float | None = None,
) -> float:
    """``short_run`` on pictures: train for ``steps`` steps, or ``seconds``; the median seconds of a step."""
    return short_run(model, pictures.batches(batch), steps, tick, seconds)


def with_model(classifier: ClassifierTraining, model: nn.Module) -> ClassifierTraining:
    """``classifier``, which from now on trains ``model`` itself, with the attention of timm's blocks multiplied out.

    Few tokens train faster so on a CPU; it is what ``fused_attn: False`` does to a classifier's own model.
    """
    classifier.model = model
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return classifier


@torch.inference_mode()
def top1(model: nn.Module, pictures: Pictures, batch: int = 250) -> float:
    """Top-1 accuracy in percent, in eval mode on the device of the model."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    hits = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in pictures.batches(batch))
    model.train(training)
    return 100 * hits / len(pictures)


@dataclass
class Scores:
    """Top-1 accuracies in percent by name, one each seed of training or draw of calibration pictures."""

    top1: dict[str, list[float]]

    def gain(self, name: str, baseline: str) -> tuple[float, float]:
        """(mean, standard error) of the points that ``name`` is ahead of ``baseline``, paired by seed or draw.

        The error of a single one is infinite: it shows nothing.
        """
        gains = [a - b for a, b in zip(self.top1[name], self.top1[baseline], strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("inf")
        return statistics.mean(gains), error

    def ahead(self, name: str, baseline: str) -> bool:
        """Whether ``name`` gains more than two standard errors on ``baseline``."""
        gain, error = self.gain(name, baseline)
        return gain > 2 * error


@dataclass
class Comparison(Scores):
    """The accuracies by model and seed, and the steps that each model was trained for on each seed.

    models: the trained networks, by name and seed.
    """

    steps: int
    batch: int
    models: dict[str, list[nn.Module]] = field(default_factory=dict)

    def told(self, train: Pictures, test: Pictures) -> str:
        """What the models were trained and tested on, for the ``data`` of a measurement."""
        epochs = self.steps * self.batch / len(train)
        return f"CIFAR-10, {len(train)} pictures, {epochs:.1f} epochs each, {len(test)} for testing"

    def details(self, make: Callable[[str], ClassifierTraining]) -> dict[str, object]:
        """What a measurement keeps of it: accuracies, and what the model that ``make`` builds costs, by name."""
        image = torch.randn(1, 3, 32, 32)
        costs = {name: count(make(name).model, image) for name in self.top1}
        return {
            "top1": {name: [round(v, 2) for v in values] for name, values in self.top1.items()},
            "params": {name: cost.params for name, cost in costs.items()},
            "macs": {name: cost.macs for name, cost in costs.items()},
        }


def compare(
    models: dict[str, Callable[[int], ClassifierTraining]],
    train: Pictures,
    test: Pictures,
    time: Budget,
    seeds: int = 3,
    batch: int = 128,
) -> Comparison:
    """Train every model on every seed for equally many steps, as many as the time allows, and evaluate it.

    models: name -> a function that builds the classifier, given the number of steps (for its warm-up). A seed that
    would no longer fit is left out for all models.
    """
    paces = []
    for name, make in models.items():
        seed_everything(0, verbose=False)
        time.tick(f"timing {name}")
        paces.append(fit(make(PILOT), train, PILOT, batch))
    # Evaluation and Lightning's own start take a part of what is left; a sixth is kept for them and for drift.
    steps = max(PILOT, int(time.tick() * 5 / 6 / (seeds * sum(paces))))
    found: dict[str, list[float]] = {name: [] for name in models}
    trained: dict[str, list[nn.Module]] = {name: [] for name in models}
    for seed in range(seeds):
        before = time.tick()
        for name, make in models.items():
            seed_everything(seed, verbose=False)
            time.tick(f"{name}, seed {seed}")
            model = make(steps)
            fit(model, train, steps, batch, time.tick)
            found[name].append(top1(model, test))
            trained[name].append(model.model)
        left = time.tick()
        if left < 0.9 * (before - left):
            break
    return Comparison(found, steps, batch, trained)


@dataclass
class Calibrated(Scores):
    """The accuracies by quantized variant and calibration draw, and that of the float network.

    pictures: how many were judged by. calibration: how many each draw has.
    """

    float_top1: float
    pictures: int
    calibration: int

    def mean(self, name: str) -> float:
        """The mean over the draws."""
        return statistics.mean(self.top1[name])

    def details(self) -> dict[str, object]:
        """What a measurement keeps of it."""
        return {
            "top1_float": round(self.float_top1, 2),
            "top1": {name: round(self.mean(name), 2) for name in self.top1},
            "spread": {name: round(statistics.stdev(values), 2) for name, values in self.top1.items()},
            "top1_by_draw": {name: [round(v, 2) for v in values] for name, values in self.top1.items()},
        }


def compare_calibrated(
    model: nn.Module,
    variants: dict[str, Callable[[nn.Module, Tensor], nn.Module]],
    train: Pictures,
    test: Pictures,
    time: Budget,
    draws: int = 3,
    calibration: int = 32,
) -> Calibrated:
    """Quantize ``model`` in every way on the same draws of pictures, and evaluate each on as many as the time allows.

    variants: name -> (model, images [calibration, channels, height, width]) -> a quantized copy. train: where the
    pictures are drawn from, as the model sees them in use (no augmentation). The time left after one draw of
    everything decides how many of the ``test`` pictures are looked at, 250 at least; they are evenly spaced.
    """
    everything = {}
    before = time.tick("calibrating once")
    first = draw(train, calibration, 0)
    for name, make in variants.items():
        time.tick(f"calibrating {name}")
        everything[name] = make(model, first)
    making = before - time.tick("timing")
    before = time.tick()
    for quantized in everything.values():
        top1(quantized, test.spaced(250))
    pace = (before - time.tick()) / 250
    left = 0.9 * time.tick() - (draws - 1) * making
    count = int(min(max(left / (pace * (draws + 1 / len(variants))), 250), len(test)))
    test = test.spaced(count)
    found: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(draws):
        images = draw(train, calibration, number)
        for name, make in variants.items():
            time.tick(f"{name}, draw {number}")
            quantized = everything.pop(name) if number == 0 else make(model, images)
            found[name].append(top1(quantized, test))
    return Calibrated(found, top1(model, test), count, calibration)


def draw(pictures: Pictures, count: int, seed: int) -> Tensor:
    """``count`` of the pictures at random, as the network takes them."""
    chosen = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))[:count]
    return pictures[chosen.tolist()][0]
