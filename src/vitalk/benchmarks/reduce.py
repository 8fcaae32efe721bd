"""Token reducers side by side: what each saves on DeiT-S, in MACs and in time, and what it costs in accuracy.

The first half has DeiT-S/224 with random weights and the papers' settings; the second the embedded classifier on
CIFAR-10, every method at the same MACs, as it is and after the same short fine-tuning.
"""

import copy
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from lightning import seed_everything
from torch import Tensor, nn

from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.preprocess import Preprocess
from vitalk.deploy.runtime import open_engine
from vitalk.experiments import Budget, budget
from vitalk.measurement import machine
from vitalk.reducers import REDUCERS, Reducer, macs_share, meet, tokens_by_block
from vitalk.systems.diffrate import diffrate
from vitalk.systems.evit import evit
from vitalk.systems.mctf import mctf
from vitalk.systems.sit import TokenSlimming, sit
from vitalk.systems.sit.training import SlimmingClassifier
from vitalk.vision.classifier import Classifier
from vitalk.vision.cost import count, latencies
from vitalk.vision.experiments import Pictures, fit, top1, with_model
from vitalk.vision.merging import tome
from vitalk.vision.tokens import Attended, TokenReducer, Tokens, Trunk

DEIT, EYE = "deit_small_patch16_224", "vitalk_eye"
BATCHES = (1, 16)
SHARE = 0.8  # of the MACs that every method may spend on CIFAR-10; half of the classifier's are its stem's
SEARCH = 200  # steps of DiffRate's search
SEEDS, BATCH, RATE = 2, 128, 1e-4
NOTE = (
    "Pictures a second in eager torch, medians, taken in turns; ratios to the plain model, in torch and (onnx) of "
    "the exported files in onnxruntime. gain: what the clock shows of the MACs' ratio. overhead: in torch, against "
    "the same numbers of tokens chosen for free. top-1 is the embedded classifier's on CIFAR-10 at {share:.0%} of "
    "its MACs, off the shelf and after {steps} steps of batch {batch}, mean of {seeds} seeds; SiT's modules are "
    "trained by its own distillation in these steps."
)

Make = Callable[[nn.Module], Trunk]
PAPERS: dict[str, tuple[str, Make]] = {  # setting, and what makes it of DeiT-S
    "evit": ("keep 0.7 in blocks 3, 6, 9", lambda vit: evit(vit, 0.7)),
    "tome": ("13 pairs a block", lambda vit: tome(vit, 13)),
    "mctf": ("16 tokens in 11 blocks", lambda vit: mctf(vit, 16)),
    "mctf fast": ("0.35 in blocks 3, 6, 9", lambda vit: mctf(vit, 0.35, (3, 6, 9))),
    "diffrate": ("published, 2.9 G", lambda vit: diffrate(vit, 2.9, "deit_small")),
    "sit": ("half, after blocks 7, 9, 11", lambda vit: sit(vit, 0.5, (7, 2, 2, 1))),
}


class Truncate(TokenReducer):
    """Keeps the first ``count`` tokens, which costs next to nothing: what a reduction would take if choosing were free.

    after: whether it acts behind the block, as SiT does, or between attention and MLP.
    """

    def __init__(self, count: int, after: bool):
        super().__init__()
        self.count, self.after = count, after

    def forward(self, tokens: Tokens, seen: Attended) -> Tokens:
        """The first tokens."""
        return Tokens(tokens.features[:, : self.count])

    def through(self, block: nn.Module, tokens: Tokens) -> Tokens:
        """The plain block, cut short."""
        return self(Tokens(block(tokens.features)), Attended()) if self.after else super().through(block, tokens)


def truncated(reduced: Trunk, image: Tensor) -> Trunk:
    """A trunk with the same number of tokens everywhere as ``reduced``, chosen for free."""
    counts = tokens_by_block(reduced, image)
    after = any(isinstance(reducer, TokenSlimming) for reducer in reduced.reducers)
    return Trunk(copy.deepcopy(reduced.vit), [Truncate(n, after) for n in counts]).eval()


def speeds(seconds: float, tick: Callable[..., object]) -> dict[str, dict[str, Any]]:
    """By method, the plain DeiT-S first: setting, GMACs, pictures a second, gains and overhead.

    seconds: to be spent on each batch size, in torch and in onnxruntime.
    """
    torch.manual_seed(0)
    plain, image = timm.create_model(DEIT).eval(), torch.randn(1, 3, 224, 224)
    models: dict[str, nn.Module] = {"plain": plain}
    models |= {name: make(copy.deepcopy(plain)).eval() for name, (_, make) in PAPERS.items()}
    free = {f"{name}, free": truncated(model, image) for name, model in models.items() if name != "plain"}
    macs = {name: count(model, image).macs for name, model in models.items()}
    rows: dict[str, dict[str, Any]] = {
        name: {"name": name, "setting": PAPERS.get(name, ("",))[0], "macs": macs[name],
               "ratio_macs": macs["plain"] / macs[name]}
        for name in models
    }  # fmt: skip
    for batch in BATCHES:
        tick(f"DeiT-S, batch {batch}")
        images = torch.randn(batch, 3, 224, 224)
        runs = {name: partial(model, images) for name, model in {**models, **free}.items()}
        with torch.inference_mode():
            taken = latencies(runs, warmup=2, repeats=100, seconds=seconds)
        for name, row in rows.items():
            row |= {f"images_{batch}": batch / taken[name], f"ratio_{batch}": taken["plain"] / taken[name]}
            if name != "plain":
                row[f"gain_{batch}_fraction"] = row[f"ratio_{batch}"] / row["ratio_macs"]
                row[f"overhead_{batch}_fraction"] = taken[name] / taken[f"{name}, free"] - 1
    tick("DeiT-S in onnxruntime")
    for batch, taken in file_latencies(models, seconds).items():
        for name, row in rows.items():
            row[f"ratio_onnx_{batch}"] = taken["plain"] / taken[name]
            if name != "plain":
                row[f"gain_onnx_{batch}_fraction"] = row[f"ratio_onnx_{batch}"] / row["ratio_macs"]
    return rows


def file_latencies(models: dict[str, nn.Module], seconds: float) -> dict[int, dict[str, float]]:
    """By batch size, the seconds that each model's ONNX file takes in onnxruntime, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for i, (name, model) in enumerate(models.items()):
            preprocess, labels = Preprocess(), [str(label) for label in range(model.num_classes)]
            runs[name], _ = open_engine(export_onnx(model, Path(folder) / f"{i}.onnx", preprocess, labels))
        taken = {}
        for batch in BATCHES:
            images = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), np.float32)
            taken[batch] = latencies({name: partial(run, images) for name, run in runs.items()}, 2, 100, seconds)
    return taken


@dataclass
class Contestant:
    """A method on the embedded classifier: the model as it is off the shelf, and what trains a copy of it.

    shelf: None where nothing can be expected of it untrained. trainer: a fresh module whose ``model`` is trained.
    """

    model: nn.Module
    shelf: bool
    trainer: Callable[[], Classifier]


def contestants(train: Pictures, tick: Callable[..., object]) -> dict[str, Contestant]:
    """The embedded classifier, plain and by every method, each at ``SHARE`` of the MACs or a little less."""
    plain, image = timm.create_model(EYE, pretrained=True).eval(), torch.randn(1, 3, 32, 32)
    share = macs_share(plain, image)
    found = {"plain": Contestant(plain, True, partial(plainly, plain))}
    for name, reducer in REDUCERS.items():
        tick(f"{name} at {SHARE:.0%} of the MACs")
        if reducer.learn is not None:
            model = reducer.learn(plain, SHARE, train.batches(64), SEARCH)
        else:
            model = reducer.make(plain, meet(reducer, plain, None, share, SHARE), None)
        found[name] = Contestant(model, True, partial(plainly, model))
    keeps = [percent / 100 for percent in range(99, 29, -1)]  # less would leave nothing after three slimmings
    slimming = Reducer(lambda vit, keep, _: sit(copy.deepcopy(vit), keep), lambda _: keeps, 0.5)
    keep = meet(slimming, plain, None, share, SHARE)
    found["sit"] = Contestant(slimming.make(plain, keep, None).eval(), False, partial(distilling, keep))
    return found


def plainly(model: nn.Module) -> Classifier:
    """What fine-tunes a copy of ``model`` on labels."""
    return with_model(Classifier(EYE, num_classes=10, lr=RATE), copy.deepcopy(model))


def distilling(keep: float) -> Classifier:
    """What trains SiT's modules, at SiT's own learning rate."""
    return SlimmingClassifier("sit_vit", EYE, {"vit": EYE, "keep": keep}, num_classes=10, fused_attn=False)


def accuracies(train: Pictures, test: Pictures, time: Budget) -> tuple[dict[str, dict[str, Any]], int]:
    """By method: share of the MACs, top-1 off the shelf and after tuning; and the steps of that.

    All tune for equally many steps, as many as the time allows, with the same batches on the same seed.
    """
    methods = contestants(train, time.tick)
    before = time.tick("off the shelf")
    shelf = {name: top1(method.model, test) if method.shelf else None for name, method in methods.items()}
    judging, paces = before - time.tick(), []
    for name, method in methods.items():
        time.tick(f"timing {name}")
        seed_everything(0, verbose=False)
        paces.append(fit(method.trainer(), train, 6, BATCH))
    left = time.tick() - SEEDS * judging
    steps = max(5, int(0.8 * left / (SEEDS * sum(paces))))
    tuned: dict[str, list[float]] = {name: [] for name in methods}
    for seed in range(SEEDS):
        for name, method in methods.items():
            time.tick(f"tuning {name}, seed {seed}")
            seed_everything(seed, verbose=False)
            module = method.trainer()
            fit(module, train, steps, BATCH, time.tick)
            tuned[name].append(top1(module.model.eval(), test))
    share = macs_share(methods["plain"].model, torch.randn(1, 3, 32, 32))
    return {
        name: {
            "eye_macs_fraction": share(method.model), "top1": shelf[name], "tuned_top1": statistics.mean(tuned[name]),
            "tuned_spread": max(tuned[name]) - min(tuned[name]),
        }
        for name, method in methods.items()
    }, steps  # fmt: skip


def compare(minutes: float, data: Path) -> dict[str, Any]:
    """A record with a row a method. minutes: the time that it may take. data: the data root."""
    with budget("reducers", minutes) as time:
        rows = speeds(0.08 * 60 * minutes, time.tick)
        train = Pictures.cifar10(data, "train", padding=4)
        test = Pictures.cifar10(data, "test", int(min(10_000, max(500, 500 * minutes))))
        judged, steps = accuracies(train, test, time)
    for name, row in rows.items():
        row |= judged.get(name, {})
    note = NOTE.format(share=SHARE, steps=steps, batch=BATCH, seeds=SEEDS) + f" {len(test)} test pictures."
    return {"machine": machine(), "note": note, "rows": list(rows.values())}


def draw(record: dict[str, Any], path: Path) -> None:
    """Speed-up against MACs saved, and accuracy against MACs, as a picture file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    speed, accuracy = figure.subplots(1, 2)
    top = max(row["ratio_macs"] for row in record["rows"])
    speed.plot([1, top], [1, top], color="0.8", label="MACs alone")
    for batch, mark in zip(BATCHES, "os", strict=True):
        rows = record["rows"]
        speed.scatter([r["ratio_macs"] for r in rows], [r[f"ratio_{batch}"] for r in rows], marker=mark,
                      label=f"batch {batch}")  # fmt: skip
    for row in record["rows"]:
        speed.annotate(row["name"], (row["ratio_macs"], row[f"ratio_{BATCHES[-1]}"]), fontsize=8)
    speed.set(xlabel="times fewer MACs", ylabel="times faster", title="DeiT-S, 224 pixels")
    shown = [row for row in record["rows"] if row.get("tuned_top1") is not None]
    places = range(len(shown))
    accuracy.bar([i - 0.2 for i in places], [r["top1"] or 0 for r in shown], 0.4, label="off the shelf")
    accuracy.bar([i + 0.2 for i in places], [r["tuned_top1"] for r in shown], 0.4, label="tuned")
    accuracy.set_xticks(list(places), [r["name"] for r in shown])
    low = min(min(r["top1"] or r["tuned_top1"], r["tuned_top1"]) for r in shown)
    accuracy.set(ylim=(max(0, low - 3), None), ylabel="top-1, %", title=f"CIFAR-10 at {SHARE:.0%} of the MACs")
    for axes in (speed, accuracy):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)
