"""The classifier that trains: any timm model, with the augmentations and losses that ViT recipes use."""

import json
import math
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning import LightningModule
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassAccuracy

from vitalk.errors import UserError

from .checkpoints import load_matching


class ClassifierTraining(LightningModule):
    """What the trainings of classifiers have in common; each says the loss of a batch that is ``prepared``.

    model, model_args: for ``timm.create_model``; drop path is ``model_args: {drop_path_rate: 0.1}``.
    init: weights to start from, a ``.safetensors`` file or checkpoint; a head of another size is dropped.
    optimizer: a timm name ("adamw", "muon", "lamb"); lr: at the end of the warm-up, for the whole global batch.
    fused_attn: False multiplies out the attention of timm blocks, which trains faster on CPUs with some hundred
    tokens at most: the backward pass of the fused kernel is slow there.
    layer_decay: learning rates fall by this factor a block from the head down; None for one rate.
    warmup_steps, min_lr: linear warm-up, then a half cosine to ``min_lr``.
    mixup, cutmix: their beta parameters, 0 turns each off; smoothing: of the labels.
    sizes: progressive resizing, pairs [epoch, pixels] in order, from that epoch on; resized on the device.
    Moving averages of the weights are Lightning's ``EMAWeightAveraging`` callback.

    Raises UserError for an unknown model, a batch of one with batch norm, and a loss that is not finite.
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
        lr: float = 5e-4,
        weight_decay: float = 0.05,
        layer_decay: float | None = None,
        warmup_steps: int = 0,
        min_lr: float = 1e-5,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixup_prob: float = 1.0,
        switch_prob: float = 0.5,
        smoothing: float = 0.1,
        sizes: list[tuple[int, int]] | None = None,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.model = create(model, num_classes, model_args or {}).to(memory_format=torch.channels_last)
        if init is not None:
            load_weights(self.model, init)
        if not fused_attn:
            for module in self.model.modules():
                if hasattr(module, "fused_attn"):
                    module.fused_attn = False
        self.mix = None
        if mixup or cutmix:
            self.mix = Mixup(
                mixup, cutmix, prob=mixup_prob, switch_prob=switch_prob,
                label_smoothing=smoothing, num_classes=num_classes,
            )  # fmt: skip
        self.top1 = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """images [batch, 3, height, width], normalised -> logits [batch, classes]."""
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:  # noqa: D102
        return self.checked(self.objective(*self.prepared(batch)))

    @abstractmethod
    def objective(self, images: Tensor, target: Tensor) -> Tensor:
        """The loss of this step on images [batch, 3, height, width] with target [batch, classes]."""

    def prepared(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Images [batch, 3, height, width] and labels [batch] -> images as they are trained on, and targets.

        Resized, mixed, channels last; targets are distributions [batch, classes].
        Raises UserError for a batch of one with batch norm.
        """
        images, labels = self._resized(batch[0]).contiguous(memory_format=torch.channels_last), batch[1]
        if len(images) == 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.modules()):
            raise UserError(f"{self.hparams.model} has batch norm, which a batch of one cannot train; raise batch_size")
        if self.mix is not None and len(images) % 2 == 0:
            return self.mix(images, labels)
        return images, soft_labels(labels, self.hparams.num_classes, self.hparams.smoothing)

    def checked(self, loss: Tensor) -> Tensor:
        """``loss``, logged. Raises UserError where it is not finite."""
        if not torch.isfinite(loss):
            raise UserError(f"the loss became {loss.item()} at step {self.global_step}; lower lr or check the pictures")
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:  # noqa: D102
        images, labels = batch
        logits = self(images).float()
        self.top1(logits, labels)
        self.log("val/loss", F.cross_entropy(logits, labels), sync_dist=True)
        self.log("val/top1", self.top1, prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:  # noqa: D102
        h = self.hparams
        decay = {} if h.get("layer_decay") is None else {"layer_decay": h.layer_decay}
        optimizer = create_optimizer_v2(
            self.model, opt=h.optimizer, lr=h.lr, weight_decay=h.weight_decay, **decay, **(h.optimizer_args or {})
        )
        for group in optimizer.param_groups:
            group["lr"] = h.lr * group.get("lr_scale", 1.0)
        steps = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            if step < h.warmup_steps:
                return (step + 1) / h.warmup_steps
            done = (step - h.warmup_steps) / max(steps - h.warmup_steps, 1)
            return (h.min_lr + (h.lr - h.min_lr) * (1 + math.cos(math.pi * min(done, 1.0))) / 2) / h.lr

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def save_weights(self, path: Path, data: Any) -> None:
        """Write the model as safetensors whose metadata names it, its preprocessing and its labels."""
        from vitalk.files import write_tensors

        meta = {
            "model": self.hparams.model,
            "model_args": json.dumps(dict(self.hparams.model_args or {})),
            "preprocess": json.dumps(data.preprocess_cfg()),
            "labels": json.dumps(data.classes),
        }
        write_tensors(path, self.model.state_dict(), meta)

    def _resized(self, images: Tensor) -> Tensor:
        sizes = [size for epoch, size in self.hparams.get("sizes") or [] if epoch <= self.current_epoch]
        if not sizes or sizes[-1] == images.shape[-1]:
            return images
        return F.interpolate(images, size=(sizes[-1], sizes[-1]), mode="bilinear", antialias=True, align_corners=False)


class Classifier(ClassifierTraining):
    """Trains a timm model to classify pictures, and by a teacher where there is one.

    teacher: a timm name or model file that is distilled (arXiv 2012.12877, section 4): "soft" is the KL divergence
    at temperature ``tau``, "hard" the cross-entropy with its decision; ``alpha`` weighs it against the labels.
    The other arguments, and errors, are those of ``ClassifierTraining``.
    """

    def __init__(
        self,
        model: str,
        model_args: dict[str, Any] | None = None,
        num_classes: int = 1000,
        init: str | None = None,
        *,
        teacher: str | None = None,
        distillation: Literal["soft", "hard"] = "hard",
        alpha: float = 0.5,
        tau: float = 3.0,
        **options: Any,
    ):
        super().__init__(model, model_args, num_classes, init, **options)
        self.teacher: list[nn.Module] = []  # in a list: neither trained, nor saved, nor averaged
        if teacher is not None:
            self.teacher.append(load_teacher(teacher, num_classes))

    def objective(self, images: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy on images [batch, 3, height, width] with target [batch, classes], and the teacher's."""
        logits = self(images).float()
        loss = SoftTargetCrossEntropy()(logits, target)
        if self.teacher:
            loss = (1 - self.hparams.alpha) * loss + self.hparams.alpha * self._distill(images, logits)
        return loss

    def _distill(self, images: Tensor, logits: Tensor) -> Tensor:
        teacher, tau = self.teacher[0].to(images.device), self.hparams.tau
        with torch.no_grad():
            judged = teacher(images).float()
        if self.hparams.distillation == "hard":
            return F.cross_entropy(logits, judged.argmax(1))
        divergence = F.kl_div(
            (logits / tau).log_softmax(1), (judged / tau).log_softmax(1), log_target=True, reduction="sum"
        )
        return divergence * tau**2 / logits.numel()


def soft_labels(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """labels [batch] -> smoothed distributions [batch, classes] that sum to one."""
    off = smoothing / classes
    return torch.full((len(labels), classes), off, device=labels.device).scatter_(
        1, labels[:, None], 1 - smoothing + off
    )


def create(name: str, num_classes: int | None, args: dict[str, Any]) -> nn.Module:
    """``timm.create_model`` with vitalk's own models registered and a sentence for unknown names."""
    import timm

    from vitalk.errors import nearest

    base = name.split(".")[0]
    if not name.startswith("hf-hub:") and not timm.is_model(base):
        raise UserError(f"there is no model {name}.{nearest(base, timm.list_models())}")
    if num_classes is not None:
        args = {**args, "num_classes": num_classes}
    return timm.create_model(name, **args)


def load_weights(model: nn.Module, path: str) -> None:
    """Load a checkpoint into ``model``; entries of another shape, such as a head for other classes, stay."""
    from timm.models import load_state_dict

    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint at {path}")
    state = load_state_dict(path, weights_only=True)
    state = {key.removeprefix("model."): value for key, value in state.items()}
    if convert := getattr(model, "checkpoint_filter_fn", None):
        state = convert(state, model)
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if not fitting:
        raise UserError(f"{path} has no weights that fit this model")
    model.load_state_dict(fitting, strict=False)


def load_teacher(name: str, num_classes: int) -> nn.Module:
    """A model to be imitated, in eval mode: a pretrained timm name, or a ``.safetensors`` file of ``vitalk train``.

    Raises UserError for names and files that there are not, and for one that knows other classes.
    """
    if not name.endswith(".safetensors"):
        return create(name, num_classes, {"pretrained": True}).eval()
    model, _ = stored_model(name)
    if model.num_classes != num_classes:
        raise UserError(f"the teacher {name} knows {model.num_classes} classes, not {num_classes}; use another one")
    return model


def stored_model(path: str) -> tuple[nn.Module, dict[str, str]]:
    """The model of a ``.safetensors`` file of ``vitalk train``, in eval mode, and the file's metadata.

    Raises UserError for files that cannot be read, are of no known model, or do not fit it.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint at {path}; check the path")
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error})") from None
    if "model" not in meta:
        raise UserError(f"{path} does not say which model it is of; train it with vitalk train, or name a timm model")
    args, labels = json.loads(meta["model_args"]), json.loads(meta["labels"])
    model = create(meta["model"], args.pop("num_classes", len(labels or []) or None), {**args, "pretrained": False})
    load_matching(model, state, path)
    return model.eval(), meta
