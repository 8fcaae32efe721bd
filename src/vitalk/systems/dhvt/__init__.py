"""DHVT: a vision transformer with convolutions and head tokens, made to train from scratch on small data.

Lu, Xie, Liu and Zhang, "Bridging the Gap Between Vision Transformers and Convolutional Neural Networks on Small
Datasets", NeurIPS 2022, arXiv 2210.05958.

A ViT of twelve equal blocks and a class token, with three parts replaced. ``SOPE``, the patch embedding, is a row of
overlapping convolutions between two affines. ``DAFF``, the feed-forward, convolves the patches on their grid and
weighs the channels of the class token by what the patches became. ``HeadTokenAttention`` gives each head a token of
its own in every layer, made of the head's slice of the channels, and folds these back into the class token. There is
no table of positions: zero padding tells the tokens where they are, so that pictures of any size are read that the
patch divides, square or not, without interpolating anything.

    vitalk train dhvt --data PATH
    vitalk reproduce dhvt

    >>> import timm, vitalk
    >>> model = timm.create_model("dhvt_tiny_cifar_patch4", num_classes=10)
    >>> baseline = timm.create_model(
    ...     "dhvt_tiny_cifar_patch4", num_classes=10, sope=False, daff=False, head_tokens=False, pos_embed="learn"
    ... )

    >>> from vitalk.systems.dhvt import checkpoint_filter_fn
    >>> from vitalk.vision.checkpoints import load_matching
    >>> load_matching(model, checkpoint_filter_fn(torch.load("checkpoint.pth"), model), "checkpoint.pth")

Sizes: ``dhvt_tiny_cifar_patch4``, ``_small_cifar_patch4``, ``_tiny_cifar_patch2`` and ``_small_cifar_patch2`` for 32
pixels and 100 classes, ``_tiny_domain_patch16`` and ``_small_domain_patch16`` for DomainNet (224 pixels, 345 classes),
``_tiny_imagenet_patch16`` and ``_small_imagenet_patch16`` for ImageNet. No weights have been released.

Ablation: ``sope``, ``daff`` and ``head_tokens`` switch the parts off one by one, ``pos_embed="learn"`` adds the table
of positions; the baseline above is DeiT. What has neither DAFF nor head tokens is a plain token sequence, on which
token reduction runs.

Differences from the official code: the switch to the baseline works (there it fails), grids need not be square, and
batch norm is synchronised over devices by the trainer (``sync_batchnorm``) instead of by the layer. The paper recipe
leaves out repeated augmentation.
"""

from .checkpoint import checkpoint_filter_fn
from .layers import DAFF, SOPE, Affine, GridBlock, HeadTokenAttention
from .model import DHVT, DHVTWithMlp
from .variants import (
    dhvt_small_cifar_patch2,
    dhvt_small_cifar_patch4,
    dhvt_small_domain_patch16,
    dhvt_small_imagenet_patch16,
    dhvt_tiny_cifar_patch2,
    dhvt_tiny_cifar_patch4,
    dhvt_tiny_domain_patch16,
    dhvt_tiny_imagenet_patch16,
)

__all__ = [
    "DAFF",
    "DHVT",
    "SOPE",
    "Affine",
    "DHVTWithMlp",
    "GridBlock",
    "HeadTokenAttention",
    "checkpoint_filter_fn",
    "dhvt_small_cifar_patch2",
    "dhvt_small_cifar_patch4",
    "dhvt_small_domain_patch16",
    "dhvt_small_imagenet_patch16",
    "dhvt_tiny_cifar_patch2",
    "dhvt_tiny_cifar_patch4",
    "dhvt_tiny_domain_patch16",
    "dhvt_tiny_imagenet_patch16",
]
