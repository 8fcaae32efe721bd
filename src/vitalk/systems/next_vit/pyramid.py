"""Next-ViT as a backbone for detection and segmentation."""

from collections.abc import Mapping
from typing import Any

from timm.models import nextvit
from torch import Tensor, nn

from .checkpoint import checkpoint_filter_fn
from .model import check_size


class FeaturePyramid(nn.Module):
    """The maps of the four stages, at strides 4, 8, 16 and 32 with 96, 256, 512 and 1024 channels.

    backbone: timm's Next-ViT or ours; it is taken over and loses its head (and with ``extra_norm=False`` its norm).
    extra_norm: batch norms behind the first three stages and the backbone's own behind the last, as in the official
    segmenters. The next stage reads the normalised map. Without them the maps are raw, as in the official detectors,
    and those that timm's ``features_only=True`` gives.

    ``channels`` and ``reductions`` of the maps are there for the neck. ``timm.utils.freeze_batch_norm_2d`` gives the
    detectors' frozen norms. Raises UserError in the forward pass for sizes that lose tokens (``check_size``).
    """

    def __init__(self, backbone: nextvit.NextViT, extra_norm: bool = True) -> None:
        super().__init__()
        backbone.prune_intermediate_layers(len(backbone.stages), prune_norm=not extra_norm)
        self.backbone = backbone
        self.channels = [info["num_chs"] for info in backbone.feature_info]
        self.reductions = [info["reduction"] for info in backbone.feature_info]
        like = next(backbone.parameters())
        self.extra_norms = nn.ModuleList(
            nn.BatchNorm2d(width, device=like.device, dtype=like.dtype) if extra_norm else nn.Identity()
            for width in self.channels[:-1]
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """images [batch, channels, height, width] -> a map [batch, width, height / stride, ...] a stage."""
        check_size(self.backbone, *images.shape[-2:])
        x, maps = self.backbone.stem(images), []
        for stage, norm in zip(self.backbone.stages, [*self.extra_norms, self.backbone.norm], strict=True):
            x = norm(stage(x))
            maps.append(x)
        return maps

    @staticmethod
    def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: "FeaturePyramid") -> dict[str, Tensor]:
        """An official checkpoint as a state dict of ``model``, whatever it was trained for; ours pass through.

        Heads are dropped, and the fourth extra norm, which the official network has but does not use. Extra norms that
        a classifier lacks stay the model's own.
        """
        if any(key.startswith("backbone.stages.") for key in state_dict):
            return dict(state_dict)
        own = model.state_dict()
        state = {key: value for key, value in own.items() if key.startswith("extra_norms.")}
        for key, value in checkpoint_filter_fn(state_dict, model.backbone).items():
            if key.startswith("extra_norm_list."):
                key = key.replace("extra_norm_list.", "extra_norms.")
                state |= {key: value} if key in own else {}
            elif not key.startswith("head.") and (f"backbone.{key}" in own or not key.startswith("norm.")):
                state[f"backbone.{key}"] = value
        return state
