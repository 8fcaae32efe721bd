"""Tokens-to-token against a plain patch embedding in front of one backbone, and what its attention costs."""

import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitalk.experiments import budget
from vitalk.measurement import Measurement, Verdict
from vitalk.vision.classifier import Classifier
from vitalk.vision.cost import growth
from vitalk.vision.experiments import Comparison, cifar10, compare

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
SEEDS, BATCH = 3, 64


def measure(minutes: float, data: Path) -> Measurement:
    """Top-1 of the same small backbone behind four embeddings on CIFAR-10 (ImageNet in the paper, table 5).

    minutes: the budget; all runs get the same number of steps, which follows from it. data: the data root.
    """
    with budget("T2T-ViT", minutes) as time:
        train, test = cifar10(data, minutes)
        times = attention_growth(seconds=6 * minutes)
        makers = {name: partial(_classifier, name) for name in EMBEDDINGS}
        found = compare(makers, train, test, time, SEEDS, BATCH)
    return judge(found, times, found.told(train, test))


def judge(found: Comparison, times: dict[str, float], data: str) -> Measurement:
    """The measurement that the accuracies by embedding and seed and the growth of the times amount to.

    "direction only" takes a gain of the Performer over patches that is more than two standard errors above zero;
    "reproduced" also half the published gain or more, and the paper's order of all four.
    """
    gains = {name: found.gain(name, "patches") for name in PUBLISHED}
    mean, noise = ({name: gain[i] for name, gain in gains.items()} for i in (0, 1))
    verdict: Verdict = "not reproduced"
    if mean["performer"] > 2 * noise["performer"]:
        ordered = (
            mean["transformer"] >= mean["performer"] - noise["performer"] and mean["performer"] > mean["convolutions"]
        )
        full = mean["performer"] >= PUBLISHED["performer"] / 2
        verdict = "reproduced" if full and ordered and mean["convolutions"] > 0 else "direction only"
    return Measurement(
        claim="Tokens-to-token layers classify better than a patch embedding in front of the same backbone; the "
        "Performer layer nearly as well as softmax attention, at a cost linear in the tokens",
        published="top-1 on ImageNet over 79.5 % with patches: "
        + ", ".join(f"{name} +{gain}" for name, gain in PUBLISHED.items()),
        measured=", ".join(f"{name} {mean[name]:+.1f} ± {noise[name]:.1f}" for name in PUBLISHED)
        + f" points; time of a token layer for 4 times the tokens: performer x{times['performer']:.1f},"
        f" transformer x{times['transformer']:.1f}",
        baseline=f"patches {statistics.mean(found.top1['patches']):.1f} % top-1",
        verdict=verdict,
        data=f"{data}, {len(found.top1['patches'])} seeds",
        details={
            **found.details(_classifier),
            **{f"growth_{name}": value for name, value in times.items()},
        },
    )


def attention_growth(seconds: float) -> dict[str, float]:
    """How many times longer a token layer (147 -> 64) takes for a grid of 112 x 112 tokens than for one of 56 x 56.

    Linear time would give the ratio of the token counts (4), quadratic time its square (16).
    """
    layers = {kind: TokenLayer(147, 64, kind).eval() for kind in ("performer", "transformer")}
    return growth(layers, torch.randn(1, 56**2, 147), torch.randn(1, 112**2, 147), seconds)


def _classifier(name: str, steps: int = 1) -> Classifier:
    arguments = {**BACKBONE, **EMBEDDINGS[name]}
    return Classifier("t2t_vit_7", arguments, num_classes=10, fused_attn=False, lr=2e-3, warmup_steps=steps // 10)
