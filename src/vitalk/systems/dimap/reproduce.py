"""DIMAP's claims, measured: better at equal sparsity, evenly spread, without data; and what zeros are worth in time."""

import copy
import tempfile
import time as clock
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any, get_args

import timm
import torch
from lightning import seed_everything
from torch import nn

from vitalk.experiments import budget
from vitalk.measurement import Measurement, Verdict
from vitalk.vision.classifier import Classifier
from vitalk.vision.cost import latencies
from vitalk.vision.experiments import PILOT, Pictures, fit, top1

from .cost import Record, records, sparse_cost
from .kernels import crossover, sparse_linears
from .masks import Masks
from .method import dimap
from .scores import Ranking
from .slim import slim
from .training import PrunedClassifier

MODEL = "dimap_swin_cifar"
RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
RATES, HIGH = (0.3, 0.5, 0.7, 0.9), (0.7, 0.9)
PUBLISHED = (0.332, 0.525)  # of the MACs
BATCH, SEEDS = 128, 2
MARGIN, EVEN = 0.5, 0.05  # points of accuracy; shares of MACs and parameters


@dataclass
class Pruned:
    """One network after one cut: top-1 in percent before and after fine-tuning, and the least density of a layer."""

    before: float
    after: float
    least: float


@dataclass
class Speed:
    """A network of the paper's size, on paper and in fact.

    records: by variant. onnx: seconds in onnxruntime, of those that were exported. crossover: the largest density at
    which a sparse product pays. scoring: seconds of scoring and cutting all weights. batch: pictures a pass.
    """

    records: dict[str, Record]
    onnx: dict[str, float]
    crossover: float
    scoring: float
    batch: int


Found = dict[tuple[str, float], Pruned]  # by ranking and rate


def speed(seconds: float, name: str = "swin_tiny_patch4_window7_224", batch: int = 4) -> Speed:
    """Time ``name`` dense, pruned and slimmed; random weights cost what trained ones cost."""
    dense = timm.create_model(name).eval()
    start, pruned = clock.perf_counter(), copy.deepcopy(dense)
    dimap(pruned, 0.9)
    scoring = clock.perf_counter() - start
    slimmed = {f"slim {rate:.1%}": slim(dense, rate) for rate in PUBLISHED}
    models = {"dense": dense, "zeros 90%": pruned, "sparse 90%": sparse_linears(pruned), **slimmed}
    images = torch.randn(batch, *dense.pretrained_cfg["input_size"])
    last = list(slimmed)[-1]
    onnx = onnx_latencies({"dense": dense, last: slimmed[last]}, images, seconds / 3)
    return Speed(records(models, images, seconds / 2), onnx, crossover(), scoring, batch)


def onnx_latencies(models: dict[str, nn.Module], images: torch.Tensor, seconds: float) -> dict[str, float]:
    """Seconds of a pass in onnxruntime, taken in turns."""
    from vitalk.deploy.onnx_export import export_onnx
    from vitalk.deploy.preprocess import Preprocess
    from vitalk.deploy.runtime import open_engine

    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for i, (name, model) in enumerate(models.items()):
            labels = [str(c) for c in range(model.num_classes)]
            file = export_onnx(model, Path(folder) / f"{i}.onnx", Preprocess(size=tuple(images.shape[2:])), labels)
            runs[name] = lambda engine=open_engine(file)[0]: engine(images.numpy())
        return latencies(runs, warmup=1, repeats=30, seconds=seconds)


def trained(train: Pictures, steps: int, seed: int, tick: Callable[[], object]) -> tuple[nn.Module, float]:
    """The small Swin after so many steps, and the seconds of a step."""
    seed_everything(seed, verbose=False)
    classifier = Classifier(MODEL, num_classes=10, fused_attn=False, lr=1e-3, warmup_steps=steps // 10)
    pace = fit(classifier, train, steps, BATCH, tick)
    return classifier.model, pace


def tune(model: nn.Module, masks: Masks, train: Pictures, steps: int, seed: int, tick: Callable[[], object]) -> None:
    """Fine-tune a pruned network in place, its masks fixed. A seed gives all networks the same batches."""
    seed_everything(seed, verbose=False)
    classifier = PrunedClassifier(MODEL, num_classes=10, fused_attn=False, lr=3e-4, warmup_steps=steps // 10)
    classifier.model, classifier.masks = model, masks
    fit(classifier, train, steps, BATCH, tick)


def prune_all(
    dense: nn.Module, train: Pictures, test: Pictures, steps: int, seed: int, tick: Callable[..., object]
) -> Found:
    """Every ranking at every rate, from one trained network."""
    found = {}
    calibration = [train[list(range(i, i + BATCH))] for i in range(0, 8 * BATCH, BATCH)]
    for rate in RATES:
        for ranking in RANKINGS:
            tick(f"{ranking} {rate:.0%}, seed {seed}")
            model = copy.deepcopy(dense)
            masks = dimap(model, rate, ranking=ranking, batches=calibration, seed=seed)
            before = top1(model, test)
            tune(model, masks, train, steps, seed, tick)
            found[ranking, rate] = Pruned(before, top1(model, test), min(masks.density.values()))
    return found


def evenness(dense: nn.Module, ranking: Ranking) -> dict[float, float]:
    """Share of the parameters that goes with each published share of the MACs."""
    found = {}
    for rate in PUBLISHED:
        dimap(model := copy.deepcopy(dense), rate, of="macs", ranking=ranking)
        cost = sparse_cost(model)
        found[rate] = 1 - cost.params / cost.dense_params
    return found


def judge(found: Found, even: dict[float, float]) -> Verdict:
    """The verdict on the whole claim, from means over the seeds.

    "reproduced" where, at 70 and 90 %, the module-aware ranking is ahead of global magnitude by half a point after
    fine-tuning and by more before, global magnitude is ahead of uniform, no layer collapses (1 % of its weights live),
    and parameters fall like MACs to within five points. "direction only" where the module-aware ranking is at least
    equal to global magnitude at both rates, before and after, and ahead by half a point somewhere after.
    """
    before, after = (
        {rate: getattr(found["module", rate], when) - getattr(found["global", rate], when) for rate in HIGH}
        for when in ("before", "after")
    )
    ahead = all(after[rate] >= MARGIN and before[rate] > after[rate] for rate in HIGH)
    ordered = all(found["global", rate].after > found["uniform", rate].after for rate in HIGH)
    alive = all(found["module", rate].least >= 0.01 for rate in RATES)
    if ahead and ordered and alive and all(abs(rate - params) <= EVEN for rate, params in even.items()):
        return "reproduced"
    level = all(gap >= 0 for gaps in (before, after) for gap in gaps.values())
    return "direction only" if level and max(after.values()) >= MARGIN else "not reproduced"


def measure(minutes: float, data: Path) -> Measurement:
    """Prune a small Swin that is trained on CIFAR-10 for it by every ranking; time Swin-T with random weights.

    minutes: the time that it may take; with more of it the networks are trained and fine-tuned for longer. data: the
    data root.
    """
    with budget("DIMAP", minutes) as time:
        time.tick("Swin-T, dense, sparse and slim")
        timed = speed(0.1 * 60 * minutes)
        train, test = Pictures.cifar10(data, "train", padding=4), Pictures.cifar10(data, "test")
        time.tick("timing")
        model, pace = trained(train, PILOT, 0, time.tick)
        before = time.tick()
        top1(model, Pictures(test.pixels[:500], test.labels[:500]))
        evaluation = (before - time.tick()) / 500
        runs = SEEDS * len(RATES) * len(RANKINGS)
        count = int(min(max(0.15 * time.tick() / evaluation / (2 * runs), 250), len(test)))
        test, left = Pictures(test.pixels[:count], test.labels[:count]), time.tick() - 2 * runs * count * evaluation
        steps = {"dense": max(int(0.4 * left / SEEDS / pace), 5), "tuned": max(int(0.45 * left / runs / pace), 3)}
        dense, by_seed, even = [], [], []
        for seed in range(SEEDS):
            time.tick(f"dense, seed {seed}")
            model, _ = trained(train, steps["dense"], seed, time.tick)
            dense.append(top1(model, test))
            even.append({ranking: evenness(model, ranking) for ranking in ("module", "type")})
            by_seed.append(prune_all(model, train, test, steps["tuned"], seed, time.tick))
    data_text = (
        f"CIFAR-10, a Swin of 1.3 M parameters ({MODEL}; {steps['dense']} steps dense, {steps['tuned']} of "
        f"fine-tuning, batch {BATCH}, {SEEDS} seeds, {count} test pictures); Swin-T with random weights and pictures "
        "for the times"
    )
    return report(timed, dense, by_seed, even, data_text)


def averaged(by_seed: list[Found]) -> Found:
    """The means over the seeds."""
    names = [field.name for field in fields(Pruned)]
    return {key: Pruned(*(mean(getattr(run[key], name) for run in by_seed) for name in names)) for key in by_seed[0]}


def report(
    timed: Speed, dense: list[float], by_seed: list[Found], even: list[dict[str, dict[float, float]]], data: str
) -> Measurement:
    """The measurement in words and figures; dense, by_seed, even: by seed."""
    found = averaged(by_seed)
    spread = {kind: {rate: mean(run[kind][rate] for run in even) for rate in PUBLISHED} for kind in even[0]}
    times = {name: record.seconds for name, record in timed.records.items()}
    last = list(times)[-1]
    table = "; ".join(
        f"{rate:.0%}: " + ", ".join(f"{r} {found[r, rate].before:.1f}/{found[r, rate].after:.1f}" for r in RANKINGS)
        for rate in HIGH
    )
    return Measurement(
        claim="At equal sparsity the module-aware score prunes better than global magnitude, and that better than "
        "uniform magnitude, most of all before fine-tuning; no layer collapses, MACs and parameters fall alike, and no "
        "data is seen",
        published="Swin-B -52.5 % MACs, -52.7 % parameters: top-5 -0.07 points; Swin-S -33.2 %, -33.2 % (ImageNet)",
        measured=f"top-1 before/after fine-tuning, {table}; least density of a layer at 90%: module "
        f"{found['module', 0.9].least:.3f}, global {found['global', 0.9].least:.3f}; parameters by "
        + ", ".join(
            f"{k} {-gone:.1%} at {-rate:.1%} MACs" for k, shares in spread.items() for rate, gone in shares.items()
        )
        + f"; Swin-T scored in {timed.scoring:.1f} s; its speed x{times['dense'] / times[last]:.2f} {last}, "
        f"x{times['dense'] / times['zeros 90%']:.2f} with 90% zeros in dense kernels, "
        f"x{times['dense'] / times['sparse 90%']:.2f} in sparse ones",
        baseline=f"dense: top-1 {mean(dense):.1f} % before the cut; {times['dense']:.3f} s for {timed.batch} pictures",
        verdict=judge(found, spread["module"]),
        data=data,
        details=_details(timed, dense, by_seed, spread),
    )


def _details(
    timed: Speed, dense: list[float], by_seed: list[Found], spread: dict[str, dict[float, float]]
) -> dict[str, Any]:
    return {
        "top1_dense": [round(value, 2) for value in dense],
        "pruned_by_seed": [
            {f"{ranking} {rate:.0%}": {k: round(v, 4) for k, v in asdict(one).items()}
             for (ranking, rate), one in run.items()}
            for run in by_seed
        ],
        "parameters_by_macs": {
            kind: {f"{rate:.1%}": round(gone, 4) for rate, gone in shares.items()} for kind, shares in spread.items()
        },
        "swin_tiny": {name: asdict(record) for name, record in timed.records.items()},
        "swin_tiny_onnx_seconds": timed.onnx,
        "sparse_product_pays_up_to_density": round(timed.crossover, 2),
        "scoring_seconds": round(timed.scoring, 2),
    }  # fmt: skip
