"""GMM-ViT: attention scores multiplied by a learnable mixture of Gaussians of the distance between patches.

Li and Zhang, "Toward a Deeper Understanding: RetNet Viewed through Convolution", Pattern Recognition 2024,
arXiv 2309.05375.

RetNet's decay made two-dimensional, symmetric and learnable: each head has five Gaussians of its own, 1,080 numbers
for a ViT of 2.7 million, trained from scratch on small pictures. ELM is the unconstrained mask, a number a pair of
patches. Both go into any timm model with plain, window or talking-heads attention:

    >>> import timm, vitalk
    >>> from vitalk.systems.gmm_vit import gmm_attention
    >>> deit = gmm_attention(timm.create_model("deit_tiny_patch16_224"))  # the class token stays unmasked
    >>> swin = gmm_attention(timm.create_model("swin_tiny_patch4_window7_224"), mask="elementwise")

    vitalk train gmm-vit --data PATH

    >>> model = timm.create_model("gmm_vit", num_classes=10)
    >>> plain = timm.create_model("gmm_vit", num_classes=10, mask="none")  # class token, as in the paper
    >>> fair = timm.create_model("gmm_vit", num_classes=10, mask="none", class_token=False)

Sizes: ``gmm_vit``, ``_d6``, ``_d15``, ``_d30``, ``_d30_108``, ``_d30_192``, ``_d60``, ``_base``, ``_heat``; the hosts
``gmm_swin``, ``gmm_pit``, ``gmm_cait``, ``gmm_cait_tiny`` and ``gmm_t2t``. Each takes ``mask`` ("gaussian",
"elementwise", "none"), ``kernels`` and ``img_size``, square or not, and its ``checkpoint_filter_fn`` loads what the
authors' code saves.

Worth knowing: a score masked to 0 has the weight e^0, not none. The masks start nearly flat and of random sign, so
that some heads invert their scores at first and results depend on the seed. Weight decay pulls the Gaussians narrow.
No fused attention kernel takes a factor, so that masked scores are multiplied out. A mask needs every patch in its
place: a ``Trunk`` carries a masked model, but its tokens cannot be reduced.

Differences: masks are computed from the distance itself. The released code goes through exp(-D), which underflows in
float32 beyond D = 103, and has hard zeros there on grids of more than 8 x 8 patches (T2T, PiT, ``gmm_vit_heat``).
The class token and the norm that its T2T host never uses are left out; the doubled skip of that host is kept.
Grids need not be square, and pictures that patches do not tile are refused.
"""

from .attention import TalkingHeads, gmm_attention
from .checkpoint import cait_filter_fn, pit_filter_fn, swin_filter_fn, t2t_filter_fn, vit_filter_fn
from .hosts import GMMCait, GMMPiT, GMMSwin
from .mask import ElementwiseMask, GaussianMixtureMask, MaskedProduct
from .model import GMMViT
from .t2t import GMMT2T
from .variants import (
    gmm_cait,
    gmm_cait_tiny,
    gmm_pit,
    gmm_swin,
    gmm_t2t,
    gmm_vit,
    gmm_vit_base,
    gmm_vit_d6,
    gmm_vit_d15,
    gmm_vit_d30,
    gmm_vit_d30_108,
    gmm_vit_d30_192,
    gmm_vit_d60,
    gmm_vit_heat,
)

__all__ = [
    "GMMT2T",
    "ElementwiseMask",
    "GMMCait",
    "GMMPiT",
    "GMMSwin",
    "GMMViT",
    "GaussianMixtureMask",
    "MaskedProduct",
    "TalkingHeads",
    "cait_filter_fn",
    "gmm_attention",
    "gmm_cait",
    "gmm_cait_tiny",
    "gmm_pit",
    "gmm_swin",
    "gmm_t2t",
    "gmm_vit",
    "gmm_vit_base",
    "gmm_vit_d6",
    "gmm_vit_d15",
    "gmm_vit_d30",
    "gmm_vit_d30_108",
    "gmm_vit_d30_192",
    "gmm_vit_d60",
    "gmm_vit_heat",
    "pit_filter_fn",
    "swin_filter_fn",
    "t2t_filter_fn",
    "vit_filter_fn",
]
