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
from vitalk.vision.classifier import Classifier
from vitalk.vision.cost import count, latencies
from vitalk.vision.experiments import Pictures, fit, top1
from vitalk.vision.merging import tome

from .geometry import Geometry, geometry
from .networks import diffrate
from .schedule import Kind, gmacs, uniform
from .training import search

# The shares are of the MACs of the blocks. The embedded classifier hardly misses any patch, since its stem has seen
# them all; what is at stake shows on a plain ViT.
CASES = (("eye", 0.65), ("plain", 0.65), ("plain", 0.5))
PLAIN = {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}
KINDS: dict[Kind, tuple[str, ...]] = {"both": ("prune", "merge"), "prune": ("prune",), "merge": ("merge",)}
BATCH, SEEDS, PILOT = 64, 2, 6
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


def plain_vit(train: Pictures, seconds: float, time: Budget) -> nn.Module:
    """A ViT without a stem of convolutions, trained for about so many seconds."""

    def trained(steps: int) -> tuple[nn.Module, float]:
        seed_everything(0, verbose=False)
        net = Classifier("vit_tiny_patch16_224", PLAIN, 10, fused_attn=False, lr=1e-3, warmup_steps=steps // 20)
        return net.model, fit(net, train, steps, 128, time.tick)

    time.tick("training a plain ViT")
    pace = trained(PILOT)[1]
    return trained(max(int(seconds / pace), PILOT))[0].eval()


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


def judge(macs: list[float], top1: dict[str, dict[str, float]], fast: Speed) -> Verdict:
    """The verdict on the whole claim.

    macs: of every search, as a share of its target. top1: by case, in percent, mean over seeds.
    "reproduced" where all MACs end within 2 % of their targets, the learned schedule is nowhere behind one set by
    hand or behind one that only prunes or only merges, by more than the noise, is ahead of the best set by hand in
    one case by more than it, and nine tenths of the gain in MACs arrive as time. "direction only" where the targets
    are met and the learned schedule is nowhere behind the best set by hand.
    """
    near = all(abs(share - 1) <= NEAR for share in macs)
    hand = {case: max(v for n, v in found.items() if not n.startswith("learned")) for case, found in top1.items()}
    level = all(found["learned both"] >= hand[case] - NOISE for case, found in top1.items())
    ahead = any(found["learned both"] > hand[case] + NOISE for case, found in top1.items())
    alone = all(
        found["learned both"] >= max(found["learned prune"], found["learned merge"]) - NOISE for found in top1.values()
    )
    if near and level and ahead and alone and fast.worth >= 0.9:
        return "reproduced"
    return "direction only" if near and level else "not reproduced"


def measure(minutes: float, data: Path) -> Measurement:
    """Search on two frozen networks and CIFAR-10; time DeiT-S under a published schedule.

    minutes: the time that it may take; a third of it trains the second network, and with more of it a search has more
    steps, up to 600, and more test pictures are looked at. data: the data root.
    """
    with budget("DiffRate", minutes) as time:
        time.tick("MACs and latency")
        fast = speed(0.1 * 60 * minutes)
        train, test = Pictures.cifar10(data, "train", padding=4), Pictures.cifar10(data, "test")
        nets = {"eye": load_model("vitalk_eye").model.eval(), "plain": plain_vit(train, time.tick() / 3, time)}
        shapes = {name: geometry(vit) for name, vit in nets.items()}
        steps, pictures = _affordable(nets["eye"], shapes["eye"], train, test, time)
        test = Pictures(test.pixels[:pictures], test.labels[:pictures])
        whole = {name: top1(vit, test) for name, vit in nets.items()}
        found, runs = {}, {}
        for name, share in CASES:
            case = f"{name} at {share:.0%}"
            runs[case] = [
                by_search(nets[name], shapes[name], (train, test), share, steps, seed, time) for seed in range(SEEDS)
            ]
            learned = {kind: mean(run[0][kind] for run in runs[case]) for kind in runs[case][0][0]}
            found[case] = by_hand(nets[name], shapes[name], test, share) | learned
    return report(fast, whole, found, runs, steps, pictures)


def _affordable(vit: nn.Module, shape: Geometry, train: Pictures, test: Pictures, time: Budget) -> tuple[int, int]:
    """(steps of a search, test pictures) that fit into what is left of the time, by the slower network."""
    start = clock.monotonic()
    top1(vit, Pictures(test.pixels[:500], test.labels[:500]))
    evaluation = (clock.monotonic() - start) / 500
    start = clock.monotonic()
    search(vit, train.batches(BATCH), target_of(shape, CASES[0][1]), PILOT)
    pace = (clock.monotonic() - start) / PILOT  # Lightning's own start is in it, which errs on the safe side
    searches = len(CASES) * SEEDS * len(KINDS)
    looks = searches + len(CASES) * (len(KINDS) + 1) + 2
    pictures = int(min(max(0.3 * time.tick() / evaluation / looks, 250), len(test)))
    steps = 0.85 * (time.tick() - looks * pictures * evaluation) / searches / pace
    return int(min(max(steps, 5), 600)), pictures


def report(
    fast: Speed,
    whole: dict[str, float],
    found: dict[str, dict[str, float]],
    runs: dict[str, list],
    steps: int,
    pictures: int,
) -> Measurement:
    """The measurement in words and figures.

    whole: top-1 in percent of the networks as they are. runs: by case, what ``by_search`` found for each seed.
    """
    macs = [share for of in runs.values() for run in of for share in run[1].values()]
    shown = "; ".join(
        f"{case} learned {top1['learned both']:.1f}, pruning alone {top1['learned prune']:.1f}, merging alone "
        f"{top1['learned merge']:.1f}"
        for case, top1 in found.items()
    )
    hand = "; ".join(
        f"{case} " + ", ".join(f"{n} {v:.1f}" for n, v in top1.items() if not n.startswith("learned"))
        for case, top1 in found.items()
    )
    times = ", ".join(f"{a / b:.2f} x at batch {batch}" for batch, (a, b) in fast.seconds.items())
    return Measurement(
        claim="Rates learned in a short search beat rates set by hand at equal MACs, pruning and merging together beat "
        "either alone, and the MACs that go are time that goes",
        published="DeiT-S 4.6 -> 2.9 GMACs, top-1 79.8 -> 79.5; ViT-H -40 % MACs, 1.5 x throughput, top-1 -0.2 "
        "(ImageNet, off the shelf)",
        measured=f"top-1: {shown}; MACs within {max(abs(m - 1) for m in macs):.1%} of the target; DeiT-S "
        f"{fast.macs[0]:.1f} -> {fast.macs[1]:.1f} GMACs is {times}",
        baseline=f"top-1: {', '.join(f'{n} whole {v:.1f}' for n, v in whole.items())}; set by hand: {hand}",
        verdict=judge(macs, found, fast),
        data=f"CIFAR-10 and two frozen networks, the embedded classifier and a plain ViT trained for this ({steps} "
        f"steps a search, batch {BATCH}, {len(next(iter(runs.values())))} seeds, {pictures} test pictures; shares are "
        "of the MACs of the blocks, beside which the embedded classifier's stem has nearly as many); random pictures "
        "for the time",
        details={
            "gmacs": list(fast.macs),
            "seconds": {str(batch): list(pair) for batch, pair in fast.seconds.items()},
            "top1": found,
            "macs_of_target": macs,
            "schedules": {case: [run[2] for run in of] for case, of in runs.items()},
        },
    )
