"""MCTF: fuse tokens that are alike, uninformative and small, with the attention map one step early.

Lee, Choi and Kim, "Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision Transformers",
CVPR 2024, arXiv 2403.10030.

Before the attention of a block its ``r`` most attracted pairs of tokens are fused: those that are similar, receive
little attention and hold few patches. The attention map that says so is the block's own, of the tokens before they are
fused, and then serves the fused ones as well, so that it is computed once. It adds no parameters, so any timm ViT works
off the shelf, with a class token or without. Training makes the network agree with itself under a weaker reduction.

    vitalk train mctf --preset paper --data PATH
    vitalk reproduce mctf

    >>> from vitalk.systems.mctf import mctf, with_r
    >>> fast = mctf(timm.create_model("deit_small_patch16_224"), r=16)
    >>> fast = mctf(timm.create_model("t2t_vit_14"), r=0.35, blocks=(4, 7, 10))
    >>> fast = timm.create_model("mctf_fast_deit_small", pretrained=True)
    >>> with_r(fast, 0.2)(images)  # the same weights, fewer tokens fused

The state dict is the plain model's, so official MCTF and DeiT checkpoints load (``Trunk.checkpoint_filter_fn``).

Which is faster: the published setting (``mode="ahead"``, 16 tokens in 11 blocks) never fuses the map itself but gives
its columns the values of the fused tokens, and costs less than ``"precise"`` at every batch size, since that one needs
the same map for its scores and attention anew. Fusing more in fewer blocks (``mctf_fast_*``) is the faster of the two
at batch 1, although it multiplies more: there the many small operations of each fusion count.

Differences from the release: scores are scaled freely where no order changes; prefix tokens beside the class token are
protected (the release protects a patch instead); ten tokens are left for shares too; sizes, ``r`` and sources belong
to the pass and not to the model, so passes may run at a time. The LV-ViT variant is not built.
"""

from .method import FuseTokens, mctf, with_r
from .models import (
    mctf_deit_base,
    mctf_deit_small,
    mctf_deit_tiny,
    mctf_fast_deit_base,
    mctf_fast_deit_small,
    mctf_fast_deit_tiny,
)
from .training import ConsistentClassifier

__all__ = [
    "ConsistentClassifier",
    "FuseTokens",
    "mctf",
    "mctf_deit_base",
    "mctf_deit_small",
    "mctf_deit_tiny",
    "mctf_fast_deit_base",
    "mctf_fast_deit_small",
    "mctf_fast_deit_tiny",
    "with_r",
]
