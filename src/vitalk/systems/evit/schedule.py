"""The keep-rate schedule as a Lightning callback."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from vitalk.errors import UserError

from .method import attentive, keep_rate_at


class KeepRateSchedule(Callback):
    """Lowers the keep rate along a half cosine while a model trains from scratch (arXiv 2202.07800, section 4.1).

    start_epoch: until then every patch stays. epochs: so long the rate falls, a little in every iteration, to the
    rate that each block was built with. The paper's run of 300 epochs has 10 and 100; fine-tuning needs no schedule.
    Validation in between sees the rate of the moment; a resumed run goes on where it was.

    Raises UserError where the model has no EViT blocks, or the length of an epoch is unknown.
    """

    def __init__(self, start_epoch: int = 10, epochs: int = 100):
        if start_epoch < 0 or epochs < 0:
            raise UserError(f"start_epoch and epochs must not be negative, got {start_epoch} and {epochs}")
        self.start_epoch, self.epochs = start_epoch, epochs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if not attentive(pl_module):
            raise UserError("KeepRateSchedule found no EViT blocks in the model; train an evit_* model or drop it")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: D102
        iterations = trainer.num_training_batches
        if iterations == float("inf"):
            raise UserError("KeepRateSchedule needs to know the length of an epoch; set trainer.limit_train_batches")
        step = trainer.current_epoch * iterations + batch_idx
        for reducer in attentive(pl_module):
            warm, length = self.start_epoch * iterations, self.epochs * iterations
            reducer.rate = keep_rate_at(step, reducer.keep_rate, warm, length)
        rates = [reducer.rate for reducer in attentive(pl_module)]
        pl_module.log("keep_rate", rates[0])
