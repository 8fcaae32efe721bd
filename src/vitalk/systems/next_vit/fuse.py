"""The deployment form of Next-ViT: every batch norm folded into a linear map next to it (arXiv 2207.05501, 3.3)."""

import torch
from timm.models import nextvit
from timm.utils import reparameterize_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vitalk.errors import UserError

from .model import AttentionBlock

BLOCKS = (nextvit.NextConvBlock, nextvit.NextTransformerBlock, AttentionBlock)
FOLLOWED = {nextvit.ConvNormAct: "conv", nextvit.PatchEmbed: "conv", nextvit.ConvAttention: "group_conv3x3"}


@torch.no_grad()
def fuse(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference that gives the same outputs without batch norms; the model stays as it is.

    A norm before a 1 x 1 convolution or linear layer is folded into it (W diag(g/s), b + W (beta - g mu / s)); into
    keys and values of pooled tokens two at once, since average pooling commutes with an affine map of channels. A
    norm behind a convolution is folded into that. The last norm goes through the average pooling into the head:
    ``forward_features`` of the copy is what was normalised before. It stays where there is no linear head or another
    pooling, as do the extra norms of a ``FeaturePyramid``, whose outputs are both handed out and read by the next
    stage. Parameters of the copy take no gradients: without norms it is no network to train.

    model: timm's Next-ViT or ours, a ``FeaturePyramid`` or timm's ``features_only`` form; a fused one comes back as
    a copy. Raises UserError for a model in training mode, whose norms are not those of inference, and for others.
    """
    if any(module.training for module in model.modules()):
        raise UserError("a model in training mode cannot be fused; call its eval() first")
    if not any(isinstance(module, BLOCKS) for module in model.modules()):
        raise UserError(f"{type(model).__name__} is no Next-ViT; create one as nextvit_* or next_vit_*")
    model = reparameterize_model(model)
    for module in list(model.modules()):
        if (name := FOLLOWED.get(type(module))) and isinstance(module.norm, _BatchNorm):
            setattr(module, name, fuse_conv_bn_eval(getattr(module, name), module.norm))
            module.norm = nn.Identity()
        elif isinstance(module, nextvit.NextViT) and isinstance(module.norm, _BatchNorm) and _pools_linearly(module):
            nextvit.merge_pre_bn(module.head.fc, module.norm)
            module.norm = nn.Identity()
    return model.eval().requires_grad_(False)


def _pools_linearly(model: nextvit.NextViT) -> bool:
    return isinstance(model.head.fc, nn.Linear) and model.head.global_pool.pool_type == "avg"
