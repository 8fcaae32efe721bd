"""Token reducers side by side: what each saves on DeiT-S, in MACs and in time, and what it costs in accuracy.

The first half has DeiT-S/224 with random weights and the papers' settings; the second the embedded classifier on
CIFAR-10, every method at the same MACs, as it is and after the same short fine-tuning.
"""

import copy
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from lightning import seed_everything
from torch import Tensor, nn

from vitalk.experiments import Budget
from vitalk.reducers import REDUCERS, macs_share, meet, tokens_by_block
from vitalk.systems.evit import evit
from vitalk.systems.sit import sit
from vitalk.vision.classifier import Classifier
from vitalk.vision.cost import count, latencies
from vitalk.vision.experiments import Pictures, fit, top1
from vitalk.vision.merging import tome
from vitalk.vision.tokens import Attended, TokenReducer, Tokens, Trunk

DEIT, EYE = "deit_small_patch16_224", "vitalk_eye"
BATCHES = (1, 16)
SHARE = 0.65  # of the MACs, which every method may spend on CIFAR-10
SEEDS, BATCH, RATE = 2, 128, 1e-4
GAIN = 0.9  # of the MACs' gain, which the clock should show

Make = Callable[[nn.Module], Trunk]
PAPERS: dict[str, Make] = {
    "EViT, keep 0.7": lambda vit: evit(vit, 0.7),
    "ToMe, 13 a block": lambda vit: tome(vit, 13),
    "SiT, half three times": lambda vit: sit(vit, 0.5),
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
    after = any(type(r).__name__ == "TokenSlimming" for r in reduced.reducers)
    return Trunk(copy.deepcopy(reduced.vit), [Truncate(n, after) for n in counts]).eval()


def speeds(seconds: float, tick: Callable[..., object]) -> list[dict[str, Any]]:
    """A row for the plain DeiT-S and each of ``PAPERS``: GMACs, pictures a second, gains, and overhead.

    seconds: to be spent on each batch size.
    """
    torch.manual_seed(0)
    plain = timm.create_model(DEIT).eval()
    image = torch.randn(1, 3, 224, 224)
    models: dict[str, nn.Module] = {"plain": plain}
    models |= {name: make(copy.deepcopy(plain)).eval() for name, make in PAPERS.items()}
    free = {f"{name}, free": truncated(model, image) for name, model in models.items() if name != "plain"}
    macs = {name: count(model, image).macs for name, model in models.items()}
    rows = {name: {"name": name, "macs": macs[name], "ratio_macs": macs["plain"] / macs[name]} for name in models}
    for batch in BATCHES:
        tick(f"DeiT-S, batch {batch}")
        images = torch.randn(batch, 3, 224, 224)
        runs = {name: partial(model, images) for name, model in {**models, **free}.items()}
        with torch.inference_mode():
            taken = latencies(runs, warmup=2, repeats=200 // batch, seconds=seconds)
        for name, row in rows.items():
            row[f"pictures_{batch}"] = batch / taken[name]
            row[f"ratio_{batch}"] = taken["plain"] / taken[name]
            if name != "plain":
                row[f"gain_{batch}_fraction"] = row[f"ratio_{batch}"] / row["ratio_macs"]
                row[f"overhead_{batch}_fraction"] = taken[name] / taken[f"{name}, free"] - 1
    return list(rows.values())


def tuned(model: nn.Module, train: Pictures, steps: int, seed: int, tick: Callable[[], object]) -> nn.Module:
    """A copy of ``model`` after so many steps; a seed gives all models the same batches."""
    seed_everything(seed, verbose=False)
    classifier = Classifier(EYE, num_classes=10, lr=RATE, warmup_steps=steps // 10)
    classifier.model = copy.deepcopy(model)
    for module in classifier.model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    fit(classifier, train, steps, BATCH, tick)
    return classifier.model.eval()


def accuracies(train: Pictures, test: Pictures, time: Budget) -> tuple[list[dict[str, Any]], int]:
    """A row for the embedded classifier, plain and by every reducer at ``SHARE`` of its MACs; and the steps of tuning.

    The time that is left is divided among all of them and the seeds.
    """
    plain = timm.create_model(EYE, pretrained=True).eval()
    share = macs_share(plain, torch.randn(1, 3, 32, 32))
    models: dict[str, nn.Module] = {"plain": plain}
    for name, reducer in REDUCERS.items():
        time.tick(f"{name} at {SHARE:.0%} of the MACs")
        models[name] = reducer.make(plain, meet(reducer, plain, None, share, SHARE), None)
    before = time.tick("timing")
    shelf = {name: top1(model, test) for name, model in models.items()}
    judging = before - time.tick()
    seed_everything(0, verbose=False)
    pace = _pace(plain, train)
    left = time.tick() - SEEDS * judging
    steps = max(5, int(0.8 * left / (SEEDS * len(models) * pace)))
    after: dict[str, list[float]] = {name: [] for name in models}
    for seed in range(SEEDS):
        for name, model in models.items():
            time.tick(f"tuning {name}, seed {seed}")
            after[name].append(top1(tuned(model, train, steps, seed, time.tick), test))
    return [
        {
            "name": name, "share_fraction": share(model), "shelf_top1": shelf[name],
            "tuned_top1": statistics.mean(after[name]), "spread": max(after[name]) - min(after[name]),
        }
        for name, model in models.items()
    ], steps  # fmt: skip


def _pace(model: nn.Module, train: Pictures) -> float:
    classifier = Classifier(EYE, num_classes=10, lr=RATE)
    classifier.model = copy.deepcopy(model)
    return fit(classifier, train, 6, BATCH)
