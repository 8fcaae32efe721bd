"""ViR: vision networks that retain instead of attending: trained in parallel, run as a recurrence.

Hatamizadeh et al., "ViR: Towards Efficient Vision Retention Backbones" (first "Vision Retention Networks"), 2023-24,
arXiv 2310.19731.

A ViT whose layers give up the softmax: each patch looks back at those before it with weights that decay by a fixed
factor a head. Such a layer has three forms that give the same outputs: parallel, whose memory grows with the square of
the patches, recurrent, with one small matrix a head for memory, and chunkwise between the two. The class token stands
at the end, where it has seen everything. Version 2 lets the weights decay by rows and columns (``decay="2d"``) and adds
a hybrid with convolutions (``hvir_*``).

    vitalk train vir --data PATH

    >>> import timm, vitalk
    >>> model = timm.create_model("vir_small_patch16_224", num_classes=10).eval()
    >>> model(images)
    >>> model(images, mode="chunkwise", chunk_size=64)

    >>> model.set_input_size(4096)
    >>> model.classify_stream(model.embed_strips(strips))  # strips of one large picture, in constant memory
    >>> states = model.start()
    >>> model.step(tokens, states)  # one token or many; the states go on

    >>> from vitalk.systems.vir import checkpoint_filter_fn
    >>> released = timm.create_model("vir_small_patch16_224", mode="release_softmax")
    >>> released.load_state_dict(checkpoint_filter_fn(torch.load("checkpoint.pth.tar"), released))

Sizes: ``vir_tiny_patch16_224`` (of a reimplementation), ``vir_small_patch16_224``, ``vir_base_patch16_224``,
``vir_large_patch16_224`` and ``vir_large_patch14_224``; ``hvir_tiny``, ``hvir_small`` and ``hvir_base``, whose sizes
and details are ours, as the paper's could not be confirmed. No weights are public, and no accuracy is quoted here.

The authors' release (anom63931/ViR) applies a softmax in what it calls parallel, where masked products count as 0 and
not as -inf: every patch sees all later ones, and the other two forms, which have no softmax, give something else. Here
``parallel`` has no softmax and agrees with them; ``mode="release_softmax"`` is the release's, for its weights alone.

Differences: all forms end in logits (the release's recurrent and chunkwise end before the head); ``avg`` averages all
patches (the release's leaves out the first); pictures of any size and patches of any size count their tokens rightly;
states are float32 under mixed precision. Designs that are ours where the papers are silent: where the class token
stands on the grid if it comes first, how rows make up a chunk, and the streams. Models of this kind depend on where
patches stand in the sequence, so that token reduction (``Trunk``) refuses them.
"""

from .checkpoint import checkpoint_filter_fn
from .hybrid import HybridRetention
from .layers import Mixing, Retention, RetentionBlock
from .model import VisionRetention
from .variants import (
    hvir_base,
    hvir_small,
    hvir_tiny,
    vir_base_patch16_224,
    vir_large_patch14_224,
    vir_large_patch16_224,
    vir_small_patch16_224,
    vir_tiny_patch16_224,
)

__all__ = [
    "HybridRetention",
    "Mixing",
    "Retention",
    "RetentionBlock",
    "VisionRetention",
    "checkpoint_filter_fn",
    "hvir_base",
    "hvir_small",
    "hvir_tiny",
    "vir_base_patch16_224",
    "vir_large_patch14_224",
    "vir_large_patch16_224",
    "vir_small_patch16_224",
    "vir_tiny_patch16_224",
]
