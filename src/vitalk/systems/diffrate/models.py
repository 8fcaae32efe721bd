"""DiffRate on the networks that schedules were published for, and on any other, by names that timm knows."""

from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import register_model

from vitalk.errors import UserError

from .caformer import DiffRateCAFormer
from .networks import DiffRateTrunk, diffrate
from .schedule import Schedule

Given = Schedule | dict[str, Any] | str | float
Network = DiffRateTrunk | DiffRateCAFormer
MAE = "https://dl.fbaipublicfiles.com/mae/finetune/mae_finetuned_vit_{}.pth"


@register_model
def diffrate_deit_tiny(pretrained: bool = False, schedule: Given = 1.0, **kwargs: Any) -> Network:
    """DeiT-Ti, 1.3 GMACs; published schedules: 0.6, 0.7, 0.8, 0.9, 1.0. Arguments as in ``diffrate_timm``."""
    return build("deit_tiny_patch16_224", "deit_tiny", schedule, pretrained, **kwargs)


@register_model
def diffrate_deit_small(pretrained: bool = False, schedule: Given = 2.9, **kwargs: Any) -> Network:
    """DeiT-S, 4.6 GMACs; published schedules: 2.3, 2.5, 2.7, 2.9 (79.54 % on ImageNet off the shelf), 3.1."""
    return build("deit_small_patch16_224", "deit_small", schedule, pretrained, **kwargs)


@register_model
def diffrate_deit_base(pretrained: bool = False, schedule: Given = 11.5, **kwargs: Any) -> Network:
    """DeiT-B, 17.6 GMACs; published schedules: 8.7, 10.0, 10.4, 11.5 (81.50 %), 12.5."""
    return build("deit_base_patch16_224", "deit_base", schedule, pretrained, **kwargs)


@register_model
def diffrate_vit_base_mae(pretrained: bool = False, schedule: Given = 11.5, **kwargs: Any) -> Network:
    """ViT-B fine-tuned from MAE, mean-pooled, 17.6 GMACs; published schedules: 8.7, 10.0, 10.4, 11.5 (82.86 %)."""
    return build("vit_base_patch16_224", "vit_base_mae", schedule, pretrained, **_mae("base"), **kwargs)


@register_model
def diffrate_vit_large_mae(pretrained: bool = False, schedule: Given = 42.3, **kwargs: Any) -> Network:
    """ViT-L fine-tuned from MAE, 61.6 GMACs; published schedules: 31.0, 34.7, 38.5, 42.3 (85.66 %), 46.1."""
    return build("vit_large_patch16_224", "vit_large_mae", schedule, pretrained, **_mae("large"), **kwargs)


@register_model
def diffrate_vit_huge_mae(pretrained: bool = False, schedule: Given = 103.4, **kwargs: Any) -> Network:
    """ViT-H/14 fine-tuned from MAE, 167 GMACs; published schedules: 83.7, 93.2, 103.4 (86.66 %), 124.5."""
    return build("vit_huge_patch14_224", "vit_huge_mae", schedule, pretrained, **_mae("huge"), **kwargs)


@register_model
def diffrate_caformer_s36(pretrained: bool = False, schedule: Given = 5.6, **kwargs: Any) -> Network:
    """CAFormer-S36, 8.0 GMACs; published schedules: 5.2, 5.6 (83.91 %), 6.0."""
    return build("caformer_s36", "caformer_s36", schedule, pretrained, **kwargs)


@register_model
def diffrate_timm(
    pretrained: bool = False, base: str = "deit_small_patch16_224", schedule: Given | None = None, **kwargs: Any
) -> Network:
    """timm's model ``base`` under a schedule.

    schedule: the path of a schedule's file, its fields, a ``Schedule``, or for the models above the GMACs that one
    was published for. ``pretrained`` loads the weights of ``base``, which work off the shelf. kwargs: timm's own.
    Raises UserError as ``diffrate`` does, and for feature extraction: what is left no longer lies on the grid.
    """
    if schedule is None:
        raise UserError("diffrate_timm needs a schedule: the path of one that a search found, or its fields")
    return build(base, None, schedule, pretrained, **kwargs)


def build(base: str, name: str | None, schedule: Given, pretrained: bool, **kwargs: Any) -> Network:
    """timm's model ``base`` under a schedule; name: of the published schedules that belong to it."""
    if kwargs.pop("features_only", False):
        raise UserError(f"DiffRate has no feature maps, its tokens leave the picture's grid; use the plain {base}")
    if kwargs.get("pretrained_cfg_overlay") is None:
        kwargs.pop("pretrained_cfg_overlay", None)
    overlay = {**kwargs.pop("origin", {}), **kwargs.pop("pretrained_cfg_overlay", {})}
    model = timm.create_model(base, pretrained=pretrained, pretrained_cfg_overlay=overlay or None, **kwargs)
    return diffrate(model, schedule, name)


def _mae(size: str) -> dict[str, Any]:
    """What timm is to know of a ViT that was fine-tuned from MAE; its own weights of these names are others."""
    origin = {"url": MAE.format(size), "hf_hub_id": None, "crop_pct": 0.875}
    origin |= {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    return {"global_pool": "avg", "origin": origin}
