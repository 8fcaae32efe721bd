"""VOLO's training: token labelling and mix-token."""

from typing import Any

import torch
from torch import Tensor

from vitalk.errors import UserError
from vitalk.vision.classifier import Classifier, load_weights, soft_labels

from .checkpoint import check_size, checkpoint_filter_fn
from .dense import dense_logits, draw_box, require_both_heads
from .labels import (
    TokenTargets,
    corrected,
    targets_from_labels,
    targets_from_logits,
    targets_from_maps,
    teacher_maps,
    token_label_loss,
)


class TokenLabelClassifier(Classifier):
    """Trains a VOLO, timm's or ours, on a target for every token (arXiv 2106.13112, section 3.4).

    Where the token labels come from: batches of ``TokenLabelImages`` bring stored label maps; else a ``teacher`` sees
    the training pictures; else every token has the label of its picture. Mixup and cutmix have no place here.

    init: weights to start from; official checkpoints of another picture size have their positions resized, and heads
    for other classes are left out. teacher: a timm name, see ``labels.teacher_maps``; it sees the same pictures.
    mix_token: two pictures a pass, see ``dense_logits``. dense_weight: of the tokens' loss against the class token's.
    ground_truth: the labels correct the maps' or the teacher's target of the picture, as in fine-tuning at high
    resolution. smoothing: of whatever the targets are. The other arguments are the ``Classifier``'s.

    Raises UserError for models without class token or token head, pictures of the wrong size, a batch of one and a
    loss that is not finite.
    """

    def __init__(
        self,
        model: str,
        model_args: dict[str, Any] | None = None,
        num_classes: int = 1000,
        init: str | None = None,
        fused_attn: bool = True,
        optimizer: str = "adamw",
        optimizer_args: dict[str, Any] | None = None,
        lr: float = 1.6e-3,
        weight_decay: float = 0.05,
        layer_decay: float | None = None,
        warmup_steps: int = 0,
        min_lr: float = 1e-5,
        smoothing: float = 0.1,
        teacher: str | None = None,
        mix_token: bool = True,
        dense_weight: float = 0.5,
        ground_truth: bool = False,
    ):
        super().__init__(
            model=model, model_args=model_args, num_classes=num_classes, fused_attn=fused_attn, optimizer=optimizer,
            optimizer_args=optimizer_args, lr=lr, weight_decay=weight_decay, layer_decay=layer_decay,
            warmup_steps=warmup_steps, min_lr=min_lr, smoothing=smoothing, teacher=teacher,
        )  # fmt: skip
        require_both_heads(self.model)
        if init is not None:
            self.model.checkpoint_filter_fn = checkpoint_filter_fn  # timm's have none
            load_weights(self.model, init)

    def forward(self, images: Tensor) -> Tensor:
        """images [batch, 3, height, width], normalised -> logits [batch, classes], both heads together."""
        check_size(self.model, *images.shape[-2:])
        return super().forward(images)

    def training_step(self, batch: tuple[Tensor, Tensor | dict[str, Tensor]], _: int) -> Tensor:  # noqa: D102
        images = batch[0].contiguous(memory_format=torch.channels_last)
        if len(images) == 1:
            raise UserError(f"{self.hparams.model} has batch norm, which a batch of one cannot train; raise batch_size")
        grid = tuple(self.model.pos_embed.shape[1:3])
        box = draw_box(*grid) if self.hparams.mix_token else None
        logits = dense_logits(self.model, images, box)
        return self.checked(token_label_loss(logits, self.targets(images, batch[1]), box, self.hparams.dense_weight))

    @torch.no_grad()
    def targets(self, images: Tensor, given: Tensor | dict[str, Tensor]) -> TokenTargets:
        """The targets of images [batch, 3, height, width].

        given: labels [batch], or those with label maps: "labels", and "scores", "classes" and "boxes" as in
        ``targets_from_maps``.
        """
        grid = tuple(self.model.pos_embed.shape[1:3])
        classes, smoothing = self.hparams.num_classes, self.hparams.smoothing
        labels = given["labels"] if isinstance(given, dict) else given
        if isinstance(given, dict):
            maps = given["scores"], given["classes"], given["boxes"]
            targets = targets_from_maps(*maps, grid, classes, smoothing)
        elif self.teacher:
            maps = teacher_maps(self.teacher[0].to(images.device), images)
            targets = targets_from_logits(maps, grid, smoothing)
        else:
            return targets_from_labels(labels, classes, smoothing)
        return corrected(targets, soft_labels(labels, classes, smoothing)) if self.hparams.ground_truth else targets
