"""A VOLO for pictures of 32 pixels, and what the paper compares outlook attention with, out of timm's parts."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from timm.layers import to_2tuple
from timm.layers.halo_attn import HaloAttn
from timm.models import generate_default_cfgs, register_model
from timm.models.volo import VOLO, OutlookAttention
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.vision.variants import build, default_cfg

from .checkpoint import check_size, checkpoint_filter_fn, set_input_size

Mixer = Literal["outlook", "uniform", "depthwise", "convolution", "local"]
PATCHES = (2, 4)  # with the strides that timm's stem knows


class MiniVOLO(VOLO):
    """VOLO for small pictures: timm's network behind a stem without stride; the sizes are ours.

    layers, embed_dims, num_heads: of the two stages; stage 1 is finer, with ``img_size / patch_size`` tokens a side,
    stage 2 has half as many. ``layers=(0, n)`` is the all-transformer form, which starts on the coarse grid.
    patch_size: 2 or 4 pixels.
    mixer: what mixes the 3 x 3 windows of stage 1 (arXiv 2106.13112, table of ablations): "outlook" attention;
    "uniform", the same with all its weights fixed at 1/9; "depthwise", one kernel a channel between the two
    projections of outlook attention; "convolution", a plain 3 x 3 one; "local" self-attention, every token over its
    3 x 3 neighbours. The paper does not spell the rivals out: their form is ours.
    Further arguments are timm's (drop_path_rate, stem_hidden_dim, use_aux_head, global_pool …).
    Raises UserError for pictures that do not divide into tokens, other patches and unknown mixers.
    """

    checkpoint_filter_fn = staticmethod(checkpoint_filter_fn)
    set_input_size = set_input_size

    def __init__(
        self,
        layers: Sequence[int] = (2, 3),
        img_size: int | tuple[int, int] = 32,
        patch_size: int = 2,
        stem_hidden_dim: int = 32,
        embed_dims: Sequence[int] = (64, 128),
        num_heads: Sequence[int] = (2, 4),
        mixer: Mixer = "outlook",
        **kwargs: Any,
    ) -> None:
        if patch_size not in PATCHES:
            raise UserError(f"patch_size must be 2 or 4 pixels, got {patch_size}")
        if mixer not in get_args(Mixer):
            raise UserError(f"there is no mixer {mixer!r}; choose from {', '.join(get_args(Mixer))}")
        height, width = to_2tuple(img_size)
        # timm's stem halves the picture. Without its stride the network is the one for pictures twice as large.
        super().__init__(
            layers=list(layers),
            img_size=(2 * height, 2 * width),
            patch_size=2 * patch_size,
            stem_hidden_dim=stem_hidden_dim,
            embed_dims=list(embed_dims),
            num_heads=list(num_heads),
            downsamples=(True, False),
            outlook_attention=(True, False),
            **kwargs,
        )
        self.patch_embed.conv[0].stride = (1, 1)
        for info in self.feature_info:
            info["reduction"] //= 2
        check_size(self, height, width)
        for block in self.network[0]:
            like = block.attn.proj.weight
            block.attn = mixed_by(block.attn, embed_dims[0], mixer).to(like)

    def forward_features(self, x: Tensor) -> Tensor:
        """x [batch, channels, height, width] -> class token and patch tokens [batch, 1 + tokens, dim]."""
        check_size(self, *x.shape[-2:])
        return super().forward_features(x)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """timm's, for pictures [batch, channels, height, width] of the right size."""
        check_size(self, *x.shape[-2:])
        return super().forward_intermediates(x, *args, **kwargs)


class WindowMixer(nn.Module):
    """A layer on maps [batch, dim, height, width] in the place of outlook attention, followed by its projection."""

    def __init__(self, layer: nn.Module, dim: int) -> None:
        super().__init__()
        self.layer, self.proj = layer, nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.proj.weight, std=0.02)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, height, width, dim] -> the same shape."""
        return self.proj(self.layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def mixed_by(attn: OutlookAttention, dim: int, mixer: Mixer) -> nn.Module:
    """What takes the place of ``attn`` in an Outlooker; see ``MiniVOLO``."""
    if mixer == "uniform":
        for parameter in attn.attn.parameters():
            nn.init.zeros_(parameter.requires_grad_(False))
    if mixer in ("outlook", "uniform"):
        return attn
    if mixer == "convolution":
        layer: nn.Module = nn.Conv2d(dim, dim, 3, padding=1)
    elif mixer == "depthwise":
        layer = nn.Sequential(
            nn.Conv2d(dim, dim, 1, bias=False), nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        )
    else:  # blocks of one token with a halo of one token around
        layer = HaloAttn(dim, num_heads=attn.num_heads, block_size=1, halo_size=1)
    return WindowMixer(layer, dim)


default_cfgs = generate_default_cfgs(
    {
        "volo_mini_32": default_cfg(
            32,
            10,
            fixed_input_size=True,
            crop_pct=1.0,
            mean=(0.491, 0.482, 0.447),
            std=(0.247, 0.244, 0.262),
            first_conv="patch_embed.conv.0",
            classifier=("head", "aux_head"),
        )
    }
)


@register_model
def volo_mini_32(pretrained: bool = False, **kwargs: Any) -> MiniVOLO:
    """16 x 16 fine and 8 x 8 coarse tokens of a picture of 32 pixels, 2 Outlookers and 3 transformer blocks; ours."""
    return build(MiniVOLO, "volo_mini_32", pretrained, (0, 1), **kwargs)
