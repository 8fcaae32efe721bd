"""TiC: self-attention that slides over the picture like a convolution, so that pictures of all sizes fit.

Zhang, Wang, Bian and Xiong, "TiC: Exploring Vision Transformer in Convolution", arXiv 2310.04134.

MSA-Conv lets every position attend to the k x k positions around it, dilated or not. No part of it knows how large
the map is; there is no table of positions and nothing is resized, and the cost grows with the pixels, not with their
square. TiC stacks it in four stages. Two devices widen what a position sees: multi-directional cyclic shift rolls the
map in another direction for each group of heads, inter-pooling attends at half the resolution as well.

    vitalk train tic --data PATH
    vitalk reproduce tic

    >>> import timm, vitalk
    >>> model = timm.create_model("tic_tiny", num_classes=10)
    >>> model(torch.randn(1, 3, 224, 224)).shape, model(torch.randn(1, 3, 183, 97)).shape
    >>> maps = timm.create_model("tic_tiny", features_only=True)(torch.randn(1, 3, 224, 224))
    >>> plain = timm.create_model("tic_tiny_cifar", shift=False, pool=False)
    >>> convolutional = timm.create_model("tic_tiny_cifar", mixer="conv")

The operator by itself is ``msa_conv``, its halves are ``msa_scores`` and ``msa_aggregate``, the windows that they take
``Window``. ``MSAConv`` adds the projections of queries, keys and values, ``MSAConvLayer`` is the official layer:

    >>> from vitalk.systems.tic import MSAConvLayer, checkpoint_filter_fn
    >>> from vitalk.vision.checkpoints import load_matching
    >>> layer = MSAConvLayer(16, 24, kernel_size=3, tail_padding=1)
    >>> load_matching(layer, checkpoint_filter_fn(torch.load("layer.pth"), layer), "layer.pth")

Ours, since the authors have released the layer only and the paper's details are not confirmed: the network with all
its sizes (``tic_tiny``, ``tic_small``, ``tic_tiny_cifar``), the directions and the step of the shift, the form of the
pooling, several heads, depth-wise attention as one head a channel, and the training recipe. No weights exist.

Differences from the official code: it runs without CUDA and needs neither unfolded maps nor a batch that divides; the
convolution behind the attention keeps the size of the map for all kernels (``tail_padding=1`` is theirs, with which a
kernel of 7 costs 4 rows a layer); windows may leave out what lies beyond the border ("masked", as the network does)
instead of attending to zeros there, or go round ("circular").
"""

from .checkpoint import checkpoint_filter_fn
from .layers import MSAConv, MSAConvLayer
from .model import TiC
from .operator import msa_aggregate, msa_conv, msa_scores
from .variants import tic_small, tic_tiny, tic_tiny_cifar
from .window import Window

__all__ = [
    "MSAConv",
    "MSAConvLayer",
    "TiC",
    "Window",
    "checkpoint_filter_fn",
    "msa_aggregate",
    "msa_conv",
    "msa_scores",
    "tic_small",
    "tic_tiny",
    "tic_tiny_cifar",
]
