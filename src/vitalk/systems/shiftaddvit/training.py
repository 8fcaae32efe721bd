"""Staged fine-tuning with the latency-aware balance of the experts."""

from typing import Any

import torch
from torch import Tensor

from vitalk.vision.classifier import Classifier

from .experts import collecting


class ShiftAddClassifier(Classifier):
    """Fine-tunes a ``shiftadd_*`` model in any of the three stages (arXiv 2306.06446, section 5.1).

    Where the model has mixtures, the loss is L_cls + balance * sum over mixtures of (L_IMP + L_LOAD).
    ``init`` names the previous stage's model: dense weights, or those before the mixtures, turn into this model's.
    Hashing that is not fitted yet is fitted in the first step.

    model, num_classes, init, …: the ``Classifier``'s. balance: lambda, 0 to train without.
    weight_decay: 0 here, since decay pulls shifts towards 0 and so weights towards one.
    Raises UserError as the ``Classifier`` does.
    """

    def __init__(
        self, model: str, num_classes: int = 1000, balance: float = 0.01, weight_decay: float = 0.0, **kwargs: Any
    ):
        super().__init__(model, num_classes=num_classes, weight_decay=weight_decay, **kwargs)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:  # noqa: D102
        with collecting(self.model) as found:
            loss = super().training_step(batch, index)
        if not found:
            return loss
        balance = torch.stack(found).sum()
        self.log("train/balance", balance, sync_dist=True)
        return loss + self.hparams.balance * balance
