"""A small ViT in four arms, so that the effect of the mask is told apart from that of the pooling."""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitalk.experiments import budget
from vitalk.measurement import Measurement, Verdict
from vitalk.vision.classifier import Classifier
from vitalk.vision.experiments import Comparison, cifar10, compare

from .mask import GaussianMixtureMask

# The paper compares the first with the third and the fourth; the mask alone is what the third adds to the second.
ARMS: dict[str, dict[str, Any]] = {
    "class token": {"mask": "none"},
    "mean pooling": {"mask": "none", "class_token": False},
    "gaussian": {"mask": "gaussian"},
    "elementwise": {"mask": "elementwise"},
}
BACKBONE = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 6}
PUBLISHED = 1.41  # points on CIFAR-10, mask and mean pooling together
SEEDS, BATCH = 3, 64


def measure(minutes: float, data: Path) -> Measurement:
    """Top-1 of the same small backbone with class token, mean pooling, Gaussian and element-wise mask on CIFAR-10.

    minutes: the budget; all runs get the same number of steps, which follows from it. data: the data root.
    """
    with budget("GMM-ViT", minutes) as time:
        train, test = cifar10(data, minutes)
        found = compare({name: partial(_classifier, name) for name in ARMS}, train, test, time, SEEDS, BATCH)
    return judge(found, shapes(found.models["gaussian"]), found.told(train, test))


def judge(found: Comparison, shape: dict[str, float], data: str) -> Measurement:
    """The measurement that the accuracies by arm and seed and the ``shapes`` of the trained masks amount to.

    Judged is the Gaussian mask against mean pooling without it. "direction only" takes a gain of more than two
    standard errors above zero; "reproduced" also half the published gain or more, and an element-wise mask that
    gains less.
    """
    mask, noise = found.gain("gaussian", "mean pooling")
    elementwise, elementwise_noise = found.gain("elementwise", "mean pooling")
    pooling, pooling_noise = found.gain("mean pooling", "class token")
    verdict: Verdict = "not reproduced"
    if mask > 2 * noise:
        verdict = "reproduced" if mask >= PUBLISHED / 2 and elementwise < mask else "direction only"
    return Measurement(
        claim="A learnable Gaussian mask of patch distance makes a small ViT classify better at no cost worth naming, "
        "and better than an unconstrained mask does",
        published=f"top-1 on CIFAR-10 +{PUBLISHED} points over 93.65 %, mask and mean pooling against neither",
        measured=f"mask {mask:+.1f} ± {noise:.1f} points, element-wise {elementwise:+.1f} ± {elementwise_noise:.1f};"
        f" mean pooling instead of a class token {pooling:+.1f} ± {pooling_noise:.1f}",
        baseline=f"mean pooling without a mask {statistics.mean(found.top1['mean pooling']):.1f} % top-1",
        verdict=verdict,
        data=f"{data}, {len(found.top1['gaussian'])} seeds",
        details={
            **found.details(_classifier),
            **shape,
        },
    )


@torch.no_grad()
def shapes(models: Sequence[nn.Module]) -> dict[str, float]:
    """What became of the masks: the mean of |G| at distance 0 and at the far corner, over all heads of all layers,
    and the share of heads in which it is smaller at the corner."""
    masks = [m() for model in models for m in model.modules() if isinstance(m, GaussianMixtureMask)]
    near, far = (torch.cat([mask[:, 0, place] for mask in masks]).abs() for place in (0, -1))
    decaying = (far < near).float().mean()
    return {"mask_near": near.mean().item(), "mask_far": far.mean().item(), "heads_decaying": decaying.item()}


def _classifier(name: str, steps: int = 1) -> Classifier:
    arguments = {**BACKBONE, **ARMS[name]}
    return Classifier("gmm_vit", arguments, num_classes=10, fused_attn=False, lr=1e-3, warmup_steps=steps // 10)
