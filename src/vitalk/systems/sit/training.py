"""Feature recalibration distillation: a slimmed student learns from its un-slimmed self, layer by layer."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchDropout
from timm.loss import SoftTargetCrossEntropy
from timm.models import load_state_dict
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from vitalk.deploy.load import load_model
from vitalk.errors import UserError
from vitalk.vision.checkpoints import load_matching
from vitalk.vision.classifier import Classifier, create

from .slimming import ReverseSlimming, SiT, sit


class SlimmingClassifier(Classifier):
    """Trains a ``sit_*`` model by feature recalibration distillation, FRD (arXiv 2111.12624).

    The teacher is the same network un-slimmed. Its weights are where the student starts, and its patch tokens after
    every block are what the student's tokens must tell: a reverse slimming module a block, ``rtsm``, gives them back
    their number. These modules are not part of the model, so that it computes and is saved without them.

    teacher: a file of ``vitalk train``, or a timm name, with the weights that come with it; "vitalk_eye" is the
    embedded classifier. teacher_init: a checkpoint for a teacher that is given by name, official ones included.
    cnn_teacher: a second one (the paper's is "regnety_160") whose decisions a distillation token learns; the student
    is a network that has one then, ``model_args: {distilled: true}``, and evaluates to the mean of both heads.
    token_weight, logit_weight, cnn_weight: of these losses, beside the labels' with weight 1; 0 turns a loss off.
    tau: temperature of the logits. rtsm_lr: learning rate of the reverse modules, a multiple of ``lr``.
    lr falls along a half cosine to ``min_lr``, once an epoch and without warm-up, and stays there for the last
    ``cooldown_epochs``; runs that are measured in steps follow the same curve step by step.
    The other arguments are the ``Classifier``'s.

    Raises UserError for models that are not slimmed, a teacher of another architecture, a distillation token without a
    teacher or the reverse, pictures of another size than the reverse modules', a batch of one and a loss that is not
    finite.
    """

    def __init__(
        self,
        model: str,
        teacher: str,
        model_args: dict[str, Any] | None = None,
        num_classes: int = 1000,
        teacher_init: str | None = None,
        cnn_teacher: str | None = None,
        fused_attn: bool = True,
        optimizer: str = "adamw",
        optimizer_args: dict[str, Any] | None = None,
        lr: float = 4e-4,
        weight_decay: float = 0.05,
        min_lr: float = 1e-5,
        cooldown_epochs: int = 0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        smoothing: float = 0.1,
        token_weight: float = 2.0,
        logit_weight: float = 2.0,
        cnn_weight: float = 1.0,
        tau: float = 1.0,
        rtsm_lr: float = 5.0,
    ):
        super().__init__(
            model=model, model_args=model_args, num_classes=num_classes, fused_attn=fused_attn, optimizer=optimizer,
            optimizer_args=optimizer_args, lr=lr, weight_decay=weight_decay, min_lr=min_lr, mixup=mixup, cutmix=cutmix,
            smoothing=smoothing, tau=tau,
        )  # fmt: skip
        require_trainable(self.model, model, cnn_teacher)
        original = load_teacher(teacher, teacher_init, num_classes)
        start_from(self.model.vit, original, teacher)
        # In lists: neither trained, nor saved, nor averaged.
        self.teacher = [_frozen(sit(original, keep=1.0))]
        self.cnn_teacher = [] if cnn_teacher is None else [_frozen(load_model(cnn_teacher).model)]
        if cnn_teacher is not None:
            self.model.vit.set_distilled_training(True)
        self.rtsm = reverse_modules(self.model) if token_weight else nn.ModuleList()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:  # noqa: D102
        images, target = self.prepared(batch)
        self._check(images)
        losses = self.losses(images, target)
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, sync_dist=True)
        return self.checked(sum(losses.values()))

    def losses(self, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The losses that are not off, each with its weight: "labels", "tokens", "logits", "cnn".

        images: [batch, 3, height, width]. target: distributions over the classes, [batch, classes].
        """
        h = self.hparams
        logits, tokens = self.model.observe(images)
        logits, distilled = logits if isinstance(logits, tuple) else (logits, None)
        found = {"labels": SoftTargetCrossEntropy()(logits.float(), target)}
        if h.token_weight or h.logit_weight:
            with torch.no_grad():
                judged, originals = self.teacher[0].to(images.device).observe(images)
        if h.token_weight:
            recovered = [reverse(x) for reverse, x in zip(self.rtsm, tokens, strict=True)]
            found["tokens"] = h.token_weight * token_loss(recovered, originals)
        if h.logit_weight:
            found["logits"] = h.logit_weight * logit_loss(logits, judged, h.tau)
        if self.cnn_teacher and h.cnn_weight:
            with torch.no_grad():
                decided = self.cnn_teacher[0].to(images.device)(images).argmax(1)
            found["cnn"] = h.cnn_weight * F.cross_entropy(distilled.float(), decided)
        return found

    def configure_optimizers(self) -> dict[str, Any]:  # noqa: D102
        h = self.hparams
        groups = param_groups_weight_decay(
            self.model, h.weight_decay, no_weight_decay_list=self.model.no_weight_decay()
        )
        rates = [h.lr] * len(groups)
        if reverse := list(self.rtsm.parameters()):
            groups.append({"params": reverse, "weight_decay": h.weight_decay})
            rates.append(h.lr * h.rtsm_lr)
        groups = [{**group, "lr": rate} for group, rate in zip(groups, rates, strict=True)]
        optimizer = create_optimizer_v2(
            groups, opt=h.optimizer, lr=h.lr, weight_decay=h.weight_decay, **(h.optimizer_args or {})
        )
        epochs = self.trainer.max_epochs or -1
        unit = "epoch" if epochs > 0 else "step"
        length = epochs - h.cooldown_epochs if epochs > 0 else self.trainer.estimated_stepping_batches
        if length < 1:
            raise UserError(f"cooldown_epochs {h.cooldown_epochs} leave none of {epochs} for the cosine; lower them")
        schedule = LambdaLR(optimizer, [falling(rate, h.min_lr, length) for rate in rates])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": unit}}

    def _check(self, images: Tensor) -> None:
        size, own = tuple(images.shape[-2:]), tuple(self.model.vit.patch_embed.img_size)
        if size != own:
            raise UserError(
                f"the pictures have {size[0]} x {size[1]} pixels, but the reverse modules restore the patches of "
                f"{own[0]} x {own[1]}; train at that size, or build student and teacher with another img_size"
            )


def token_loss(recovered: list[Tensor], originals: list[Tensor]) -> Tensor:
    """Mean squared error of [batch, patches, dim] over all elements, averaged over the blocks."""
    errors = [F.mse_loss(x.float(), y.float()) for x, y in zip(recovered, originals, strict=True)]
    return torch.stack(errors).mean()


def logit_loss(logits: Tensor, judged: Tensor, tau: float) -> Tensor:
    """Divergence of the student's logits [batch, classes] from the teacher's at temperature ``tau``, times tau^2."""
    ours, theirs = ((x.float() / tau).log_softmax(1) for x in (logits, judged))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * tau**2


def falling(lr: float, min_lr: float, length: int) -> Callable[[int], float]:
    """Factor of ``lr`` at each time: a half cosine to ``min_lr`` over ``length``, and flat afterwards."""

    def factor(time: int) -> float:
        left = (1 + math.cos(math.pi * min(time / length, 1.0))) / 2
        return (min_lr + left * (lr - min_lr)) / lr

    return factor


def reverse_modules(model: SiT) -> nn.ModuleList:
    """One module a block: a ``ReverseSlimming`` from the first slimmed block on, nothing before."""
    full = model.vit.patch_embed.num_patches
    counts = model.patch_counts()
    return nn.ModuleList(ReverseSlimming(model.vit.embed_dim, n, full) if n < full else nn.Identity() for n in counts)


def require_trainable(model: nn.Module, name: str, cnn_teacher: str | None) -> None:
    """Raise UserError unless ``model`` can be trained by FRD."""
    if not isinstance(model, SiT):
        raise UserError(f"{name} is not slimmed; train a sit_* model, such as sit_vit with model_args: {{vit: {name}}}")
    if isinstance(model.vit.patch_drop, PatchDropout):
        raise UserError("the teacher's patches must all be met by the student's; leave out patch_drop_rate")
    distilled = isinstance(model.vit, VisionTransformerDistilled)
    if cnn_teacher is not None and not distilled:
        raise UserError(f"{name} has no distillation token for {cnn_teacher} to teach; add model_args distilled: true")
    if cnn_teacher is None and distilled:
        raise UserError(f"nobody teaches the distillation token of {name}; name a cnn_teacher, or leave the token out")


def load_teacher(name: str, init: str | None, num_classes: int) -> VisionTransformer:
    """The teacher by name or file, with the weights of the checkpoint ``init`` where there is one.

    Raises UserError for names and files that do not exist or do not fit, and for networks that are slimmed themselves.
    """
    teacher = load_model(name).model if init is None else create(name, num_classes, {})
    if not isinstance(teacher, VisionTransformer):
        raise UserError(f"the teacher {name} is a {type(teacher).__name__}; it must be the plain ViT that is slimmed")
    if init is not None:
        try:
            state = load_state_dict(init, device="cpu", weights_only=True)
        except Exception as error:  # a missing file, or one of a dozen ways in which it is none
            raise UserError(f"{init} is not a readable checkpoint ({type(error).__name__})") from None
        convert = getattr(teacher, "checkpoint_filter_fn", None)
        load_matching(teacher, convert(state, teacher) if convert else state, init)
    return teacher


def start_from(student: VisionTransformer, teacher: VisionTransformer, name: str) -> None:
    """Copy the weights of the teacher ``name``; a distillation token that only the student has stays as it is.

    Raises UserError unless the networks are the same but for that token.
    """

    def design(vit: VisionTransformer) -> tuple[object, ...]:  # what the names and shapes of the weights do not tell
        return vit.blocks[0].attn.num_heads, str(vit.blocks[0].ls1), vit.global_pool

    state, own = dict(teacher.state_dict()), student.state_dict()
    new = ("dist_token", "head_dist.weight", "head_dist.bias")
    table = state.get("pos_embed")
    if "dist_token" in own and "dist_token" not in state and table is not None:
        state |= {key: own[key] for key in new}
        state["pos_embed"] = torch.cat([table[:, :1], own["pos_embed"][:, 1:2], table[:, 1:]], 1)
    load_matching(student, state, f"the teacher {name}")
    if design(student) != design(teacher):
        raise UserError(
            f"the teacher {name} is another network than the student: heads, residuals and pooling are "
            f"{design(teacher)} against {design(student)}"
        )


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
