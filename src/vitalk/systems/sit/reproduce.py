"""SiT's claims, measured: how much faster, how close to the teacher, and whether distilled and soft slimming is why."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import timm
import torch
from torch import Tensor

from vitalk.deploy.load import load_model
from vitalk.experiments import budget
from vitalk.measurement import Measurement, Verdict
from vitalk.vision.cost import count, latencies
from vitalk.vision.experiments import Comparison, Pictures, compare, top1
from vitalk.vision.tokens import Attended, TokenReducer, Tokens, take

from .slimming import SiT, TokenSlimming
from .training import SlimmingClassifier

# 64, 16, 4 and 1 patches in the four blocks: the embedded classifier sees so much in its stem that any way to halve
# its patches would do.
TEACHER, STAGES, KEEP = "vitalk_eye", [1, 1, 1, 1], 0.25
MODELS = ("lvvit_small", "sit_small", "sit_xs")
PUBLISHED = {"sit_small": 1.7, "sit_xs": 3.6}  # times as fast as the teacher
BATCHES = (1, 16)
KEPT, NEARLY = 0.97, 0.95  # share of the teacher's accuracy; share of a published speed-up that counts as the same
LOSSES = {"FRD": (2.0, 2.0), "KD": (0.0, 2.0), "CE": (0.0, 0.0), "norm": (0.0, 2.0), "random": (0.0, 2.0)}
SEEDS, BATCH, RATE = 2, 64, 4e-4  # the rate is the paper's


class DropShort(TokenReducer):
    """Hard dropping in the place of a slimming module: the ``count`` patches with the longest features stay."""

    proportional = False

    def __init__(self, count: int, prefix: int):
        super().__init__()
        self.count, self.prefix = count, prefix

    def score(self, patches: Tensor) -> Tensor:
        """Patches [batch, patches, dim] -> [batch, patches]; the highest stay."""
        return patches.norm(dim=2)

    def forward(self, tokens: Tokens, seen: Attended) -> Tokens:
        """[prefix, kept patches]."""
        head, patches = tokens.features[:, : self.prefix], tokens.features[:, self.prefix :]
        return Tokens(torch.cat([head, take(patches, self.score(patches).topk(self.count, dim=1).indices)], 1))

    def through(self, block: torch.nn.Module, tokens: Tokens) -> Tokens:
        """The whole block, then ``forward``, as in ``TokenSlimming``."""
        return self(Tokens(block(tokens.features)), Attended())


class DropRandom(DropShort):
    """The ablation that keeps any patches."""

    def score(self, patches: Tensor) -> Tensor:
        """Noise [batch, patches]."""
        return torch.rand_like(patches[:, :, 0])


DROPS = {"norm": DropShort, "random": DropRandom}


@dataclass
class Efficiency:
    """By model of ``MODELS``: GMACs a picture, and seconds a batch by batch size, timed in turns."""

    gmacs: dict[str, float]
    seconds: dict[int, dict[str, float]]

    def speedup(self, name: str, batch: int) -> float:
        """How many times as fast as the teacher."""
        return self.seconds[batch][MODELS[0]] / self.seconds[batch][name]

    def least(self, name: str) -> float:
        """The smaller one of the speed-ups at both batch sizes."""
        return min(self.speedup(name, batch) for batch in self.seconds)


def efficiency(seconds: float, side: int = 224) -> Efficiency:
    """Count and time the teacher and both students; random weights cost what trained ones cost."""
    models = {name: timm.create_model(name, img_size=side).eval() for name in MODELS}
    gmacs = {name: count(model, torch.randn(1, 3, side, side)).macs / 1e9 for name, model in models.items()}
    taken = {}
    with torch.inference_mode():
        for batch in BATCHES:
            images = torch.randn(batch, 3, side, side)
            runs = {name: partial(model, images) for name, model in models.items()}
            taken[batch] = latencies(runs, warmup=1, repeats=30, seconds=seconds / len(BATCHES))
    return Efficiency(gmacs, taken)


def student(kind: str, steps: int = 1) -> SlimmingClassifier:
    """The embedded classifier, slimmed: by TSM and trained with FRD, KD or CE, or with KD and patches dropped."""
    tokens, logits = LOSSES[kind]
    built = SlimmingClassifier(
        "sit_vit", TEACHER, {"vit": TEACHER, "stage_blocks": STAGES, "keep": KEEP}, num_classes=10, fused_attn=False,
        lr=RATE, token_weight=tokens, logit_weight=logits,
    )  # fmt: skip
    if kind in DROPS:
        slimming = built.model.reducers
        hard = [DROPS[kind](r.count, r.prefix) if isinstance(r, TokenSlimming) else r for r in slimming]
        built.model = SiT(built.model.vit, hard)
    return built


def judge(speed: Efficiency, found: Comparison, teacher: float) -> Verdict:
    """The verdict on the whole claim; teacher: its top-1 in percent.

    "reproduced" where both students are as many times faster as published, within a twentieth, at both batch sizes, the
    one with FRD keeps 97 % of the teacher's accuracy, FRD is clearly ahead of KD and CE, and TSM of both ways to drop.
    "direction only" where the students are faster at all and FRD is clearly ahead of CE.
    """
    fast = all(speed.least(name) >= NEARLY * times for name, times in PUBLISHED.items())
    close = mean(found.top1["FRD"]) >= KEPT * teacher
    distilled = found.ahead("FRD", "KD") and found.ahead("FRD", "CE")
    soft = found.ahead("KD", "norm") and found.ahead("KD", "random")
    if fast and close and distilled and soft:
        return "reproduced"
    faster = speed.least("sit_small") > 1 and speed.least("sit_xs") > speed.least("sit_small")
    return "direction only" if faster and found.ahead("FRD", "CE") else "not reproduced"


def measure(minutes: float, data: Path) -> Measurement:
    """Check SiT: costs on LV-ViT-S itself, accuracy on the embedded classifier and CIFAR-10.

    minutes: the time that it may take; a fifth of it goes to the speed, the rest to five students on each of two seeds,
    all trained for as many steps. data: the data root.
    """
    with budget("SiT", minutes) as time:
        time.tick("MACs and latency")
        speed = efficiency(0.2 * 60 * minutes)
        train = Pictures.cifar10(data, "train", padding=4)
        test = Pictures.cifar10(data, "test", int(min(10_000, max(100, 100 * minutes))))
        time.tick("teacher")
        teacher = top1(load_model(TEACHER).model, test)
        makers = {kind: lambda steps, kind=kind: student(kind, steps) for kind in LOSSES}
        found = compare(makers, train, test, time, SEEDS, BATCH)
    return report(speed, found, teacher, len(test))


def report(speed: Efficiency, found: Comparison, teacher: float, pictures: int) -> Measurement:
    """The measurement in words and figures."""
    top1 = {kind: mean(values) for kind, values in found.top1.items()}
    times = {
        name: ", ".join(f"x{speed.speedup(name, batch):.2f} at batch {batch}" for batch in speed.seconds)
        for name in PUBLISHED
    }
    macs = " / ".join(f"{speed.gmacs[name]:.1f}" for name in MODELS)
    losses = ", ".join(f"{kind} {top1[kind]:.1f}" for kind in ("FRD", "KD", "CE"))
    drops = ", ".join(f"{kind} {top1[kind]:.1f}" for kind in DROPS)
    seeds = len(found.top1["FRD"])
    return Measurement(
        claim="SiT-S is 1.7 and SiT-XS 3.6 times as fast as LV-ViT-S at 100 and 97 % of its accuracy; recalibrating "
        "features beats distilling logits and no teacher, and soft slimming beats dropping patches",
        published="x1.7 and x3.6 on a GPU; GMACs 5.5 / 4.0 / 1.5, top-1 83.1 / 83.1 / 81.2 (ImageNet)",
        measured=f"SiT-S {times['sit_small']}; SiT-XS {times['sit_xs']} (processor); GMACs {macs}; slimmed from 64 "
        f"patches to one, FRD keeps {100 * top1['FRD'] / teacher:.1f} % of the teacher's accuracy: {losses}; "
        f"KD with patches dropped instead: {drops} %",
        baseline=f"LV-ViT-S {', '.join(f'{s[MODELS[0]]:.3f} s at batch {b}' for b, s in speed.seconds.items())}; "
        f"teacher {teacher:.1f} %",
        verdict=judge(speed, found, teacher),
        data=f"CIFAR-10 for accuracy (the embedded classifier, slimmed after 3 of its 4 blocks; {found.steps} steps, "
        f"batch {found.batch}, {seeds} seeds, {pictures} test pictures); random pictures of 224 pixels for the speed",
        details={
            "gmacs": speed.gmacs,
            "seconds": {str(batch): taken for batch, taken in speed.seconds.items()},
            "teacher": round(teacher, 2),
            "top1": {kind: [round(value, 2) for value in values] for kind, values in found.top1.items()},
        },
    )
