"""LGViT's claims, measured: 1.8 times fewer layers for little accuracy, better than linear heads, helped by stage 2."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from statistics import mean

import timm
import torch
from lightning import seed_everything
from torch import nn

from vitalk.deploy.load import load_model
from vitalk.experiments import budget
from vitalk.measurement import Measurement, Verdict, results_dir
from vitalk.vision.cost import latencies
from vitalk.vision.experiments import PILOT, Pictures, fit, top1

from .model import LGViT
from .rules import Rule, rules
from .sweep import Point, Recorded, Until, cheapest, costs, plot, record, sweep
from .training import DistilledClassifier, JointClassifier

MODEL = "lgvit_eye"  # exits after layers 1, 2 and 3 of the embedded classifier's four
HEADS = {"LGViT": "lgvit", "linear": "linear", "all local": "lph3", "all global": "gah2"}
BATCH, SEEDS = 128, 2
RATES = {"lr": 1e-3, "layer_decay": 0.3}  # new heads learn fast, the trained network behind them little
LOSS = 1.0  # points of accuracy that count as little (ours; the paper has no figure for it)
RUNS = len(HEADS) + 2  # trainings a seed: stage 1 with each kind of head, then stage 2, and more of stage 1


@dataclass
class Efficiency:
    """How many times cheaper leaving early is than the plain network, by each way of counting it."""

    layers: float
    macs: float
    clock: dict[int, float]  # batch size -> ratio of median seconds


@dataclass
class Seed:
    """What one seed gave. top1: percent at each exit and at the end, by training. point: the threshold chosen on one
    half of the test pictures, with its figures on the other half; full: the better of the embedded and the trained
    network there. curves: by training."""

    top1: dict[str, list[float]]
    point: Point
    full: float
    curves: dict[str, list[Point]]


def joint(heads: str, steps: int) -> JointClassifier:
    """Stage 1 from the embedded weights."""
    weights = str(resources.files("vitalk") / "assets" / "eye.safetensors")
    return JointClassifier(
        MODEL, {"heads": heads}, num_classes=10, init=weights, fused_attn=False, warmup_steps=steps // 10, **RATES
    )


def distilled(model: LGViT, steps: int) -> DistilledClassifier:
    """Stage 2 from a model that went through stage 1."""
    classifier = DistilledClassifier(MODEL, num_classes=10, fused_attn=False, warmup_steps=steps // 10, **RATES)
    classifier.model.load_state_dict(model.state_dict())
    return classifier


def half(recorded: Recorded, which: int) -> Recorded:
    """Every other picture, from the first (0) or the second (1)."""
    return replace(recorded, logits=recorded.logits[:, which::2], labels=recorded.labels[which::2])


def one_seed(
    train: Pictures, test: Pictures, steps: int, seed: int, tick: Callable[..., object]
) -> tuple[Seed, LGViT, Rule]:
    """Train everything on one seed, ``steps`` steps each; also the finished model and the rule chosen for it."""
    said: dict[str, Recorded] = {}
    models: dict[str, LGViT] = {}

    def trained(name: str, classifier: JointClassifier) -> None:
        seed_everything(seed, verbose=False)
        tick(f"{name}, seed {seed}")
        fit(classifier, train, steps, BATCH, tick)
        models[name] = classifier.model.eval()
        said[name] = record(classifier.model, test.batches(250))

    for name, heads in HEADS.items():
        seed_everything(seed, verbose=False)
        trained(name, joint(heads, steps))
    trained("LGViT, stage 2", distilled(models["LGViT"], steps))
    longer = joint("lgvit", steps)
    longer.model.load_state_dict(models["LGViT"].state_dict())
    trained("LGViT, longer stage 1", longer)

    tried = rules("confidence", len(models["LGViT"].exits), 10)
    curves = {name: sweep(half(recorded, 1), tried) for name, recorded in said.items()}
    choosing, told = (half(said["LGViT, stage 2"], which) for which in (0, 1))
    eye = load_model("vitalk_eye").model
    full = [
        max(part.top1()[-1], top1(eye, Pictures(test.pixels[which::2], test.labels[which::2])))
        for which, part in enumerate((choosing, told))
    ]
    best = cheapest(sweep(choosing, tried), full[0], LOSS / 2)  # the other half of the loss is for other pictures
    rule = Rule("confidence", 1.0 if best is None else best.threshold)
    top = {name: recorded.top1() for name, recorded in said.items()}
    found = Seed(top, sweep(told, [rule])[0], full[1], curves)
    return found, models["LGViT, stage 2"], rule


@torch.inference_mode()
def clock(plain: nn.Module, early: nn.Module, images: torch.Tensor, sizes: tuple[int, ...], seconds: float) -> dict:
    """Batch size -> how many times faster ``early`` is on images [pictures, channels, height, width], in turns."""
    runs = {}
    for size in sizes:
        batches = images.split(size)
        for name, model in (("plain", plain), ("early", early)):
            runs[f"{name} {size}"] = lambda model=model, batches=batches: [model(batch) for batch in batches]
    taken = latencies(runs, warmup=1, repeats=15, seconds=seconds)
    return {size: taken[f"plain {size}"] / taken[f"early {size}"] for size in sizes}


def paper_size(seconds: float, name: str = "lgvit_deit_base", sizes: tuple[int, ...] = (1, 16)) -> Efficiency:
    """Leaving after layer 7 of 12, the paper's average, with the four heads on the way; random weights."""
    model = timm.create_model(name).eval()
    exits = model.layers.index(7) + 1
    images = torch.randn(max(sizes), *model.pretrained_cfg["input_size"])
    cost = costs(model, images[:1])
    times = clock(model.vit, Until(model, exits), images, sizes, seconds)
    return Efficiency(model.trunk.depth / 7, cost.plain / cost.until[exits - 1], times)


def gains(seeds: list[Seed], name: str, baseline: str, exit_index: int | None = None) -> list[float]:
    """Points that ``name`` is ahead by, seed by seed: at one exit, or on average over the exits."""
    return [
        a[exit_index] - b[exit_index] if exit_index is not None else mean(a[:-1]) - mean(b[:-1])
        for a, b in ((seed.top1[name], seed.top1[baseline]) for seed in seeds)
    ]


def judge(loss: float, speed: Efficiency, shallow: list[float], stage: list[float]) -> Verdict:
    """The verdict on the whole claim.

    loss: points of accuracy that early exit at ``speed`` costs. shallow: by seed, what the first exit gains over a
    linear head; stage: what the exits gain on average from stage 2 over as many more steps of stage 1.
    "reproduced" where 1.8 times fewer layers cost at most one point and time is saved at batch 1 too, and both gains
    hold on every seed. "direction only" where 1.2 times fewer layers do so, and one of the gains holds on every seed.
    """
    saves = loss <= LOSS and speed.clock[1] > 1
    held = [min(found) > 0 for found in (shallow, stage)]
    if saves and speed.layers >= 1.8 and all(held):
        return "reproduced"
    return "direction only" if saves and speed.layers >= 1.2 and any(held) else "not reproduced"


def measure(minutes: float, data: Path) -> Measurement:
    """Check LGViT on CIFAR-10 with exits in the embedded classifier, and what leaving saves in DeiT-B.

    minutes: the time that it may take; with more of it networks train for longer. data: the data root. The curves of
    accuracy over speed-up are drawn in results/lgvit.png.
    """
    with budget("LGViT", minutes) as time:
        time.tick("DeiT-B")
        large = paper_size(0.05 * 60 * minutes)
        train, test = Pictures.cifar10(data, "train", padding=4), Pictures.cifar10(data, "test")
        pilot = joint("lgvit", PILOT)
        pace = fit(pilot, train, PILOT, BATCH, time.tick)
        before = time.tick("timing")
        record(pilot.model, Pictures(test.pixels[:500], test.labels[:500]).batches(250))
        evaluation = (before - time.tick()) / 500
        count = int(min(max(0.2 * time.tick() / evaluation / (RUNS * SEEDS), 500), len(test)))
        test = Pictures(test.pixels[:count], test.labels[:count])
        left = time.tick() - RUNS * SEEDS * count * evaluation - 0.05 * 60 * minutes
        steps = max(int(5 / 6 * left / (RUNS * SEEDS * pace)), 4)
        runs = [one_seed(train, test, steps, seed, time.tick) for seed in range(SEEDS)]
        seeds, (_, model, rule) = [run[0] for run in runs], runs[-1]
        model.rule = rule
        time.tick("clocks")
        images = torch.stack([test[[i]][0][0] for i in range(1, 128, 2)])
        times = clock(model.vit, model, images, (1, 16), 0.05 * 60 * minutes)
    points = [seed.point for seed in seeds]
    small = Efficiency(mean(p.speedup for p in points), mean(p.macs_speedup for p in points), times)
    plot(seeds[-1].curves, results_dir() / "lgvit.png")
    return report(seeds, small, large, steps, count)


def report(seeds: list[Seed], small: Efficiency, large: Efficiency, steps: int, count: int) -> Measurement:
    """The measurement in words and figures."""
    top = {
        name: [mean(column) for column in zip(*(s.top1[name] for s in seeds), strict=True)] for name in seeds[0].top1
    }
    early, full = mean(s.point.top1 for s in seeds), mean(s.full for s in seeds)
    shallow = gains(seeds, "LGViT", "linear", 0)
    stage = gains(seeds, "LGViT, stage 2", "LGViT, longer stage 1")
    average = {name: mean(values[:-1]) for name, values in top.items()}
    return Measurement(
        claim="Early exits with local heads in shallow and global heads in deep layers make a ViT about 1.8 times "
        "faster at little accuracy loss; they beat linear heads, and stage 2 beats stage 1 alone",
        published="1.8x fewer layers, heads not counted (CIFAR-100, Food-101, ImageNet; accuracies not recovered)",
        measured=f"{small.layers:.2f}x fewer layers, {small.macs:.2f}x fewer MACs, {small.clock[1]:.2f}x faster at "
        f"batch 1 and {small.clock[16]:.2f}x at batch 16, top-1 {full:.1f} -> {early:.1f}; first exit "
        f"{mean(shallow):+.1f} points over a linear head, stage 2 {mean(stage):+.1f} points at the exits. DeiT-B, "
        f"leaving after layer 7: {large.layers:.2f}x fewer layers, {large.macs:.2f}x fewer MACs, "
        f"{large.clock[1]:.2f}x faster at batch 1",
        baseline=f"the plain network, {full:.1f} %; linear heads {top['linear'][0]:.1f} % at the first exit "
        f"(LGViT {top['LGViT'][0]:.1f}); twice the steps of stage 1, {average['LGViT, longer stage 1']:.1f} % on "
        f"average over the exits (stage 2: {average['LGViT, stage 2']:.1f})",
        verdict=judge(full - early, small, shallow, stage),
        data=f"CIFAR-10 (the embedded classifier, exits after layers 1, 2 and 3 of 4; {steps} steps a stage, batch "
        f"{BATCH}, {len(seeds)} seeds, {count} test pictures, half of them for choosing the threshold)",
        details={
            "top1_by_exit": {name: [round(v, 2) for v in values] for name, values in top.items()},
            "shallow_gains": [round(v, 2) for v in shallow],
            "stage_2_gains": [round(v, 2) for v in stage],
            "thresholds": [s.point.threshold for s in seeds],
            "left_at": [[round(share, 3) for share in s.point.shares] for s in seeds],
            "clock": {str(size): round(ratio, 3) for size, ratio in small.clock.items()},
            "deit_base": {
                "layers": large.layers,
                "macs": large.macs,
                "clock": {str(k): v for k, v in large.clock.items()},
            },
            "curves": {
                name: [[round(p.speedup, 3), round(p.macs_speedup, 3), round(p.top1, 2)] for p in points[::5]]
                for name, points in seeds[-1].curves.items()
            },
        },
    )
