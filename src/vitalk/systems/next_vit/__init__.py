"""Next-ViT: convolution blocks all over, a transformer block now and then, and nothing that cannot be folded away.

Li et al., "Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic Industrial Scenarios",
2022, arXiv 2207.05501.

Grouped convolutions mix within heads of 32 channels; at the end of a group of blocks, attention with pooled keys and
values makes three quarters of the channels and a convolution the rest. Norms are batch norms in front of linear maps,
so that at inference there are none. The networks are timm's ``nextvit_small``, ``nextvit_base`` and ``nextvit_large``;
this adds the official checkpoints, the fused form, the pyramid for dense tasks, and networks of other designs.

    vitalk train next-vit --data PATH

    >>> import timm, vitalk
    >>> from vitalk.systems.next_vit import FeaturePyramid, from_official, fuse
    >>> model = from_official("nextvit_small_in1k_224.pth")
    >>> deployed = fuse(model)  # the same logits, no batch norms; for export_onnx, or as it is
    >>> maps = FeaturePyramid(timm.create_model("nextvit_small", pretrained=True))(images)  # strides 4, 8, 16, 32

    >>> small = timm.create_model("next_vit_cifar")  # pictures of 32 pixels; sizes ours
    >>> ablated = timm.create_model("next_vit", pattern="CCCT", mix_block_ratio=1.0)

``next_vit`` is ``nextvit_small``, key by key, with the design open: the pattern of blocks, the attention's share of the
channels (also 0 and 1), widths, stem strides. It reads official checkpoints wherever vitalk takes one (``init``).

Keys and values are means of sr^2 tokens that follow each other in raster order, across the ends of rows; the weights
want it so, and at other picture sizes other tokens come together. What is left over at the end would be no part of
them: timm and the official code drop it in silence, ``next_vit``, ``next_vit_cifar`` and ``FeaturePyramid`` refuse
such sizes (``check_size`` tells for timm's own); multiples of 32 pixels always fit. There are no position embeddings.

Differences: ``fuse`` gives a new model and folds the norms behind convolutions and the last one too, where the
official ``merge_bn`` changes the model and leaves these to the runtime; ONNX files are the same model fused or not,
where the official export skips norms that nobody merged. The fine-tuning for 384 pixels is the preset ``finetune``.
The large-scale pre-training (SSLD on 6 M more pictures) is not public; timm has its weights (``*.bd_ssld_6m_in1k``).
"""

from .checkpoint import checkpoint_filter_fn, from_official
from .fuse import fuse
from .model import AttentionBlock, NextViT, check_size, next_vit, next_vit_cifar
from .pyramid import FeaturePyramid

__all__ = [
    "AttentionBlock",
    "FeaturePyramid",
    "NextViT",
    "check_size",
    "checkpoint_filter_fn",
    "from_official",
    "fuse",
    "next_vit",
    "next_vit_cifar",
]
