"""T2T-ViT: tokens that are woven from overlapping windows, step by step, instead of cut out as patches.

Yuan et al., "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet", ICCV 2021,
arXiv 2101.11986.

A picture is cut into overlapping windows of 7 pixels, which attend to each other in one narrow layer, are laid out
as a map again and cut anew, twice, until 16 x 16 pixels have become one token. A deep and narrow ViT follows, which
is timm's: everything that takes a timm ViT (token reduction, quantization, export) takes these models.

    vitalk train t2t-vit --data PATH
    vitalk compress t2t_vit_14 --tokens mctf --data PATH

    >>> import timm, vitalk
    >>> model = timm.create_model("t2t_vit_14", num_classes=10)
    >>> small = timm.create_model("t2t_vit_7", img_size=32, splits=[(3, 2, 1), (3, 2, 1)], num_classes=10)

    >>> from vitalk.systems.t2t_vit import checkpoint_filter_fn
    >>> released = timm.create_model("t2t_vit_14", qk_scale=384**-0.5)
    >>> released.load_state_dict(checkpoint_filter_fn(torch.load("81.5_T2T_ViT_14.pth.tar"), released))

Sizes: ``t2t_vit_7``, ``_10``, ``_12``, ``_14``, ``_14_384``, ``_19`` and ``_24`` with linear (Performer) token layers,
``t2t_vit_t_14``, ``_t_19`` and ``_t_24`` with softmax ones, ``t2t_vit_c_14`` with convolutions; of the paper's
architecture study ``t2t_vit_14_wide``, ``t2t_vit_14_resnext``, ``t2t_vit_14_se``, ``t2t_vit_16_ghost`` and
``t2t_vit_dense``.

The released checkpoints were trained with the attention scale embed_dim^-0.5, not head_dim^-0.5: ``pretrained=True``
sets it, and whoever loads such a file by hand passes ``qk_scale``. Their attention layers keep half as many random
features as dimensions, which is not an estimate of softmax attention but a softer one (``PositiveFeatures``); the
random matrix is part of the weights. Where all features of a token underflow, its attention is zero, as in the
official code.

Differences: pictures that are not square or do not divide are refused instead of silently misread, other strides
(``splits``) fit small pictures, and the random features stay in float32 under mixed precision, where the official
code can run into NaN.
"""

from .ablation import T2TViTDense, T2TViTGhost, T2TViTSE
from .checkpoint import checkpoint_filter_fn
from .model import T2TViT
from .tokens import TokenLayer, TokensToToken
from .variants import (
    t2t_vit_7,
    t2t_vit_10,
    t2t_vit_12,
    t2t_vit_14,
    t2t_vit_14_384,
    t2t_vit_14_resnext,
    t2t_vit_14_se,
    t2t_vit_14_wide,
    t2t_vit_16_ghost,
    t2t_vit_19,
    t2t_vit_24,
    t2t_vit_c_14,
    t2t_vit_dense,
    t2t_vit_t_14,
    t2t_vit_t_19,
    t2t_vit_t_24,
)

__all__ = [
    "T2TViT",
    "T2TViTDense",
    "T2TViTGhost",
    "T2TViTSE",
    "TokenLayer",
    "TokensToToken",
    "checkpoint_filter_fn",
    "t2t_vit_7",
    "t2t_vit_10",
    "t2t_vit_12",
    "t2t_vit_14",
    "t2t_vit_14_384",
    "t2t_vit_14_resnext",
    "t2t_vit_14_se",
    "t2t_vit_14_wide",
    "t2t_vit_16_ghost",
    "t2t_vit_19",
    "t2t_vit_24",
    "t2t_vit_c_14",
    "t2t_vit_dense",
    "t2t_vit_t_14",
    "t2t_vit_t_19",
    "t2t_vit_t_24",
]
