"""DiffRate's claims, measured: rates that are learned beat rates set by hand, and pruning with merging beats either."""

import time as clock
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import timm
import torch
from lightning import seed_everything
from torch import nn

from vitalk.deploy.load import load_model
from vitalk.experiments import Budget, budget
from vitalk.measurement import Measurement, Verdict
from vitalk.vision.cost import count, latencies
from vitalk.vision.experiments import Pictures, top1
from vitalk.vision.merging import tome

from .geometry import Geometry, geometry
from .networks import diffrate
from .schedule import Kind, gmacs, uniform
from .training import search

SHARES = (0.65, 0.5)  # of the MACs of the blocks: what the paper takes, and one at which more is at stake
KINDS: dict[Kind, tuple[str, ...]] = {"both": ("prune", "merge"), "prune": ("prune",), "merge": ("merge",)}
BATCH, SEEDS, PACE_STEPS = 64, 2, 6
NEAR = 0.02  # how far from its target the MACs of a search may end
NOISE = 0.2  # points of top-1 within which two schedules are as good as each other


@dataclass
class Speed:
    """Plain DeiT-S against the published schedule: GMACs a picture, and seconds a batch by batch size."""

    macs: tuple[float, float]
    seconds: dict[int, tuple[float, float]]

    @property
    def worth(self) -> float:
        """The least share of the gain in MACs that arrives in wall-clock time."""
        gain = self.macs[0] / self.macs[1]
        return min(plain / fast for plain, fast in self.seconds.values()) / gain


def speed(seconds: float, name: str = "deit_small", target: float = 2.9, batches: tuple[int, ...] = (1, 16)) -> Speed:
    """Count and time both; random weights cost what trained ones cost."""
    plain = timm.create_model(f"{name}_patch16_224").eval()
    models = {"plain": plain, "diffrate": diffrate(plain, target, name)}
    macs = tuple(count(model, torch.randn(1, 3, 224, 224)).macs / 1e9 for model in models.values())
    taken = {}
    for batch in batches:
        images = torch.randn(batch, 3, 224, 224)
        with torch.inference_mode():
            runs = {key: lambda model=model, images=images: model(images) for key, model in models.items()}
            found = latencies(runs, warmup=2, repeats=30, seconds=seconds / len(batches))
        taken[batch] = (found["plain"], found["diffrate"])
    return Speed(macs, taken)


def target_of(shape: Geometry, share: float) -> str:
    """GMACs of a network whose blocks have ``share`` of their MACs left; its stem is what it is."""
    return f"{(shape.fixed + share * (shape.full - shape.fixed)) / 1e9}G"


def merged_to(vit: nn.Module, shape: Geometry, target: str) -> nn.Module:
    """ToMe with the constant number of merges a block whose MACs come closest to the target."""
    wanted, image = 1e9 * gmacs(shape, target), torch.zeros(1, 3, 32, 32)
    most = (shape.entering[0] - shape.prefix) // shape.depth
    return min((tome(vit, r) for r in range(most + 1)), key=lambda net: abs(count(net, image).macs - wanted))


def by_hand(vit: nn.Module, shape: Geometry, test: Pictures, share: float) -> dict[str, float]:
    """Top-1 in percent of the schedules that nobody searched for, at the MACs of ``share``."""
    target = target_of(shape, share)
    models = {f"uniform {kind}": diffrate(vit, uniform(shape, target, kind)) for kind in KINDS}
    return {name: top1(model, test) for name, model in (models | {"tome": merged_to(vit, shape, target)}).items()}


def by_search(
    vit: nn.Module, shape: Geometry, data: tuple[Pictures, Pictures], share: float, steps: int, seed: int, time: Budget
) -> tuple[dict[str, float], dict[str, float], dict[str, list]]:
    """Top-1 in percent of what is learned, its MACs as a share of the target's, and its schedules, by kind."""
    train, test = data
    accuracy, macs, schedules = {}, {}, {}
    for kind, kinds in KINDS.items():
        time.tick(f"search of {kind}, {share:.0%} of the MACs, seed {seed}")
        seed_everything(seed, verbose=False)
        found = search(vit, train.batches(BATCH), target_of(shape, share), steps, kinds=kinds, tick=time.tick)
        accuracy[f"learned {kind}"] = top1(diffrate(vit, found), test)
        macs[f"learned {kind}"] = found.macs(shape) / 1e9 / found.target
        schedules[f"learned {kind}"] = [found.prune, found.merge]
    return accuracy, macs, schedules


def judge(macs: list[float], top1: dict[float, dict[str, float]], fast: Speed) -> Verdict:
    """The verdict on the whole claim.

    macs: of every search, as a share of its target. top1: by share, in percent, mean over seeds.
    "reproduced" where all MACs end within 2 % of their targets, the learned schedule is nowhere behind one set by
    hand or behind one that only prunes or only merges, by more than the noise, is ahead of the best set by hand at
    one share by more than it, and nine tenths of the gain in MACs arrive as time. "direction only" where the targets
    are met and the learned schedule is nowhere behind the best set by hand.
    """
    near = all(abs(share - 1) <= NEAR for share in macs)
    hand = {share: max(v for n, v in found.items() if not n.startswith("learned")) for share, found in top1.items()}
    level = all(found["learned both"] >= hand[share] - NOISE for share, found in top1.items())
    ahead = any(found["learned both"] > hand[share] + NOISE for share, found in top1.items())
    alone = all(
        found["learned both"] >= max(found["learned prune"], found["learned merge"]) - NOISE for found in top1.values()
    )
    if near and level and ahead and alone and fast.worth >= 0.9:
        return "reproduced"
    return "direction only" if near and level else "not reproduced"


def measure(minutes: float, data: Path) -> Measurement:
    """Search on the embedded classifier and CIFAR-10, at two targets; time DeiT-S under a published schedule.

    minutes: the time that it may take; with more of it a search has more steps, up to 600, and more test pictures are
    looked at. data: the data root.
    """
    with budget("DiffRate", minutes) as time:
        time.tick("MACs and latency")
        fast = speed(0.15 * 60 * minutes)
        vit = load_model("vitalk_eye").model.eval()
        shape = geometry(vit)
        train, test = Pictures.cifar10(data, "train", padding=4), Pictures.cifar10(data, "test")
        start = clock.monotonic()
        top1(vit, Pictures(test.pixels[:500], test.labels[:500]))
        evaluation = (clock.monotonic() - start) / 500
        start = clock.monotonic()
        search(vit, train.batches(BATCH), target_of(shape, SHARES[0]), PACE_STEPS)
        pace = (clock.monotonic() - start) / PACE_STEPS  # Lightning's own start is in it, which errs on the safe side
        searches = len(SHARES) * SEEDS * len(KINDS)
        looks = searches + len(SHARES) * (len(KINDS) + 1) + 1
        pictures = int(min(max(0.3 * time.tick() / evaluation / looks, 250), len(test)))
        test = Pictures(test.pixels[:pictures], test.labels[:pictures])
        steps = int(min(max(0.85 * (time.tick() - looks * pictures * evaluation) / searches / pace, 5), 600))
        plain = top1(vit, test)
        hand = {share: by_hand(vit, shape, test, share) for share in SHARES}
        runs = {
            share: [by_search(vit, shape, (train, test), share, steps, seed, time) for seed in range(SEEDS)]
            for share in SHARES
        }
    found = {s: hand[s] | {n: mean(run[0][n] for run in runs[s]) for n in runs[s][0][0]} for s in SHARES}
    return report(fast, plain, found, runs, steps, pictures)


def report(
    fast: Speed, plain: float, found: dict[float, dict[str, float]], runs: dict[float, list], steps: int, pictures: int
) -> Measurement:
    """The measurement in words and figures. runs: by share, what ``by_search`` found for each seed."""
    macs = [share for of in runs.values() for run in of for share in run[1].values()]
    shown = "; ".join(
        f"at {share:.0%} learned {top1['learned both']:.1f}, pruning alone {top1['learned prune']:.1f}, merging alone "
        f"{top1['learned merge']:.1f}"
        for share, top1 in found.items()
    )
    hand = "; ".join(
        f"at {share:.0%} " + ", ".join(f"{n} {v:.1f}" for n, v in top1.items() if not n.startswith("learned"))
        for share, top1 in found.items()
    )
    times = ", ".join(f"{a / b:.2f} x at batch {batch}" for batch, (a, b) in fast.seconds.items())
    return Measurement(
        claim="Rates learned in a short search beat rates set by hand at equal MACs, pruning and merging together beat "
        "either alone, and the MACs that go are time that goes",
        published="DeiT-S 4.6 -> 2.9 GMACs, top-1 79.8 -> 79.5; ViT-H -40 % MACs, 1.5 x throughput, top-1 -0.2 "
        "(ImageNet, off the shelf)",
        measured=f"top-1 {plain:.1f} whole; {shown}; MACs within {max(abs(m - 1) for m in macs):.1%} of the "
        f"target; DeiT-S {fast.macs[0]:.1f} -> {fast.macs[1]:.1f} GMACs is {times}",
        baseline=f"set by hand: {hand}",
        verdict=judge(macs, found, fast),
        data=f"CIFAR-10 and the embedded classifier, frozen ({steps} steps a search, batch {BATCH}, "
        f"{len(next(iter(runs.values())))} seeds, {pictures} test pictures; shares are of the MACs of its four blocks, "
        "beside which its stem has nearly as many); random pictures for the time",
        details={
            "gmacs": list(fast.macs),
            "seconds": {str(batch): list(pair) for batch, pair in fast.seconds.items()},
            "top1": {str(share): top1 for share, top1 in found.items()},
            "macs_of_target": macs,
            "schedules": {str(share): [run[2] for run in of] for share, of in runs.items()},
        },
    )
