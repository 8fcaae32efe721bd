"""What the two stages minimise (arXiv 2308.00255, section 3.3); pure functions of a pass through the network."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vitalk.nn.precision import full_precision

from .model import Pass


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Of logits [batch, classes] against distributions [batch, classes], the mean of the batch."""
    return -(target * logits.float().log_softmax(1)).sum(1).mean()


def weighted_loss(passed: Pass, target: Tensor, layers: Sequence[int], depth: int) -> Tensor:
    """Stage 1, every other step: cross-entropies of all classifiers, weighted by the layer that each stands at.

    target: [batch, classes]. layers: of the exits, from 1; depth: the final classifier's weight. In the steps between
    the loss is the final classifier's cross-entropy alone.
    """
    parts = [layer * soft_cross_entropy(e.logits, target) for layer, e in zip(layers, passed.exits, strict=True)]
    return (sum(parts) + depth * soft_cross_entropy(passed.logits, target)) / (sum(layers) + depth)


def prediction_loss(
    passed: Pass, target: Tensor, teacher: Tensor, alpha: float = 0.3, temperature: float = 2.0
) -> Tensor:
    """Stage 2: each exit against the labels and against the final classifier, summed over the exits.

    target: [batch, classes]; teacher: the final logits, [batch, classes]. The divergence is the mean over the batch
    and the classes, times the temperature squared.
    """
    judged = (teacher.float() / temperature).log_softmax(1)
    total = torch.zeros((), device=target.device)
    for head in passed.exits:
        said = (head.logits.float() / temperature).log_softmax(1)
        divergence = F.kl_div(said, judged, reduction="sum", log_target=True) * temperature**2 / said.numel()
        total = total + (1 - alpha) * soft_cross_entropy(head.logits, target) + alpha * divergence
    return total


def heterogeneous_loss(passed: Pass, kinds: Sequence[str]) -> Tensor:
    """Stage 2: the first and the last head of either kind against the tokens that leave the last layer.

    Divergence of the softmaxes over channels, summed over tokens, averaged over the batch. Against a head that
    attends to a part of the map stands the same part. Heads of another width than the last layer's (Swin's earlier
    stages, on which the release distils no features) are left out; a head that is first and last counts once.
    """
    total = passed.hidden.new_zeros((), dtype=torch.float32)
    for index in sorted({chosen for group in groups(kinds) for chosen in (group[0], group[-1])}):
        stride = int(kinds[index][-1]) if kinds[index].startswith("gah") else 1
        student = passed.exits[index].tokens.float()
        teacher = passed.hidden[:, ::stride, ::stride].flatten(1, 2).float()
        if student.shape == teacher.shape:
            total = total + F.kl_div(
                student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True
            )
    return total


def homogeneous_loss(passed: Pass, kinds: Sequence[str], detach: bool = True) -> Tensor:
    """Stage 2: the heads of a kind against the last of that kind and width; the mean squared error.

    Of the tokens for local heads, and of their Gram matrices over channels, [batch, dim, dim], for global heads, whose
    numbers of tokens differ. detach: keep the last head from moving towards the others; the release lets it.
    """
    total = passed.hidden.new_zeros((), dtype=torch.float32)
    for group in groups(kinds):
        tokens = [passed.exits[index].tokens for index in group]
        for width in {x.shape[-1] for x in tokens}:
            *students, teacher = (_compared(x, kinds[group[0]]) for x in tokens if x.shape[-1] == width)
            teacher = teacher.detach() if detach else teacher
            total = total + sum(F.mse_loss(student, teacher) for student in students)
    return total


def groups(kinds: Sequence[str]) -> list[list[int]]:
    """The indices of the local heads and those of the global heads; a kind that is not there is left out."""
    found = ([i for i, kind in enumerate(kinds) if kind.startswith(prefix)] for prefix in ("lph", "gah"))
    return [group for group in found if group]


def _compared(tokens: Tensor, kind: str) -> Tensor:
    with full_precision(tokens):
        x = tokens.float()
        return x.transpose(1, 2) @ x if kind.startswith("gah") else x
