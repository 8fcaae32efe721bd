"""Token labels: a soft target for every token of a picture, from plain labels, a teacher or stored label maps."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.loss import SoftTargetCrossEntropy
from timm.models.volo import VOLO
from torch import Tensor, nn
from torchvision.ops import roi_align

from vitalk.errors import UserError
from vitalk.vision.classifier import soft_labels

from .dense import Box, DenseLogits, dense_logits, kept

Grid = tuple[int, int]


class TokenTargets(NamedTuple):
    """Distributions that sum to one. image: [batch, classes]; tokens: [batch, tokens, classes], or 1 for all tokens."""

    image: Tensor
    tokens: Tensor


def targets_from_labels(labels: Tensor, classes: int, smoothing: float) -> TokenTargets:
    """Plain labels [batch]: every token has its picture's."""
    image = soft_labels(labels, classes, smoothing)
    return TokenTargets(image, image[:, None])


def targets_from_logits(maps: Tensor, grid: Grid, smoothing: float = 0.0) -> TokenTargets:
    """Maps of logits [batch, classes, height, width] that show what the model sees, such as a teacher's.

    They are resized to ``grid``; the picture's target is that of the mean logits.
    """
    tokens = F.interpolate(maps.float(), grid, mode="bilinear", align_corners=False, antialias=True)
    return _softened(maps.float().mean((2, 3)), tokens, smoothing)


def targets_from_maps(
    scores: Tensor, classes: Tensor, boxes: Tensor, grid: Grid, num_classes: int, smoothing: float = 0.0
) -> TokenTargets:
    """Stored label maps of whole pictures, of which the model sees crops (arXiv 2104.10858, section 3.2).

    scores, classes: [batch, k, height, width], the k greatest logits at each place and whose they are; the other
    logits count as 0. boxes: [batch, 4], the crop as left, top, right, bottom, each a part of the picture's width or
    height. The crop is aligned (RoIAlign) to ``grid``, and to one cell for the picture's target.

    The official code hands the boxes to RoIAlign with rows and columns exchanged; here they are in its order. It also
    adds the smoothing to soft targets such that these sum to more than one.
    """
    maps = scores.new_zeros(len(scores), num_classes, *scores.shape[2:], dtype=torch.float32)
    maps.scatter_(1, classes.long(), scores.float())
    height, width = maps.shape[2:]
    pixels = boxes.float() * torch.tensor([width, height, width, height], device=boxes.device)
    numbered = torch.cat([torch.arange(len(boxes), device=boxes.device)[:, None], pixels], dim=1)
    tokens, image = (roi_align(maps, numbered, size, aligned=True) for size in (grid, (1, 1)))
    return _softened(image.flatten(1), tokens, smoothing)


def corrected(targets: TokenTargets, truth: Tensor) -> TokenTargets:
    """The ground-truth variant for fine-tuning at high resolution: the picture's target learns from the labels.

    truth: [batch, classes], the labels' distribution. It weighs 0.1 where the most likely class of the target is the
    label, else 0.5 (official code).
    """
    ratio = 0.9 - 0.4 * (targets.image.argmax(1) == truth.argmax(1)).float()[:, None]
    return targets._replace(image=ratio * targets.image + (1 - ratio) * truth)


def token_label_loss(
    logits: DenseLogits, targets: TokenTargets, box: Box | None = None, dense_weight: float = 0.5
) -> Tensor:
    """Cross-entropy of the class token plus ``dense_weight`` times that of the tokens (arXiv 2106.13112, eq. of 3.4).

    box: of mix-token: the class token saw two pictures, so that its target is theirs in the proportion of the areas.
    """
    loss, target = SoftTargetCrossEntropy(), targets.image
    if box is not None:
        own = kept(box, logits.tokens.shape[1])
        target = own * target + (1 - own) * target.flip(0)
    return loss(logits.image.float(), target) + dense_weight * loss(logits.tokens.float(), targets.tokens)


def teacher_maps(teacher: nn.Module, images: Tensor) -> Tensor:
    """What ``teacher`` says of each place: images [batch, 3, height, width] -> logits [batch, classes, rows, columns].

    teacher: a timm network whose features are a map, such as a convolutional one (its head goes over every place), or
    a VOLO (its token head). Raises UserError for others.
    """
    if isinstance(teacher, VOLO):
        logits = dense_logits(teacher, images).tokens
        return logits.transpose(1, 2).unflatten(2, tuple(teacher.pos_embed.shape[1:3]))
    features = teacher.forward_features(images)
    if features.ndim != 4:
        raise UserError(
            f"{type(teacher).__name__} has no map of features, from which token labels could be made; "
            "take a convolutional teacher or a VOLO"
        )
    first = features.shape[1] == teacher.num_features
    if first:
        features = features.permute(0, 2, 3, 1)
    batch, rows, columns, _ = features.shape
    places = features.reshape(batch * rows * columns, 1, 1, -1)
    logits = teacher.forward_head(places.permute(0, 3, 1, 2) if first else places)
    return logits.unflatten(0, (batch, rows, columns)).permute(0, 3, 1, 2)


def _softened(image: Tensor, tokens: Tensor, smoothing: float) -> TokenTargets:
    """Logits [batch, classes] and [batch, classes, rows, columns] -> smoothed distributions."""
    floor = smoothing / image.shape[1]
    smooth = ((1 - smoothing) * x.softmax(-1) + floor for x in (image, tokens.flatten(2).transpose(1, 2)))
    return TokenTargets(*smooth)
