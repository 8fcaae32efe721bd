"""Next-ViT from timm's blocks, with what timm's constructor fixes as arguments: pattern, mix, widths, stem strides."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from operator import mul
from typing import Any

import torch
from timm.layers import ClassifierHead, ConvMlp, DropPath, calculate_drop_path_rates, make_divisible
from timm.models import generate_default_cfgs, nextvit, register_model
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.vision.variants import build, default_cfg

from .checkpoint import checkpoint_filter_fn

GROUP = 5  # a hybrid stage repeats four convolution blocks and one transformer block
GRAIN = 32  # channels that the attention's share of a transformer block is rounded to
PUBLISHED = ((96, 96), (192, 256), (384, 512), (768, 1024))


class AttentionBlock(nn.Module):
    """A transformer block without its convolutional part, the paper's shrink ratio 1; of timm's own parts.

    Arguments are those of timm's ``NextTransformerBlock``, which cannot be built at that ratio.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        drop_path: float = 0.0,
        stride: int = 1,
        sr_ratio: int = 1,
        head_dim: int = 32,
        attn_drop: float = 0.0,
        drop: float = 0.0,
        act_layer: Any = nn.ReLU,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.patch_embed = nextvit.PatchEmbed(in_chs, out_chs, stride, **dd)
        self.norm1 = nn.BatchNorm2d(out_chs, **dd)
        self.e_mhsa = nextvit.EfficientAttention(
            out_chs, head_dim=head_dim, sr_ratio=sr_ratio, attn_drop=attn_drop, proj_drop=drop, **dd
        )
        self.norm2 = nn.BatchNorm2d(out_chs, **dd)
        self.mlp = ConvMlp(out_chs, 2 * out_chs, act_layer=act_layer, drop=drop, **dd)
        self.drop_path = DropPath(drop_path)
        self.is_fused = False

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Fold both norms, and the one of pooled keys and values, into what follows them (see ``fuse``)."""
        if self.is_fused:
            return
        attn = self.e_mhsa
        pooled = () if attn.norm is None else (attn.norm,)
        nextvit.merge_pre_bn(attn.q, self.norm1)
        nextvit.merge_pre_bn(attn.k, self.norm1, *pooled)
        nextvit.merge_pre_bn(attn.v, self.norm1, *pooled)
        nextvit.merge_pre_bn(self.mlp.fc1, self.norm2)
        attn.norm = nn.Identity() if pooled else None
        self.norm1, self.norm2, self.is_fused = nn.Identity(), nn.Identity(), True

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, in_chs, height, width] -> [batch, out_chs, height / stride, width / stride]."""
        x = self.patch_embed(x)
        tokens = self.e_mhsa(self.norm1(x).flatten(2).transpose(1, 2))
        x = x + self.drop_path(tokens).transpose(1, 2).reshape(x.shape)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class NextViT(nextvit.NextViT):
    """timm's Next-ViT (arXiv 2207.05501) with its design opened; the defaults are Next-ViT-S, key by key timm's.

    pattern: a letter a stage. "C": convolution blocks (NCB) alone; "H": hybrid, after four of them and at the end
    of the stage comes a transformer block (NTB); "T": transformer blocks alone. "CHHH" is the paper's, "CCCT" has
    transformers in the last stage only, "CCCC" none.
    mix_block_ratio: share of a transformer block's channels that attention gets (the paper's shrink ratio r), the
    others are made by the convolutional part; rounded to multiples of 32, but 0 and 1 leave one of the parts out.
    channels: a stage's two widths, of its blocks and of those in a transformer block's place (in "T" of all).
    stem_chs, stem_strides: of the four convolutions before the stages, the last two of one width.
    sr_ratios: a stage's keys and values are means of sr^2 tokens that follow each other in raster order.
    Further arguments are timm's.

    Raises UserError for designs that mean nothing, and in the forward pass for pictures of a size at which tokens
    would be left out of keys and values, which timm and the official code do in silence (see ``check_size``).
    """

    checkpoint_filter_fn = staticmethod(checkpoint_filter_fn)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        stem_chs: Sequence[int] = (64, 32, 64),
        stem_strides: Sequence[int] = (2, 1, 1, 2),
        depths: Sequence[int] = (3, 4, 10, 3),
        strides: Sequence[int] = (1, 2, 2, 2),
        channels: Sequence[Sequence[int]] = PUBLISHED,
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        pattern: str = "CHHH",
        mix_block_ratio: float = 0.75,
        head_dim: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_design(stem_chs, stem_strides, pattern, depths, strides, channels, sr_ratios, mix_block_ratio, head_dim)
        # timm's constructor knows the published widths alone: its network is never filled, its methods serve ours.
        super().__init__(in_chans, num_classes, global_pool, depths=(1, 1, GROUP, 1), device="meta")
        dd = {"device": device, "dtype": dtype}
        act = partial(nn.ReLU, inplace=True)
        widths = [in_chans, *stem_chs, stem_chs[-1]]
        self.stem = nn.Sequential(
            *(
                nextvit.ConvNormAct(before, after, stride=stride, act_layer=act, **dd)
                for (before, after), stride in zip(pairwise(widths), stem_strides, strict=True)
            )
        )
        shared = {"head_dim": head_dim, "drop": proj_drop_rate, "act_layer": act, **dd}
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        attention = {"mix_block_ratio": mix_block_ratio, "attn_drop": attn_drop_rate}
        stages, width = [], widths[-1]
        for letter, pair, stride, sr_ratio, rate in zip(pattern, channels, strides, sr_ratios, rates, strict=True):
            stages.append(_stage(letter, width, pair, rate, stride, {**attention, "sr_ratio": sr_ratio}, shared))
            width = pair[1]
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(width, **dd)
        self.head = ClassifierHead(width, num_classes, global_pool, drop_rate, **dd)
        self.num_features, self.head_hidden_size = width, self.head.num_features
        reductions = accumulate(strides, mul, initial=math.prod(stem_strides))
        next(reductions)
        self.feature_info = [
            {"num_chs": pair[1], "reduction": reduction, "module": f"stages.{i}"}
            for i, (pair, reduction) in enumerate(zip(channels, reductions, strict=True))
        ]
        self._initialize_weights()

    def forward_features(self, x: Tensor) -> Tensor:
        """x [batch, channels, height, width] -> the normalised map of the last stage [batch, dim, height, width]."""
        check_size(self, *x.shape[-2:])
        return super().forward_features(x)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """timm's: the maps of the stages, or the last one and the maps."""
        check_size(self, *x.shape[-2:])
        return super().forward_intermediates(x, *args, **kwargs)


def check_size(model: nn.Module, height: int, width: int) -> None:
    """Raise UserError where tokens of a picture of ``height`` x ``width`` pixels would be no part of keys and values.

    model: any Next-ViT, timm's too. Pooling takes sr^2 consecutive tokens a key and drops the rest at the end. Sides
    that are multiples of 32 never leave any (of 16, for ``next_vit_cifar``).
    """
    remedy, fault = 1, ""
    for i, (stage, info) in enumerate(zip(model.stages, model.feature_info, strict=False)):
        count = -(-height // info["reduction"]) * -(-width // info["reduction"])
        for pooled in {block.e_mhsa.N_ratio for block in stage.blocks if hasattr(block, "e_mhsa")}:
            remedy = math.lcm(remedy, info["reduction"] * math.isqrt(pooled))
            if count % pooled and not fault:
                fault = f"the last {count % pooled} of {count} tokens in stage {i + 1} out of keys, means of {pooled}"
    if fault:
        raise UserError(
            f"a picture of {height} x {width} pixels leaves {fault}; resize or pad both sides to multiples of {remedy}"
        )


def _stage(
    letter: str,
    width: int,
    channels: Sequence[int],
    drop_path: Sequence[float],
    stride: int,
    attention: dict[str, Any],
    shared: dict[str, Any],
) -> nextvit.NextStage:
    """A stage of as many blocks as there are drop path rates; timm's, which by itself builds two kinds of blocks."""
    stage, last = nextvit.NextStage(width, [], []), len(drop_path) - 1
    for i, rate in enumerate(drop_path):
        closing = letter == "T" or i % GROUP == GROUP - 1 or i == last
        out = channels[closing]
        options = {"stride": stride if i == 0 else 1, "drop_path": rate, **shared}
        if closing and letter != "C":
            stage.blocks.append(_transformer_block(width, out, **attention, **options))
        else:
            stage.blocks.append(nextvit.NextConvBlock(width, out, **options))
        width = out
    return stage


def _transformer_block(
    in_chs: int, out_chs: int, mix_block_ratio: float, sr_ratio: int, attn_drop: float, **options: Any
) -> nn.Module:
    if mix_block_ratio == 0:
        return nextvit.NextConvBlock(in_chs, out_chs, mlp_ratio=2.0, **options)
    options |= {"sr_ratio": sr_ratio, "attn_drop": attn_drop}
    if mix_block_ratio == 1:
        return AttentionBlock(in_chs, out_chs, **options)
    return nextvit.NextTransformerBlock(in_chs, out_chs, mix_block_ratio=mix_block_ratio, **options)


def _check_design(
    stem_chs: Sequence[int],
    stem_strides: Sequence[int],
    pattern: str,
    depths: Sequence[int],
    strides: Sequence[int],
    channels: Sequence[Sequence[int]],
    sr_ratios: Sequence[int],
    mix: float,
    head_dim: int,
) -> None:
    if not pattern or set(pattern) - set("CHT"):
        raise UserError(f"there is no pattern {pattern!r}; give a letter C, H or T a stage, as in CHHH")
    lengths = {len(depths), len(strides), len(channels), len(sr_ratios), len(pattern)}
    if len(lengths) > 1 or min(depths) < 1 or not all(_is_pair(pair) for pair in channels):
        raise UserError(
            f"pattern {pattern}, depths {list(depths)}, strides {list(strides)}, channels {list(channels)} and "
            f"sr_ratios {list(sr_ratios)} need an entry a stage, depths of 1 or more, channels as pairs"
        )
    if len(stem_chs) != 3 or len(stem_strides) != 4:
        raise UserError(f"the stem takes three widths and four strides, got {list(stem_chs)} and {list(stem_strides)}")
    if set(strides) - {1, 2}:
        raise UserError(f"stages have stride 1 or 2, got {list(strides)}")
    if not 0 <= mix <= 1:
        raise UserError(f"mix_block_ratio is a share from 0 to 1, got {mix}")
    for letter, pair in zip(pattern, channels, strict=True):
        for width in pair:
            if width % head_dim:
                raise UserError(f"{width} channels are no multiple of head_dim {head_dim}; choose another width")
        attention = make_divisible(int(pair[1] * mix), GRAIN)
        if letter != "C" and 0 < mix < 1 and (attention >= pair[1] or attention % head_dim):
            raise UserError(
                f"{pair[1]} channels do not split at mix_block_ratio {mix}: attention would get {attention}, in steps "
                f"of {GRAIN} and of head_dim {head_dim}; choose another width or ratio"
            )


def _is_pair(widths: Any) -> bool:
    return isinstance(widths, Sequence) and len(widths) == 2


CONVS = {"first_conv": "stem.0.conv", "classifier": "head.fc"}
default_cfgs = generate_default_cfgs(
    {
        "next_vit": default_cfg(pool_size=(7, 7), crop_pct=0.95, **CONVS),
        "next_vit_cifar": default_cfg(
            32,
            10,
            pool_size=(2, 2),
            crop_pct=1.0,
            mean=(0.491, 0.482, 0.447),
            std=(0.247, 0.244, 0.262),
            **CONVS,
        ),
    }
)


@register_model
def next_vit(pretrained: bool = False, **kwargs: Any) -> NextViT:
    """Next-ViT of any design; without arguments the network of timm's ``nextvit_small``: 31.8 M parameters."""
    return build(NextViT, "next_vit", pretrained, (0, 1, 2, 3), **kwargs)


@register_model
def next_vit_cifar(pretrained: bool = False, **kwargs: Any) -> NextViT:
    """Next-ViT for pictures of 32 pixels; the sizes are ours, the proportions of the blocks the paper's."""
    small = {
        "stem_chs": (32, 16, 32),
        "stem_strides": (1, 1, 1, 2),
        "depths": (1, 2, 5, 2),
        "channels": ((32, 32), (96, 128), (96, 128), (192, 256)),
        "sr_ratios": (4, 2, 2, 1),
        "drop_path_rate": 0.0,
        "num_classes": 10,
    }
    return build(NextViT, "next_vit_cifar", pretrained, (0, 1, 2, 3), **{**small, **kwargs})
