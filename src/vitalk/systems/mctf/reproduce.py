"""MCTF's claims, measured: 44 % fewer multiply-accumulates for no accuracy, and what each of its ideas adds."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import timm
import torch
from lightning import seed_everything
from torch import Tensor, nn

from vitalk.deploy.load import load_model
from vitalk.experiments import budget
from vitalk.measurement import Measurement, Verdict
from vitalk.vision.classifier import Classifier
from vitalk.vision.cost import count, latencies
from vitalk.vision.experiments import PILOT, Pictures, fit
from vitalk.vision.merging import tome
from vitalk.vision.tokens import TokenReducer, Trunk

from .method import FuseTokens, mctf
from .models import FAST
from .training import ConsistentClassifier

MODEL = "vitalk_eye"
R, BLOCKS = 12, (0, 1, 2, 3)  # 65 tokens to 53, 41, 29, 17: 42 % less work in the blocks of the embedded classifier
BATCH, SEEDS, SPEEDUP = 128, 2, 1.31
CRITERIA = {
    "three criteria": (1, 20, 40),
    "similarity and informativeness": (1, 20, 0),
    "similarity and size": (1, 0, 40),
    "similarity": (1, 0, 0),
}
TRAININGS = ("plain", "two passes", "consistency")
PASSES = 5  # of the student and the teacher in a step of all trainings


class FuseRandom(FuseTokens):
    """The baseline that fuses any pairs."""

    def rank(self, x: Tensor, informed: Tensor, size: Tensor | None) -> Tensor:
        """Noise."""
        return torch.rand(x.shape[0], -(-x.shape[1] // 2), x.shape[1] // 2, device=x.device)


@dataclass
class Efficiency:
    """DeiT-S plain, with MCTF and with MCTF-Fast: GMACs a picture, and seconds by batch size in one interleaved run."""

    macs: dict[str, float]
    seconds: dict[int, dict[str, float]]

    def speedup(self, name: str, batch: int) -> float:
        """How many times faster than the plain network."""
        return self.seconds[batch]["plain"] / self.seconds[batch][name]


Gain = tuple[float, float]  # points, and their standard error


def efficiency(seconds: float, name: str = "deit_small_patch16_224", batches: Sequence[int] = (1, 16)) -> Efficiency:
    """Count and time the three models; random weights cost what trained ones cost."""
    plain = timm.create_model(name).eval()
    models = {"plain": plain, "MCTF": mctf(plain, 16).eval(), "MCTF-Fast": mctf(plain, **FAST).eval()}
    image, taken = torch.randn(1, 3, 224, 224), {}
    macs = {key: count(model, image).macs / 1e9 for key, model in models.items()}
    with torch.inference_mode():
        for batch in batches:
            images = torch.randn(batch, 3, 224, 224)
            runs = {key: lambda model=model, images=images: model(images) for key, model in models.items()}
            taken[batch] = latencies(runs, warmup=1, repeats=30, seconds=seconds / len(batches))
    return Efficiency(macs, taken)


def reductions(vit: nn.Module) -> dict[str, Trunk]:
    """The trained network with each way of losing as many tokens in the same blocks; nothing is trained."""
    fusing = {f"MCTF, {name}": mctf(vit, R, BLOCKS, temperatures) for name, temperatures in CRITERIA.items()}
    modes = {f"MCTF, {mode}": mctf(vit, R, BLOCKS, mode=mode) for mode in ("precise", "after")}
    depth = len(vit.blocks)
    rivals = {
        "ToMe": tome(vit, [R if block in BLOCKS else 0 for block in range(depth)]),
        "random": Trunk(vit, [FuseRandom(R) if block in BLOCKS else TokenReducer() for block in range(depth)]),
    }
    return {**fusing, **modes, **rivals}


def block_macs(model: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates of the blocks alone on image [1, channels, height, width]: the stem is not MCTF's."""
    return sum(macs for name, macs in count(model, image).layers.items() if "blocks" in name or "reducers" in name)


@torch.inference_mode()
def right(model: nn.Module, test: Pictures) -> Tensor:
    """Which pictures ``model`` knows, as floats [pictures]."""
    model.eval()
    return torch.cat([(model(x).argmax(1) == y).float() for x, y in test.batches(250)])


def gain(known: Tensor, baseline: Tensor) -> Gain:
    """Points that ``known`` [pictures] is ahead of ``baseline`` on the same pictures, with the standard error."""
    apart = 100 * (known - baseline)
    return float(apart.mean()), float(apart.std() / len(apart) ** 0.5)


def off_the_shelf(vit: nn.Module, test: Pictures, tick: Callable[..., object]) -> dict[str, Tensor]:
    """Which pictures each reduction of ``vit`` knows, [pictures]; random fusing is drawn three times and averaged."""
    found = {"plain": right(vit, test)}
    for name, model in reductions(vit).items():
        tick(f"off the shelf, {name}")
        draws = [right(model, test) for _ in range(3 if name == "random" else 1)]
        found[name] = torch.stack(draws).mean(0)
    return found


def tune(
    vit: nn.Module, training: str, train: Pictures, steps: int, seed: int, tick: Callable[[], object]
) -> tuple[Trunk, float]:
    """A fine-tuned copy of ``vit`` with MCTF, and the median seconds of a step; a seed gives all the same batches."""
    seed_everything(seed, verbose=False)
    options = {"num_classes": 10, "lr": 1e-4, "warmup_steps": steps // 10}
    if training == "plain":
        classifier = Classifier(MODEL, **options)
    else:
        weight = 3.0 if training == "consistency" else 0.0
        classifier = ConsistentClassifier("mctf_deit_tiny", teacher_r=R / 2, consistency=weight, **options)
    classifier.model = mctf(copy.deepcopy(vit), R, BLOCKS)
    for module in classifier.model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # as ``Classifier`` does for its own model: few tokens train faster so
    seed_everything(seed, verbose=False)
    pace = fit(classifier, train, steps, BATCH, tick)
    return classifier.model, pace


def judge(
    speed: Efficiency, shelf: dict[str, Gain], criteria: Sequence[float], helped: Sequence[float], kept: float
) -> Verdict:
    """The verdict on the whole claim.

    shelf: gains off the shelf, "MCTF over ToMe", "MCTF over random" and "ToMe over random". criteria: points that three
    are ahead of two, and two of one. helped: by seed, points that consistency gains over plain fine-tuning of as many
    steps. kept: points that the reduced and fine-tuned network is ahead of the plain one.

    "reproduced" where the MACs are the paper's, both settings are 31 % faster at each batch size, both gaps off the
    shelf exceed two standard errors, no criterion costs accuracy, consistency helps on every seed, and nothing is
    lost after fine-tuning. "direction only" where the MACs are, MCTF is not behind ToMe, more than two standard
    errors ahead of random fusing, and consistency helps on average.
    """
    cheap = round(speed.macs["plain"], 1) == 4.6 and round(speed.macs["MCTF"], 1) == 2.6
    fast = all(speed.speedup(name, b) >= SPEEDUP for b in speed.seconds for name in ("MCTF", "MCTF-Fast"))
    clear = {name: points > 2 * error for name, (points, error) in shelf.items()}
    ordered = clear["MCTF over ToMe"] and clear["ToMe over random"] and min(criteria) >= 0
    if not (cheap and shelf["MCTF over ToMe"][0] >= 0 and clear["MCTF over random"] and mean(helped) > 0):
        return "not reproduced"
    return "reproduced" if fast and ordered and min(helped) > 0 and kept >= 0 else "direction only"


def measure(minutes: float, data: Path) -> Measurement:
    """Check MCTF: costs on DeiT-S itself, accuracy on the embedded classifier and CIFAR-10.

    minutes: the time that it may take; with more of it more test pictures are looked at, and the networks are
    fine-tuned for longer. data: the data root.
    """
    with budget("MCTF", minutes) as time:
        time.tick("MACs and times")
        speed = efficiency(0.15 * 60 * minutes)
        vit = load_model(MODEL).model
        train, test = Pictures.cifar10(data, "train", padding=4), Pictures.cifar10(data, "test")
        before = time.tick("timing")
        right(vit, Pictures(test.pixels[:250], test.labels[:250]))
        evaluation = (before - time.tick()) / 250
        looks = len(reductions(vit)) + 3 + SEEDS * len(TRAININGS)
        size = int(min(max(0.4 * time.tick() / evaluation / looks, 250), len(test)))
        test = Pictures(test.pixels[:size], test.labels[:size])
        shelf = off_the_shelf(vit, test, time.tick)
        pace = tune(vit, "plain", train, PILOT, 0, time.tick)[1]
        left = time.tick() - SEEDS * len(TRAININGS) * size * evaluation
        steps = max(int(0.8 * left / (SEEDS * PASSES * pace)), PILOT)
        tuned: list[dict[str, float]] = []
        for seed in range(SEEDS):
            tuned.append({})
            for training in TRAININGS:
                time.tick(f"{training}, seed {seed}")
                model, _ = tune(vit, training, train, steps, seed, time.tick)
                tuned[-1][training] = 100 * float(right(model, test).mean())
        image = torch.randn(1, 3, 32, 32)
        saved = {key: 1 - block_macs(m, image) / block_macs(vit, image) for key, m in reductions(vit).items()}
    return report(speed, shelf, tuned, saved, steps)


def report(
    speed: Efficiency, shelf: dict[str, Tensor], tuned: list[dict[str, float]], saved: dict[str, float], steps: int
) -> Measurement:
    """The measurement in words and figures. saved: share of the blocks' MACs; tuned: top-1 in percent by seed."""
    three, *two, one = (shelf[f"MCTF, {name}"] for name in CRITERIA)
    gains = {
        "MCTF over ToMe": gain(three, shelf["ToMe"]),
        "MCTF over random": gain(three, shelf["random"]),
        "ToMe over random": gain(shelf["ToMe"], shelf["random"]),
    }
    pair = torch.stack(two).mean(0)
    criteria = [gain(three, pair)[0], gain(pair, one)[0]]
    helped = [run["consistency"] - run["plain"] for run in tuned]
    accuracy = {name: 100 * float(known.mean()) for name, known in shelf.items()}
    after = mean(run["consistency"] for run in tuned)
    times = "; ".join(
        f"{name} x{speed.speedup(name, 1):.2f} at batch 1, x{speed.speedup(name, batch):.2f} at {batch}"
        for name in ("MCTF", "MCTF-Fast")
        for batch in [max(speed.seconds)]
    )
    ahead = ", ".join(f"{name} {points:+.2f} ± {error:.2f}" for name, (points, error) in gains.items())
    return Measurement(
        claim="MCTF saves 44 % of DeiT-S's multiply-accumulates and gains 0.3 points when fine-tuned with consistency; "
        "without training it beats ToMe at equal r, and three criteria beat two beat one",
        published="MACs 4.6 -> 2.6 G, top-1 79.8 -> 80.1 (ImageNet), at least 31 % faster",
        measured=f"MACs {speed.macs['plain']:.1f} -> {speed.macs['MCTF']:.1f} G (Fast {speed.macs['MCTF-Fast']:.1f}); "
        f"{times}; off the shelf {ahead} points; three criteria over two {criteria[0]:+.2f}, two over one "
        f"{criteria[1]:+.2f}; fine-tuned {after:.1f} %, consistency over plain fine-tuning {mean(helped):+.2f} points",
        baseline=f"plain: {1000 * speed.seconds[1]['plain']:.0f} ms at batch 1; top-1 {accuracy['plain']:.1f} %, "
        f"off the shelf MCTF {accuracy['MCTF, three criteria']:.1f}, ToMe {accuracy['ToMe']:.1f}, random "
        f"{accuracy['random']:.1f} %; plainly fine-tuned {mean(run['plain'] for run in tuned):.1f} %",
        verdict=judge(speed, gains, criteria, helped, after - accuracy["plain"]),
        data=f"CIFAR-10 for accuracy (the embedded classifier, {R} tokens fewer in each of its blocks, "
        f"{saved['MCTF, three criteria']:.0%} of their MACs saved; {steps} steps of fine-tuning, batch {BATCH}, "
        f"{len(tuned)} seeds, {len(three)} test pictures); random pictures for the cost",
        details={
            "gmacs": speed.macs,
            "seconds": {str(batch): taken for batch, taken in speed.seconds.items()},
            "top1_off_the_shelf": {name: round(value, 2) for name, value in accuracy.items()},
            "macs_saved_in_blocks": {name: round(value, 3) for name, value in saved.items()},
            "top1_tuned_by_seed": [{name: round(value, 2) for name, value in run.items()} for run in tuned],
        },
    )
