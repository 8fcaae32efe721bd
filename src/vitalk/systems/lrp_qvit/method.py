"""LRP-QViT: contribution scores, bits that follow them, and RepQ-ViT's calibration with clipped channel scales."""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.quant import Quantizer, calibrate, expose, fold, fold_batch_norms, quantizers, skeleton, widen
from vitalk.nn.quant.calibrate import check, check_choice
from vitalk.nn.quant.policy import Attention
from vitalk.nn.quant.reparam import Pair

from .allocation import Allocation, Ladder, Limit, ladder, stem
from .clipping import Percentiles, clipped
from .relevance import propagate

Normalize = Literal["type", "network"]
CHOICES = (-1, 0, 1)
CLIP = (1.0, 99.0)


def lrp_qvit(
    model: nn.Module,
    images: Tensor,
    weight_bits: int = 4,
    act_bits: int = 4,
    labels: Tensor | None = None,
    mixed: bool = True,
    choices: Sequence[int] = CHOICES,
    clip: Percentiles = CLIP,
    attention: Attention = "log-sqrt2",
    integer: bool = True,
    sensitivity: bool = False,
    allocation: Allocation | None = None,
    progress: bool = False,
) -> nn.Module:
    """A copy of ``model``, quantized (fake quantization, eval mode): any timm ViT, DeiT or Swin, or a ``Trunk``.

    images: calibration pictures [count, channels, height, width], normalised as in training; RepQ-ViT takes 32. The
    contribution scores are taken of the same ones.
    weight_bits, act_bits: 2 to 8, the bits whose cost mixed ones may have; pictures themselves always have 8.
    labels: the classes of the pictures [count]; those that the model decides for where None.
    mixed: bits follow the contribution scores (``allocate``); else all sites have the target bits.
    choices: differences from the target bits (the set is ours). clip: percentiles to which channel scales and zero
    points behind a LayerNorm are clipped before they are folded; (0, 100) is RepQ-ViT.
    attention: quantizer of the attention probabilities; "float" leaves both attention products in float (deployment).
    integer: symmetric weights and whole zero points, which runtimes have fast kernels for; False is the paper's
    protocol, asymmetric weights and a real-valued common zero point, which cannot be exported.
    sensitivity: weigh the scores with measured losses (Mix-QViT), which takes a pass for each site and choice.
    allocation: bits that were found before, in place of new ones. progress: show a progress bar.

    Raises UserError for bits, labels, percentiles, pictures, weights and attention that cannot be.
    """
    check(model, images)
    common = clipped(clip)
    if mixed and allocation is None:
        allocation = allocate(model, images, weight_bits, act_bits, labels, choices, attention, sensitivity=sensitivity)
    with torch.inference_mode(False):
        images = images.detach().clone()
        placed, pairs = _placed(model, images[:1], weight_bits, act_bits, attention, integer, allocation)
        calibrate(placed, images, progress)
        for norm, linears in pairs:
            fold(norm, linears, integer, common)
    return placed


def allocate(
    model: nn.Module,
    images: Tensor,
    weight_bits: int = 4,
    act_bits: int = 4,
    labels: Tensor | None = None,
    choices: Sequence[int] = CHOICES,
    attention: Attention = "log-sqrt2",
    limit: Limit = "activations",
    ends_bits: int | None = None,
    scores: dict[str, float] | None = None,
    sensitivity: bool = False,
) -> Allocation:
    """Bits by site that cost no more than the target bits everywhere and are where the scores are.

    The sum of score times bits is maximised exactly, as an integer program; the bits of a site are those of its
    weight, and of an attention product, those of its operands. limit, ends_bits: see ``ladder``; the rest: see
    ``lrp_qvit``. scores: by site, in place of ``contributions``. sensitivity: minimise score times measured
    ``sensitivities`` instead (Mix-QViT, arXiv 2501.06357).

    Raises UserError as ``lrp_qvit`` does, and where no allocation keeps the budgets.
    """
    check(model, images)
    with torch.inference_mode(False):
        image = images[:1].detach().clone()
        found = ladder(skeleton(model, weight_bits, act_bits, attention), image, choices, limit, ends_bits)
    scores = contributions(model, images, labels) if scores is None else scores
    if sensitivity:
        gains = weighed(scores, sensitivities(model, images, found, labels, attention))
    else:
        gains = {name: [scores[name] * weight for weight, _ in steps] for name, steps in found.steps.items()}
    return Allocation(found.climb(gains), {name: scores[name] for name in found.steps})


def weighed(scores: dict[str, float], losses: dict[str, list[float]]) -> dict[str, list[float]]:
    """Scores times what quantization of a site loses, as gains: by site, one a choice."""
    return {name: [-scores[name] * loss for loss in each] for name, each in losses.items()}


def contributions(
    model: nn.Module, images: Tensor, labels: Tensor | None = None, normalize: Normalize = "type"
) -> dict[str, float]:
    """How much each site of ``model`` contributes to the classes of the pictures, by name; they sum to 1.

    It is the sum of magnitudes of the relevance at what the site puts out, each picture's scores as shares of their
    sum, averaged (magnitudes and shares are ours: with a denominator near zero a single picture would decide). The
    convolutions of a patch embedding, which hand on the same relevance, have one score among them (ours).
    normalize: "type" makes each kind of site (qkv, matmul1, proj, fc1 …) weigh the same over all blocks, since halved
    products and residual shares make scores of different kinds incomparable; "network" leaves them as they are.
    images: [pictures, channels, height, width]. labels: [pictures], or None for the classes that the model decides for.

    Raises UserError for pictures, weights and labels that cannot be.
    """
    check(model, images)
    check_choice("normalize", normalize, Normalize)
    with torch.inference_mode(False):
        network = opened(model)
        _, found = propagate(network, images, _checked(labels, network, images))
    embedding = stem(network)
    by_picture = torch.stack([v / len(embedding) if name in embedding else v for name, v in found.items()])
    shares = by_picture / by_picture.sum(0).clamp_min(torch.finfo(by_picture.dtype).tiny)
    scores = dict(zip(found, shares.double().mean(1).tolist(), strict=True))
    if normalize == "network":
        return scores
    kinds = {name: "embedding" if name in embedding else _kind(name) for name in scores}
    totals = dict.fromkeys(kinds.values(), 0.0)
    for name, score in scores.items():
        totals[kinds[name]] += score
    live = sum(total > 0 for total in totals.values())
    return {name: score / totals[kinds[name]] / live if score else 0.0 for name, score in scores.items()}


def opened(model: nn.Module) -> nn.Module:
    """A float copy of ``model`` with sites and without BatchNorms behind convolutions, for ``propagate``."""
    return expose(fold_batch_norms(copy.deepcopy(model).eval())).requires_grad_(False)


def _kind(name: str) -> str:
    """What stands in the same place of all blocks: attn.qkv of blocks.3.attn.qkv."""
    return ".".join([part for part in name.split(".") if not part.isdigit()][-2:])


def _checked(labels: Tensor | None, model: nn.Module, images: Tensor) -> Tensor | None:
    if labels is None:
        return None
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise UserError(f"labels must be {len(images)} class numbers, one a picture, got {list(labels.shape)}")
    classes = getattr(model, "num_classes", int(labels.max()) + 1)
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise UserError(f"labels must be 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}")
    return labels.to(images.device)


def sensitivities(
    model: nn.Module, images: Tensor, found: Ladder, labels: Tensor | None = None, attention: Attention = "log-sqrt2"
) -> dict[str, list[float]]:
    """By how much the cross-entropy grows when one site alone is quantized and all others are float, at each choice.

    (arXiv 2501.06357 keeps the others at a baseline; float is ours.) images: [pictures, channels, height, width].
    labels: as for ``contributions``. found: the choices.
    """
    grown: dict[str, list[float]] = {name: [] for name in found.steps}
    with torch.inference_mode(False), torch.no_grad():
        images = images.detach().clone()
        for choice in range(len(found.spent[0][0])):
            taken = found.target | {name: steps[choice] for name, steps in found.steps.items()}
            network, _ = _placed(model, images[:1], 8, 8, attention, True, Allocation(taken, {}))
            calibrate(network, images)
            active = {name: q for name, q in quantizers(network).items() if q.enabled}
            _enable(active, "", False)
            logits = network(images)
            targets = logits.argmax(1) if labels is None else _checked(labels, model, images)
            before = F.cross_entropy(logits, targets).item()
            for name in grown:
                _enable(active, f"{name}.", True)
                grown[name].append(F.cross_entropy(network(images), targets).item() - before)
                _enable(active, f"{name}.", False)
    return grown


def _enable(active: dict[str, Quantizer], prefix: str, on: bool) -> None:
    for name, quantizer in active.items():
        if name.startswith(prefix):
            quantizer.enabled = on


def _placed(
    model: nn.Module, image: Tensor, weight_bits: int, act_bits: int, attention: Attention, integer: bool,
    allocation: Allocation | None,
) -> tuple[nn.Module, list[Pair]]:  # fmt: skip
    """(a copy with all quantizers in place and channel-wise ones behind LayerNorms, the pairs of these)."""
    placed = skeleton(model, weight_bits, act_bits, attention, integer)
    if allocation is not None:
        allocation.apply(placed)
    return placed, widen(placed, image)
