"""SiT: slim the patches of a trained ViT softly, and let the ViT itself teach the slimmed one.

Zong et al., "Self-slimmed Vision Transformer", ECCV 2022, arXiv 2111.12624.

The blocks fall into stages, and between two stages a token slimming module (TSM) mixes all patches into fewer: half of
them, three times over, as published. The new modules must be trained. The un-slimmed network is where the student
starts and what it learns from: reverse modules (RTSM) decode the slimmed patches after every block, and what they give
back is compared with the teacher's (``training.SlimmingClassifier``). They live in that module alone; the model never
holds any.

    vitalk train sit --preset cpu
    vitalk train sit --preset teacher --data IMAGENET
    vitalk train sit --preset paper --data IMAGENET --model.init_args.teacher=runs/sit-teacher/model.safetensors
    vitalk export runs/sit-paper/model.safetensors -o sit.onnx
    vitalk compress runs/sit-cpu/model.safetensors --quant repq-vit -o small

    >>> from vitalk.systems.sit import sit
    >>> fast = sit(timm.create_model("deit_small_patch16_224"), keep=0.5, stage_blocks=(7, 2, 2, 1))
    >>> fast = timm.create_model("sit_small")  # LV-ViT-S, slimmed; also sit_tiny, sit_xs, sit_medium, sit_large
    >>> fast = timm.create_model("sit_vit", vit="deit_small_patch16_224", keep=0.5)  # any ViT, by name

``lvvit_tiny``, ``_small``, ``_medium`` and ``_large`` are the plain networks. Official checkpoints of both load through
``checkpoint_filter_fn``, and a slimmed state dict is the plain one with ``reducers.*`` added.

What differs from paper and release. The auxiliary head, which classifies nothing, is dropped, so that parameter counts
are 1000 (C + 1) below the published ones. The evaluation of networks with a distillation token, broken in the release,
is the mean of both heads. Attention is the fused kernel, which sums in full precision by itself, instead of one in
float32 under autocast. ``keep=1`` slims nothing, where the release still mixes. Token sizes, for models that pool by
the mean, stage plans for other depths and stems for small patches are ours. The release has no DeiT variants, and the
paper's stage plans for them are not confirmed. Repeated augmentation is not built; the paper's teachers were trained on
token labels, ours on labels.
"""

from .model import LVViT, LVViTDistilled
from .slimming import ReverseSlimming, SiT, TokenSlimming, sit
from .variants import (
    lvvit_large,
    lvvit_medium,
    lvvit_small,
    lvvit_tiny,
    sit_large,
    sit_medium,
    sit_small,
    sit_tiny,
    sit_vit,
    sit_xs,
)

__all__ = [
    "LVViT",
    "LVViTDistilled",
    "ReverseSlimming",
    "SiT",
    "TokenSlimming",
    "lvvit_large",
    "lvvit_medium",
    "lvvit_small",
    "lvvit_tiny",
    "sit",
    "sit_large",
    "sit_medium",
    "sit_small",
    "sit_tiny",
    "sit_vit",
    "sit_xs",
]
