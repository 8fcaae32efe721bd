"""The two stages of training as classifiers for ``vitalk train``."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitalk.errors import UserError
from vitalk.vision.classifier import ClassifierTraining

from .losses import heterogeneous_loss, homogeneous_loss, prediction_loss, soft_cross_entropy, weighted_loss
from .model import LGViT, chosen_logits


class JointClassifier(ClassifierTraining):
    """Stage 1: network and exits together, end to end (arXiv 2308.00255, section 3.3).

    Steps alternate: one trains the final classifier, without the heads, which then cost nothing; the next all
    classifiers, weighted by their layers. A step is the optimizer's; the release alternates with each pass, which
    under gradient accumulation is another thing. With several devices take
    ``trainer.strategy=ddp_find_unused_parameters_true``.

    init: weights to start from, of the plain model (fine-tuned: the paper's stage 0) or with exits. The other
    arguments are the ``ClassifierTraining``'s. Validation logs the accuracies of early exit, of the final classifier
    and of the exits, and the layer at which pictures leave.

    Raises UserError for models without exits, a batch of one with batch norm, and a loss that is not finite.
    """

    def __init__(
        self,
        model: str,
        model_args: dict[str, Any] | None = None,
        *,
        lr: float = 5e-5,
        weight_decay: float = 0.0,
        min_lr: float = 0.0,
        smoothing: float = 0.0,
        **options: Any,
    ):
        super().__init__(
            model, model_args, lr=lr, weight_decay=weight_decay, min_lr=min_lr, smoothing=smoothing, **options
        )
        if not isinstance(self.model, LGViT):
            raise UserError(f"{model} has no exits to train; choose an lgvit_* model")

    def objective(self, images: Tensor, target: Tensor) -> Tensor:
        """The loss of this step on images [batch, 3, height, width] with target [batch, classes]."""
        if self.global_step % 2 == 0:
            return soft_cross_entropy(self.model.vit(images), target)
        return weighted_loss(self.model.forward_exits(images), target, self.model.layers, self.model.trunk.depth)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:  # noqa: D102
        images, labels = batch
        logits, rule = self.model.forward_exits(images).stacked().float(), self.model.rule
        chosen = rule.decide(rule.score(logits[:-1]))
        self.top1(chosen_logits(logits, chosen), labels)
        right = (logits.argmax(2) == labels).float().mean(1)
        layers = torch.tensor([*self.model.layers, self.model.trunk.depth], device=labels.device, dtype=torch.float)
        self.log("val/loss", F.cross_entropy(logits[-1], labels), sync_dist=True)
        self.log("val/top1", self.top1, prog_bar=True)
        self.log("val/top1_final", right[-1], sync_dist=True)
        self.log("val/top1_exits", right[:-1].mean(), sync_dist=True)
        self.log("val/layer", layers[chosen].mean(), prog_bar=True, sync_dist=True)


class DistilledClassifier(JointClassifier):
    """Stage 2: the heads learn from the frozen network's end (arXiv 2308.00255, section 3.3); start from stage 1.

    The network stays as it is, bit for bit, and in eval mode, which keeps its norms' statistics and drops no path;
    only the heads train, batch norms of theirs included.

    alpha: weight of the final classifier's prediction against the labels; tau: temperature of both. heterogeneous,
    homogeneous: weights of the losses of that name. detach: see ``losses.homogeneous_loss``. The teacher's logits are
    those of inference; the release forgets the last norm. The other arguments are the ``JointClassifier``'s.
    """

    def __init__(
        self,
        model: str,
        model_args: dict[str, Any] | None = None,
        *,
        alpha: float = 0.3,
        tau: float = 2.0,
        heterogeneous: float = 0.01,
        homogeneous: float = 0.01,
        detach: bool = True,
        **options: Any,
    ):
        super().__init__(model, model_args, **options)
        self.model.trunk.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "DistilledClassifier":
        """Training mode for the heads; the network behind them stays in eval mode."""
        super().train(mode)
        self.model.trunk.eval()
        return self

    def objective(self, images: Tensor, target: Tensor) -> Tensor:
        """The loss of this step on images [batch, 3, height, width] with target [batch, classes]."""
        h, kinds = self.hparams, self.model.kinds
        passed = self.model.forward_exits(images, frozen=True)
        loss = prediction_loss(passed, target, passed.logits, h.alpha, h.tau)
        loss = loss + h.heterogeneous * heterogeneous_loss(passed, kinds)
        return loss + h.homogeneous * homogeneous_loss(passed, kinds, h.detach)
