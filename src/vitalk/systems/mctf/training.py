"""Training with token reduction consistency."""

from collections import deque
from dataclasses import replace
from typing import Any

import torch
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor

from vitalk.errors import UserError
from vitalk.vision.classifier import ClassifierTraining
from vitalk.vision.tokens import Tokens, Trunk

from .method import valid_r, with_r


class ConsistentClassifier(ClassifierTraining):
    """Trains a model that fuses tokens to agree with itself when it fuses fewer (arXiv 2403.10030, section 3).

    Each step runs the same network twice from the same embedded pictures, as a student with its own ``r`` and as a
    teacher with a random one, ``draw_r(teacher_r)``. The loss is the cross-entropy of both, and the mean squared
    difference of their pooled features (the normalised class token, or the mean over patches), of which only the
    student learns, on the pictures that the student is sure enough of, see ``accepted``.

    student_weight, teacher_weight, consistency: of the three losses. threshold: of the student's probability.
    The other arguments are the ``ClassifierTraining``'s. Inference is the student's.

    Raises UserError for models that fuse nowhere, a batch of one with batch norm, and a loss that is not finite.
    """

    def __init__(
        self,
        model: str,
        model_args: dict[str, Any] | None = None,
        *,
        lr: float = 3e-5,
        min_lr: float = 1e-6,
        teacher_r: float = 8,
        threshold: float = 0.4,
        student_weight: float = 1.0,
        teacher_weight: float = 1.0,
        consistency: float = 3.0,
        **options: Any,
    ):
        super().__init__(model, model_args, lr=lr, min_lr=min_lr, **options)
        valid_r(teacher_r)
        if not isinstance(self.model, Trunk):
            raise UserError(f"{model} fuses no tokens; choose an mctf_* model")
        with_r(self.model, 0)

    def objective(self, images: Tensor, target: Tensor) -> Tensor:
        """The loss on images [batch, 3, height, width] with target [batch, classes]."""
        h, entropy = self.hparams, SoftTargetCrossEntropy()
        embedded = self.model.embed(images)
        logits, features = finish(self.model, embedded)
        judged, taught = finish(with_r(self.model, draw_r(h.teacher_r)), embedded)
        sure = accepted(logits, target, h.smoothing, h.threshold)
        apart = consistency_loss(features, taught, sure)
        self.log("train/consistency", apart, sync_dist=True)
        self.log("train/accepted", sure.float().mean(), sync_dist=True)
        entropies = h.student_weight * entropy(logits, target) + h.teacher_weight * entropy(judged, target)
        return entropies + h.consistency * apart


def finish(model: Trunk, embedded: Tokens) -> tuple[Tensor, Tensor]:
    """Embedded tokens -> logits [batch, classes] and pooled features [batch, dim], in float32."""
    tokens = deque(model.onward(embedded), maxlen=1).pop()
    tokens = replace(tokens, features=model.vit.norm(tokens.features))
    return model.classify(tokens).float(), model.classify(tokens, pre_logits=True).float()


def draw_r(below: float) -> float:
    """A random number of tokens from 0 to ``below`` - 1; for a share below 1, a share of whole percents under it."""
    if below < 1:
        return int(torch.randint(max(1, round(100 * below)), ())) / 100
    return int(torch.randint(int(below), ()))


def accepted(logits: Tensor, target: Tensor, smoothing: float, threshold: float) -> Tensor:
    """Which pictures teach consistency: those that the student gives their label more than ``threshold``.

    Of mixed pictures both labels count together (the release counts one twice where both are the same).
    logits, target: [batch, classes]; smoothing: of the target. Returns bool [batch].
    """
    named = target > smoothing / target.shape[1] + 1e-6
    return (logits.detach().softmax(1) * named).sum(1) > threshold


def consistency_loss(features: Tensor, taught: Tensor, sure: Tensor) -> Tensor:
    """Mean squared difference of features [batch, dim] from ``taught`` over the pictures in ``sure``; 0 for none."""
    apart = (taught.detach() - features).square().mean(1)
    return (apart * sure).sum() / sure.sum().clamp_min(1)
