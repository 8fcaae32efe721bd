"""The search: only the proxies learn, the network around them stays as it is."""

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from timm.loss import SoftTargetCrossEntropy
from timm.models.metaformer import MetaFormer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from vitalk.errors import UserError
from vitalk.experiments import short_run
from vitalk.files import write_tensors
from vitalk.vision.classifier import Classifier, soft_labels

from .networks import expected_macs, learned, searchable
from .schedule import Schedule, gmacs

PAPER_LAM, PAPER_GMACS = 5.0, 4.6  # the release's weight of the MACs, and DeiT-S, which it suits
PAPER_RATE, PAPER_STEPS = 0.01, 3750  # its learning rate, for three epochs of ImageNet in batches of 1024
Kinds = tuple[Literal["prune", "merge"], ...]


class RateSearch(Classifier):
    """Finds how many tokens each block is to keep; the loss is cross-entropy + lam (MACs - target)^2.

    Source: arXiv 2305.17997, section 3.3.

    target: a share of the model's MACs such as 0.65, or GMACs such as "2.9G". model, model_args: of the trained
    network; its weights are timm's (pretrained) or ``vitalk_eye``'s own unless ``init`` names a checkpoint.
    granularity: step between the candidate counts, in tokens. kinds: what is searched, both unless for an ablation.
    lam: weight of the squared distance in GMACs; None scales the release's 5 so that every model feels it as DeiT-S
    does (chosen: a network of 0.1 GMACs would not feel it at all). warmup_epochs: so long lam is 0 (1 in the release
    where it is on).
    lr, min_lr: of AdamW without weight decay, along a half cosine that falls in every step, where the release's falls
    by epoch. The release's 0.01 is for 3750 steps; a few hundred need about as much more as they are fewer.

    Drop path of the model is active, as in the release; batch norms of a stem keep their statistics. Validation
    really drops and merges the tokens. The other arguments are the ``Classifier``'s.
    Raises UserError for targets that mean nothing or cannot be reached, models that cannot be compressed, and a loss
    that is not finite.
    """

    def __init__(
        self,
        model: str,
        target: float | str,
        model_args: dict[str, Any] | None = None,
        num_classes: int = 1000,
        init: str | None = None,
        granularity: int = 4,
        kinds: Kinds = ("prune", "merge"),
        lam: float | None = None,
        warmup_epochs: int = 0,
        lr: float = PAPER_RATE,
        min_lr: float = PAPER_RATE / 10,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        smoothing: float = 0.1,
    ):
        if init is None and model == "vitalk_eye":
            init = str(resources.files("vitalk").joinpath("assets", "eye.safetensors"))
        super().__init__(
            model=model, model_args={"pretrained": init is None, **(model_args or {})}, num_classes=num_classes,
            init=init, lr=lr, min_lr=min_lr, mixup=mixup, cutmix=cutmix, smoothing=smoothing,
        )  # fmt: skip
        self.adopt(self.model, target, granularity, tuple(kinds), lam)

    def adopt(self, model: nn.Module, target: float | str, granularity: int, kinds: Kinds, lam: float | None) -> None:
        """Put the proxies around ``model``, which is frozen, and aim at ``target``."""
        self.model = searchable(model, granularity, kinds)
        full = self.model.shape.full / 1e9
        self.target = gmacs(self.model.shape, target)
        self.lam = PAPER_LAM * (PAPER_GMACS / full) ** 2 if lam is None else lam

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:  # noqa: D102
        images, labels = batch
        if self.mix is not None and len(images) % 2 == 0:
            images, target = self.mix(images, labels)
        else:
            target = soft_labels(labels, self.hparams.num_classes, self.hparams.smoothing)
        loss, macs = SoftTargetCrossEntropy()(self(images).float(), target), expected_macs(self.model)
        if not torch.isfinite(loss):
            raise UserError(f"the loss became {loss.item()} at step {self.global_step}; check the weights and pictures")
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        self.log("train/gmacs", macs.float(), prog_bar=True)
        lam = 0.0 if self.current_epoch < self.hparams.warmup_epochs else self.lam
        return loss + lam * (macs - self.target).square().to(loss)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:  # noqa: D102
        super().validation_step(batch, index)
        self.log("val/gmacs", self.schedule().macs(self.model.shape) / 1e9)

    def configure_optimizers(self) -> dict[str, Any]:  # noqa: D102
        proxies = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(proxies, self.hparams.lr, weight_decay=0.0)
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        scheduler = CosineAnnealingLR(optimizer, steps, self.hparams.min_lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def schedule(self) -> Schedule:
        """The schedule as it stands."""
        return learned(self.model, self.hparams.model, self.target)

    def save_weights(self, path: Path, data: Any) -> None:
        """Write the compressed model, and beside it what was found, as ``schedule.json``."""
        found = self.schedule()
        found.save(path.with_name("schedule.json"))
        args = {key: value for key, value in (self.hparams.model_args or {}).items() if key != "pretrained"}
        counts = {"prune": found.prune, "merge": found.merge, "tokens": found.tokens, "target": found.target}
        meta = {
            "model": "diffrate_timm",
            "model_args": json.dumps({**args, "base": self.hparams.model, "schedule": counts}),
            "preprocess": json.dumps(data.preprocess_cfg()),
            "labels": json.dumps(data.classes),
        }
        state = self.model.state_dict()
        write_tensors(path, {key: value for key, value in state.items() if not key.startswith("reducers.")}, meta)


def search(
    model: VisionTransformer | MetaFormer,
    pictures: DataLoader,
    target: float | str,
    steps: int | None = None,
    lr: float | None = None,
    granularity: int = 4,
    kinds: Kinds = ("prune", "merge"),
    lam: float | None = None,
    smoothing: float = 0.1,
    name: str = "",
    tick: Callable[[], object] = lambda: None,
) -> Schedule:
    """The schedule that keeps the accuracy of a trained ``model`` best at ``target`` MACs.

    pictures: batches of (images [batch, 3, height, width], normalised; labels [batch]). target, granularity, kinds,
    lam: as in ``RateSearch``. steps: of the optimiser, None for three times through the pictures. lr: None for the
    release's, the higher the fewer the steps (chosen). name: written into the schedule. tick: called after each step.

    The model's weights, its mode and what of it is trainable are as before in the end.
    Raises UserError as ``RateSearch`` does.
    """
    steps = steps or 3 * len(pictures)
    if steps < 1:
        raise UserError(f"a search needs a step at the least, got {steps}; give pictures")
    rate = PAPER_RATE * max(1.0, PAPER_STEPS / steps) ** 0.75 if lr is None else lr
    module = RateSearch(
        "test_vit", 1.0, {"pretrained": False}, model.num_classes, lr=rate, min_lr=rate / 10, smoothing=smoothing
    )
    trainable, training = [parameter for parameter in model.parameters() if parameter.requires_grad], model.training
    try:
        module.adopt(model.train(), target, granularity, kinds, lam)
        short_run(module, pictures, steps, tick)
        found = learned(module.model, name, module.target)
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        model.train(training)
    return found
