"""DualToken-ViT: local information by convolutions, global information by a grid of tokens that keep their places.

Chu et al., "DualToken-ViT: Position-aware Efficient Vision Transformer with Dual Token Fusion", SDM 2024,
arXiv 2309.12424.

Two sets of tokens run through three stages: the map of image tokens at strides 8, 16 and 32, and 7 x 7 global tokens,
one for each cell of the picture. A block looks around by a ConvNeXt block (``ConvEncoder``), pools what it found step
by step to 7 x 7 (``Downsample``), attends there and mixes the result with the global tokens (``PositionTokens``),
hands these back to all image tokens by cross attention (``CrossAttention``), adds both up, and ends with an MLP behind
gates of channels and tokens (``FeedForward``). Since every attention has 49 tokens on one side, the cost is linear in
the pixels.

    vitalk train dualtoken-vit --data PATH
    vitalk reproduce dualtoken-vit

    >>> import timm, vitalk
    >>> model = timm.create_model("dualtoken_vit_small_mix", num_classes=10)
    >>> maps = timm.create_model("dualtoken_vit_small_mix", features_only=True)  # strides 8, 16 and 32
    >>> small = timm.create_model("dualtoken_vit_cifar", num_classes=10)  # 32 pixels, 4 x 4 global tokens

Sizes: ``dualtoken_vit_tiny_mix``, ``_small_mix`` and ``_small``, where "mix" stands for a block of MLP-Mixer on the
global tokens in the place of an MLP, and ``dualtoken_vit_cifar``, which is ours.

Ablation: ``local="window"`` is attention in windows of 7 x 7 in the place of the convolution, ``downsample="onestep"``
a single pooling, ``tokens="normal"`` eight tokens without a place as in LightViT, ``tokens="none"`` no global branch,
``grid`` and ``token_grid`` other numbers of global tokens, ``alpha`` and ``learn_alpha`` the weight of the picture in
them, ``global_ffn`` whether they go through the feed-forward.

What is ours. Neither code nor weights have been released, so there is nothing to load and nothing to agree with. Stem,
patch merging, gates and head are those of LightViT (arXiv 2207.05557), on which the paper builds; that the head is the
same is an assumption. Of the sizes, the costs are published and widths and depths are not known to us. Starting from
LightViT-T (64, 128, 256 channels, 2, 6, 6 blocks, MLP ratios 8, 4, 4, heads of 32), which with all parts would be too
large, they are chosen to meet the costs, counted in multiply-accumulates at 224 pixels:

    size         channels       blocks     counted             published
    tiny_mix     32, 96, 192    2, 6, 3     6.4 M, 0.50 G      0.5 G, 75.4 % top-1
    small_mix    64, 128, 256   2, 6, 3    10.4 M, 0.98 G      1.0 G, 79.4 %
    small        64, 128, 256   2, 6, 3    10.9 M, 0.99 G      slightly more, 79.5 %

(Published parameters are not confirmed; about 6 M and 11 M.)

Our readings of what the paper leaves open: a 7 x 7 kernel and four-fold expansion in the conv encoder; 2 x 2 averages
with a 3 x 3 convolution, batch norm and GELU between them as the steps; 0.5 as the weight of the picture;
hidden units twice the channels in the MLP on the global tokens, as many as channels in the mixing one, and half as many
where that mixes tokens; layer norms on both sides of the broadcast; global tokens that skip the feed-forward.

Pictures of all sizes are read whose sides are multiples of 32 (8 for ``dualtoken_vit_cifar``), others are refused; a
map that does not divide is pooled to the grid adaptively, and the global tokens stay as they are. Quantizers find the
products of the self-attention, not those of the broadcast.
"""

from .blocks import DualTokenBlock
from .layers import BiDimAttention, ConvEncoder, CrossAttention, FeedForward, MergePatch, Stem, WindowEncoder
from .model import DualTokenViT
from .tokens import Downsample, NormalTokens, PositionTokens, token_mlp
from .variants import dualtoken_vit_cifar, dualtoken_vit_small, dualtoken_vit_small_mix, dualtoken_vit_tiny_mix

__all__ = [
    "BiDimAttention",
    "ConvEncoder",
    "CrossAttention",
    "Downsample",
    "DualTokenBlock",
    "DualTokenViT",
    "FeedForward",
    "MergePatch",
    "NormalTokens",
    "PositionTokens",
    "Stem",
    "WindowEncoder",
    "dualtoken_vit_cifar",
    "dualtoken_vit_small",
    "dualtoken_vit_small_mix",
    "dualtoken_vit_tiny_mix",
    "token_mlp",
]
