"""LGViT: pictures that are easy leave a vision transformer early, through local and then through global exit heads.

Xu et al., "LGViT: Dynamic Early Exiting for Accelerating Vision Transformer", ACM MM 2023, arXiv 2308.00255.

Behind some layers stand classifiers: shallow ones see the map of patches through a small convolution block (local
perception heads), deep ones through self-attention among every second or third patch (global aggregation heads). A
picture leaves at the first exit that is sure of it. Heads train in two stages: together with the network, steps for
the end and for all exits taking turns; then alone, distilling the frozen network's last predictions and features.

    vitalk train lgvit --preset cpu
    vitalk train lgvit --preset cpu-distill
    vitalk export runs/lgvit-cpu-distill/model.safetensors -o early.onnx

    >>> from vitalk.systems.lgvit import Rule, lgvit, record, rules, sweep
    >>> model = lgvit(timm.create_model("deit_base_distilled_patch16_224", pretrained=True))  # heads to be trained
    >>> model = lgvit(load_model("vitalk_eye").model, layers=(1, 2), heads=("lph3", "gah2"))
    >>> model = timm.create_model("lgvit_swin_base", num_classes=100)
    >>> model.eval().rule = Rule("confidence", 0.9)      # or entropy, patience, patient_and_confident
    >>> model(images); model.infer(images).layer         # logits; where each picture left
    >>> recorded = record(model, batches)                # one pass, then every threshold:
    >>> points = sweep(recorded, rules("confidence", exits=8, classes=100))

Inference is batched: who leaves is taken out of the batch and later layers run on the rest, each picture as if it
were alone. ``export_onnx(AtExit(model, 3), ...)`` writes the network cut off at an exit, ``EveryExit`` all logits; the
model itself exports as a graph that runs everything and picks, for the same answers without the savings.
Other heads to compare with: ``heads="linear"`` (SDN, DeeBERT, PABEE's exits), ``"vit"`` (ViT-EE), or one kind for all.
Official checkpoints load through ``checkpoint_filter_fn``; timm's plain ones too, which leaves the heads as they are.

Differences from the release, beyond its faults (confidence over the whole batch, features cut off wrongly for ViT,
an unnormalised teacher in stage 2): the teacher of the homogeneous loss is held still (``detach``); on Swin, where the
release distils predictions only, the features of heads of equal width are distilled too; counts, depths and models
without a class token that the paper does not have are served by rules of ours (see ``trunks``, ``heads``).
The paper's speed-up counts layers and takes heads for free; ``sweep`` counts both, and multiply-accumulates too.
"""

from .losses import heterogeneous_loss, homogeneous_loss, prediction_loss, weighted_loss
from .model import AtExit, EveryExit, Left, LGViT, lgvit
from .models import lgvit_cifar, lgvit_deit_base, lgvit_eye, lgvit_swin_base, lgvit_vit_base
from .rules import Rule, rules
from .sweep import plot, record, save, sweep

__all__ = [
    "AtExit",
    "EveryExit",
    "LGViT",
    "Left",
    "Rule",
    "heterogeneous_loss",
    "homogeneous_loss",
    "lgvit",
    "lgvit_cifar",
    "lgvit_deit_base",
    "lgvit_eye",
    "lgvit_swin_base",
    "lgvit_vit_base",
    "plot",
    "prediction_loss",
    "record",
    "rules",
    "save",
    "sweep",
    "weighted_loss",
]
