"""Tokens-to-token against a plain patch embedding in front of one backbone, and what its attention costs."""

import logging
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from vitalk.measurement import Measurement, Verdict
from vitalk.vision.classifier import Classifier
from vitalk.vision.cost import count, latencies
from vitalk.vision.data import cifar_arrays

from .tokens import TokenLayer

# Eight by eight tokens of four pixels each way; the plain patches are the split without a token layer before it.
OVERLAPPING = [[3, 2, 1], [3, 2, 1]]
EMBEDDINGS: dict[str, dict[str, Any]] = {
    "patches": {"splits": [[4, 4, 0]]},
    "convolutions": {"splits": OVERLAPPING, "tokenizer": "conv"},
    "performer": {"splits": OVERLAPPING, "tokenizer": "performer"},
    "transformer": {"splits": OVERLAPPING, "tokenizer": "transformer"},
}
BACKBONE = {"img_size": 32, "token_dim": 32, "embed_dim": 64, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0}
PUBLISHED = {"convolutions": 1.3, "performer": 2.0, "transformer": 2.2}
SEEDS, BATCH, PILOT = 3, 64, 8


def measure(minutes: float, data: Path) -> Measurement:
    """Top-1 of the same small backbone behind four embeddings on CIFAR-10 (ImageNet in the paper, table 5).

    minutes: the budget; all runs get the same number of steps, which follows from it. A seed that would no longer
    fit is left out. data: the data root.
    """
    end = time.monotonic() + 60 * minutes
    train = Pictures(*cifar_arrays(data / "images/cifar10", "train", int(min(20_000, max(1_000, 600 * minutes)))))
    test = Pictures(*cifar_arrays(data / "images/cifar10", "test", int(min(5_000, max(500, 1_000 * minutes)))))
    growth = attention_growth(seconds=6 * minutes)
    top1: dict[str, list[float]] = {name: [] for name in EMBEDDINGS}
    with _quiet(), Progress(transient=True) as progress:
        task = progress.add_task("timing", total=None)
        paces = [_fit(name, 0, train, PILOT, Clock(progress, task))[1].pace() for name in EMBEDDINGS]
        # Evaluation and Lightning's own start take a part of what is left; a fifth is kept for them and for drift.
        steps = max(PILOT, int(0.8 * (end - time.monotonic()) / (SEEDS * sum(paces))))
        progress.update(task, total=SEEDS * len(EMBEDDINGS) * steps, completed=0)
        for seed in range(SEEDS):
            started = time.monotonic()
            for name, scores in top1.items():
                progress.update(task, description=f"{name}, seed {seed}")
                model, clock = _fit(name, seed, train, steps, Clock(progress, task))
                scores.append(100 * clock.trainer.validate(model, _loader(test, False), verbose=False)[0]["val/top1"])
            if seed and 2 * time.monotonic() - started > end:
                break
    return judge(top1, growth, f"CIFAR-10, {len(train)} pictures, {steps * BATCH / len(train):.1f} epochs each")


def judge(top1: dict[str, list[float]], growth: dict[str, float], data: str) -> Measurement:
    """The measurement that the top-1 accuracies [%] by embedding and seed and the growth of the times amount to.

    "direction only" takes a gain of the Performer over patches that is more than two standard errors above zero;
    "reproduced" also half the published gain or more, and the paper's order of all four.
    """
    gains = {name: [a - b for a, b in zip(top1[name], top1["patches"], strict=True)] for name in PUBLISHED}
    mean = {name: statistics.mean(values) for name, values in gains.items()}
    noise = {name: _standard_error(values) for name, values in gains.items()}
    verdict: Verdict = "not reproduced"
    if mean["performer"] > 2 * noise["performer"]:
        ordered = (
            mean["transformer"] >= mean["performer"] - noise["performer"] and mean["performer"] > mean["convolutions"]
        )
        full = mean["performer"] >= PUBLISHED["performer"] / 2
        verdict = "reproduced" if full and ordered and mean["convolutions"] > 0 else "direction only"
    image = torch.randn(1, 3, 32, 32)
    costs = {name: count(_classifier(name).model, image) for name in EMBEDDINGS}
    return Measurement(
        claim="Tokens-to-token layers classify better than a patch embedding in front of the same backbone; the "
        "Performer layer nearly as well as softmax attention, at a cost linear in the tokens",
        published="top-1 on ImageNet over 79.5 % with patches: "
        + ", ".join(f"{name} +{gain}" for name, gain in PUBLISHED.items()),
        measured=", ".join(f"{name} {mean[name]:+.1f} ± {noise[name]:.1f}" for name in PUBLISHED)
        + f" points; time of a token layer for 4 times the tokens: performer x{growth['performer']:.1f},"
        f" transformer x{growth['transformer']:.1f}",
        baseline=f"patches {statistics.mean(top1['patches']):.1f} % top-1",
        verdict=verdict,
        data=f"{data}, {len(top1['patches'])} seeds",
        details={
            "top1": top1,
            "params": {name: cost.params for name, cost in costs.items()},
            "macs": {name: cost.macs for name, cost in costs.items()},
            **{f"growth_{name}": value for name, value in growth.items()},
        },
    )


def attention_growth(seconds: float, sides: tuple[int, int] = (56, 112)) -> dict[str, float]:
    """How many times longer a token layer (147 -> 64) takes for a grid of the second side than of the first.

    Linear time would give the ratio of the token counts (4), quadratic time its square (16).
    """
    layers = {kind: TokenLayer(147, 64, kind).eval() for kind in ("performer", "transformer")}
    tokens = {side: torch.randn(1, side**2, 147) for side in sides}
    runs = {
        f"{kind} {side}": lambda layer=layer, x=x: layer(x)
        for kind, layer in layers.items()
        for side, x in tokens.items()
    }
    with torch.inference_mode():
        taken = latencies(runs, warmup=1, repeats=20, seconds=seconds)
    return {kind: taken[f"{kind} {sides[1]}"] / taken[f"{kind} {sides[0]}"] for kind in layers}


class Pictures(Dataset):
    """Pictures in memory that are taken out batch by batch, flipped at random where ``flip`` is set."""

    def __init__(self, pictures: Tensor, labels: Tensor) -> None:
        self.pictures = (pictures.float() / 255 - 0.47) / 0.25
        self.labels, self.flip = labels, False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        pictures = self.pictures[rows]
        if self.flip:
            pictures = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, pictures.flip(-1), pictures)
        return pictures, self.labels[rows]


class Clock(Callback):
    """Moves the progress bar and keeps the time of every step."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self.progress, self.task, self.times = progress, task, [time.monotonic()]

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: D102
        self.trainer = trainer
        self.times.append(time.monotonic())
        self.progress.advance(self.task)

    def pace(self) -> float:
        """Median seconds a step, the first ones left out."""
        return statistics.median(b - a for a, b in zip(self.times[3:], self.times[4:], strict=False))


def _classifier(name: str, steps: int = 1) -> Classifier:
    arguments = {**BACKBONE, **EMBEDDINGS[name]}
    return Classifier("t2t_vit_7", arguments, num_classes=10, lr=2e-3, warmup_steps=steps // 10)


def _fit(name: str, seed: int, pictures: Pictures, steps: int, clock: Clock) -> tuple[Classifier, Clock]:
    seed_everything(seed, verbose=False)
    model = _classifier(name, steps)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, _loader(pictures, True))
    return model, clock


def _loader(pictures: Pictures, training: bool) -> DataLoader:
    pictures.flip = training
    order = RandomSampler(pictures) if training else SequentialSampler(pictures)
    return DataLoader(pictures, batch_size=None, sampler=BatchSampler(order, BATCH, drop_last=training))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice, which would be printed for each of the many short runs."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("inf")
